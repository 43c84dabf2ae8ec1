"""Where leaves are made: names, the caller's place in each hierarchy, and which backend that gives.

Full v2 cannot be had on machines that mount v1 controllers; its rules of place are tested on folders
that look like cgroups, its way of working on a real v2 tree without controllers.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.cgroups import (
    Hint,
    HostRefused,
    Level,
    Limits,
    Sandbox,
    SpecRefused,
    ToolSpec,
    hierarchy,
    names,
    v2,
)
from agentsched.cgroups.contract import Undo
from agentsched.cgroups.detect import choose
from tests.cgroups.looking import instances_of

HYBRID_MOUNTS = """\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
HYBRID_OWN = "9:name=systemd:/\n4:memory:/api/e91\n2:cpu,cpuacct:/\n0::/user\n"


class NoLeases:
    """Nobody who would undo anything."""

    def hold(self, key: str, lease_s: float, undo: Undo) -> None:
        raise AssertionError("nothing is leased here")

    def drop(self, key: str) -> None:
        raise AssertionError("nothing is leased here")


def test_each_controller_has_its_own_place() -> None:
    found = hierarchy.find(HYBRID_MOUNTS, HYBRID_OWN)
    assert found.v2 == "/sys/fs/cgroup/unified/user"
    assert found.v1["memory"] == "/sys/fs/cgroup/memory/api/e91"
    assert found.v1["cpu"] == found.v1["cpuacct"] == "/sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("mount", "own", "place"),
    [
        (
            "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw",
            "0::/user.slice/x.scope\n",
            "/sys/fs/cgroup/user.slice/x.scope",
        ),
        # a container that sees its own cgroup as the mount's root
        ("1 0 0:1 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw", "0::/docker/ab\n", "/sys/fs/cgroup"),
        ("1 0 0:1 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw", "0::/docker/ab/c\n", "/sys/fs/cgroup/c"),
        # a mount that does not show where the caller is
        ("1 0 0:1 /docker/ab /sys/fs/cgroup ro - cgroup2 cgroup rw", "0::/docker/abc\n", None),
        ("1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "0::/../other\n", None),
        ("1 0 0:1 / /mnt/a\\040b shared:1 - cgroup2 cgroup2 rw", "0::/c:d\n", "/mnt/a b/c:d"),
        ("1 0 0:1 / /proc rw - proc proc rw", "0::/\n", None),
    ],
)
def test_places_in_v2(mount: str, own: str, place: str | None) -> None:
    assert hierarchy.find(mount, own).v2 == place


@given(st.text(), st.text())
def test_a_folder_name_is_one_harmless_folder(one: str, other: str) -> None:
    name = names.folder_name(one)
    assert name
    assert len(name.encode()) <= 200
    assert not set(name) & set("/.\n\0")  # no path, and no control file: those have a dot
    if one.encode("utf-8", "replace") != other.encode("utf-8", "replace"):
        assert names.folder_name(other) != name


def test_an_instance_is_alive_as_long_as_its_process() -> None:
    own = names.new_instance()
    pid, start, namespace, number = own.split("-")
    assert names.is_instance(own)
    assert names.is_alive(own) is True
    assert names.is_alive(f"{pid}-{int(start) + 1}-{namespace}-{number}") is False
    assert names.is_alive(f"{pid}-{start}-{int(namespace) + 1}-{number}") is None
    assert not names.is_instance("p1")
    assert names.new_instance() != own


def _fake_v2(folder: Path, controllers: str, inside: str = "") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.controllers").write_text(controllers)
    (folder / "cgroup.subtree_control").write_text("")
    (folder / "cgroup.procs").write_text(inside)
    return folder


def test_v2_passes_its_controllers_on(tmp_path: Path) -> None:
    own = _fake_v2(tmp_path / "own", "cpuset cpu io memory pids\n")
    v2.pass_on(str(own), v2.available(str(own)))
    assert (own / "cgroup.subtree_control").read_text() == "+cpu +memory +pids"


def test_a_supervised_process_builds_beside_its_folder_not_below() -> None:
    assert v2.base("/sys/fs/cgroup/x.scope/agentsched-supervisor") == "/sys/fs/cgroup/x.scope"
    assert v2.base("/sys/fs/cgroup/x.scope") == "/sys/fs/cgroup/x.scope"


def test_v2_steps_aside_only_if_alone(tmp_path: Path) -> None:
    own = _fake_v2(tmp_path / "own", "cpu memory pids\n", inside=f"{os.getpid()}\n")
    (own / names.SUPERVISOR).mkdir()
    (own / names.SUPERVISOR / "cgroup.procs").write_text("")
    v2._step_aside(str(own))
    assert (own / names.SUPERVISOR / "cgroup.procs").read_text() == str(os.getpid())
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")
    with pytest.raises(HostRefused, match=r"1 other processes are in .* Delegate=yes"):
        v2._step_aside(str(own))


def test_the_best_backend_is_chosen_and_the_others_have_reasons(tmp_path: Path) -> None:
    nothing = hierarchy.Hierarchies(None, {})
    choice = choose("1-2-3-4", NoLeases(), found=nothing)
    assert choice.backend.capabilities.backend == "none"
    assert [name for name, _ in choice.refused] == ["v2", "hybrid", "v2-partial"]
    assert dict(choice.refused)["v2"] == "no cgroup v2 hierarchy is mounted"
    v1_only = hierarchy.Hierarchies(str(_fake_v2(tmp_path, "")), {})
    with pytest.raises(HostRefused, match="the hybrid backend is not available: no v1 memory controller"):
        choose("1-2-3-4", NoLeases(), "hybrid", v1_only)
    with pytest.raises(ValueError, match="'v3' is not one of auto, v2, hybrid"):
        choose("1-2-3-4", NoLeases(), "v3", nothing)


def test_a_tree_that_is_not_ours_is_a_reason() -> None:
    with pytest.raises(HostRefused, match=r"cannot make /sys/kernel/agentsched"):
        choose("1-2-3-4", NoLeases(), "v2-partial", hierarchy.Hierarchies("/sys/kernel", {}))


def test_an_unknown_backend_is_the_callers_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AGENTSCHED_BACKEND", "docker")
    with pytest.raises(SpecRefused, match="backend 'docker' is not one of"):
        Sandbox.open("p")


@pytest.mark.cgroups
def test_a_v2_tree_without_controllers_works_and_says_what_it_lacks() -> None:
    with Sandbox.open("partial", backend="v2-partial") as sandbox:
        can = sandbox.capabilities
        spec = ToolSpec(command="setsid sleep 300 & exit 3", limits=Limits(pids=5))
        result = sandbox.run(spec)
        assert result.exit_status == 3
        assert can.whole_tree
        if not can.memory_limit:
            assert any("memory controller" in lost for lost in can.lost)
            assert result.unenforced == ("limit of processes",)
        assert result.usage.cpu_s > 0


@pytest.mark.cgroups
def test_odd_names_of_programs_and_calls_make_leaves() -> None:
    for program in ("../../evil", "cgroup.procs", "a/b", "ü" * 300, "-n", " "):
        with Sandbox.open(program) as sandbox:
            result = sandbox.run(ToolSpec(argv=["true"], tool_call=program))
            assert (result.exit_status, result.program, result.tool_call) == (0, program, program)
    for instance in instances_of(os.getpid()):
        for folder in instance.folders:
            assert not [child for child in Path(folder).iterdir() if child.is_dir()]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("memory:high", Hint(memory=Level.HIGH)),
        (" CPU:low , memory:medium", Hint(cpu=Level.LOW, memory=Level.MEDIUM)),
    ],
)
def test_hints(text: str, hint: Hint) -> None:
    assert Hint.parse(text) == hint


@pytest.mark.parametrize(
    "text", ["", "high", "memory", "disk:high", "memory:huge", "memory:low,memory:high", "memory:high,"]
)
def test_bad_hints_say_what_a_good_one_is(text: str) -> None:
    with pytest.raises(SpecRefused, match="hint"):
        Hint.parse(text)


@pytest.mark.parametrize(
    "limits", [{"memory_bytes": 100}, {"cpu_cores": 0}, {"cpu_cores": float("nan")}, {"pids": 0}]
)
def test_bad_limits_are_refused(limits: dict[str, float]) -> None:
    with pytest.raises(SpecRefused, match=next(iter(limits))):
        Limits(**limits)  # type: ignore[arg-type]
