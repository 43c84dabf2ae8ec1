"""Who imports the vocabulary, agents and tools among them, does not wait for policies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from agentsched.core import ABLATION_NAMES, POLICY_NAMES, Core, make_policy
from agentsched.core.snapshot import freeze


def imported(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in done.stdout.split() if name.startswith("agentsched.")}


def test_the_vocabulary_comes_without_policies_and_predictors() -> None:
    found = imported("import agentsched.core.events, agentsched.core.decisions")
    assert found == {"agentsched.core", "agentsched.core.events", "agentsched.core.decisions"}


def test_a_policy_comes_without_the_others() -> None:
    found = imported("from agentsched.core import make_policy; make_policy('fcfs-lru')")
    assert "agentsched.core.policies.fcfs_lru" in found
    assert not found & {
        f"agentsched.core.policies.{name}" for name in ("agentsched", "saga", "plas", "seats")
    }


@pytest.mark.parametrize("name", [*POLICY_NAMES, *ABLATION_NAMES])
def test_every_name_is_that_of_a_policy(name: str) -> None:
    assert make_policy(name).name == name


def test_a_name_that_is_none_is_told_the_others() -> None:
    with pytest.raises(ValueError, match="fcfs-lru"):
        make_policy("agentsched-no-such")


def test_a_snapshot_of_any_policy_is_thawed_where_none_was_imported(tmp_path: Path) -> None:
    for name in POLICY_NAMES:
        frozen = freeze(Core(make_policy(name)))
        file = tmp_path / name
        file.write_bytes(msgspec.json.encode(frozen))
        code = "import sys, msgspec; from agentsched.core.snapshot import Snapshot, thaw"
        code += f"; thaw(msgspec.json.decode(open({str(file)!r}, 'rb').read(), type=Snapshot))"
        assert "agentsched.core.snapshot" in imported(code)
