"""``agentsched doctor`` looks at the machine for real, and never fails because something is missing."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from agentsched.cli.doctor import doctor
from tests.engines.test_dialects import SGLANG


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


def test_a_server_is_looked_at_and_told_how_it_would_give_more() -> None:
    class Stock(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(SGLANG if self.path.startswith("/server_info") else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *said: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Stock) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        done = CliRunner().invoke(doctor, ["--json", "--upstream", url, "--upstream", "http://127.0.0.1:1"])
        server.shutdown()
    assert done.exit_code == 0
    found = [row for row in json.loads(done.output)["checks"] if row["section"] == "Servers"]
    assert found[0]["state"] == "ok"
    assert "sglang 0.5.23, 4,000 tokens of KV, service: order" in found[0]["found"]
    assert any("--enable-session-radix-cache" in row["remedy"] for row in found)
    assert found[-1]["name"] == "http://127.0.0.1:1"
    assert found[-1]["state"] == "missing"
