"""``agentsched doctor`` looks at the machine for real, and never fails because something is missing."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from agentsched.cli.doctor import doctor


def rows(monkeypatch: pytest.MonkeyPatch, backend: str) -> dict[str, dict[str, str]]:
    monkeypatch.setenv("AGENTSCHED_BACKEND", backend)
    done = CliRunner().invoke(doctor, ["--json"])
    assert done.exit_code == 0
    return {row["name"]: row for row in json.loads(done.output)["checks"]}


def test_every_missing_thing_says_what_is_lost_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in rows(monkeypatch, "auto").values():
        assert row["state"] in ("ok", "partial", "missing")
        assert row["found"]
        if row["state"] != "ok":
            assert row["lost"], row
            assert row["remedy"], row


@pytest.mark.cgroups
def test_the_sandbox_row_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(monkeypatch, "auto")
    assert "tried: exit 0" in found["sandbox"]["found"]
    assert found["kill whole trees"]["state"] == "ok"


def test_without_cgroups_all_that_needs_them_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(monkeypatch, "none")
    assert (
        found["sandbox"]["state"]
        == found["memory limits"]["state"]
        == found["peak memory"]["state"]
        == "missing"
    )


def test_a_backend_that_cannot_be_had_is_a_row_and_no_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    found = rows(monkeypatch, "docker")
    assert (found["sandbox"]["state"], "'docker'" in found["sandbox"]["found"]) == ("missing", True)


def test_the_table_shows_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    done = CliRunner().invoke(doctor, [])
    assert done.exit_code == 0
    for name in rows(monkeypatch, "auto"):
        assert name in done.output
