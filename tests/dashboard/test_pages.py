"""The dashboard of a real daemon over HTTP: the page, who sees what, the stream, and what the log has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.daemon.keyed import ACME, ADMIN_KEY, BOLT, two_tenants
from tests.daemon.serving import Served, served
from tests.daemon.upstreams import Double, in_front_of, plainly

VIEW = "/agentsched/v1/view"


async def first_message(daemon: Served, **headers: str) -> tuple[str, dict[str, Any]]:
    """Event and data of what a client is told first."""
    async with daemon.http.get(daemon.url + VIEW + "/stream", headers=headers) as answer:
        assert answer.status == 200
        assert answer.content_type == "text/event-stream"
        event = data = b""
        async for line in answer.content:
            if line.startswith(b"event: "):
                event = line[7:].strip()
            if line.startswith(b"data: "):
                data = line[6:]
                break
    return event.decode(), json.loads(data)


@pytest.mark.parametrize(
    ("path", "media_type"),
    [
        ("/dashboard", "text/html"),
        ("/dashboard/dashboard.js", "text/javascript"),
        ("/dashboard/dashboard.css", "text/css"),
        ("/dashboard/icon.svg", "image/svg+xml"),
    ],
)
async def test_the_page_is_served_and_may_load_nothing_from_elsewhere(path: str, media_type: str) -> None:
    async with served(declared=two_tenants()) as daemon, daemon.http.get(daemon.url + path) as answer:
        assert answer.status == 200
        assert answer.content_type == media_type
        policy = answer.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        again = {"If-None-Match": answer.headers["ETag"]}
        async with daemon.http.get(daemon.url + path, headers=again) as unchanged:
            assert unchanged.status == 304


@pytest.mark.parametrize("path", ["/dashboard/SOURCES.sha256", "/dashboard/../live.py", "/dashboard/none"])
async def test_nothing_else_is_a_file_of_the_page(path: str) -> None:
    async with served() as daemon, daemon.http.get(daemon.url + path) as answer:
        assert answer.status == 404


async def test_a_program_shows_with_what_was_decided_about_it() -> None:
    async with served() as daemon:
        await daemon.chat("hello", program="mine")
        status, view, _ = await daemon.ask("GET", VIEW)
        assert status == 200
        (row,) = view["programs"]
        assert (row["program"], row["calls_done"]) == ("mine", 1)
        kinds = {item["kind"] for item in view["items"] if item.get("program") == "mine"}
        assert {"opened", "admit"} <= kinds
        assert view["engines"][0]["gauges"][-1][7] is not None, "what is expected is told at once"
        event, told = await first_message(daemon)
        assert event == "view"
        assert told["programs"][0]["program"] == "mine"


@pytest.mark.parametrize("path", ["/dashboard", VIEW, f"{VIEW}/stream"])
async def test_it_can_be_switched_off(path: str) -> None:
    async with served(dashboard=False) as daemon:
        status, _, _ = await daemon.chat("hello", program="mine")
        assert status == 200
        status, _, _ = await daemon.ask("GET", path)
        assert status == 404


async def test_who_sees_what_where_there_are_keys() -> None:
    async with served(declared=two_tenants()) as daemon:
        await daemon.chat("hello", program="ours", key=ACME)
        await daemon.chat("hello", program="theirs", key=BOLT)
        status, _, _ = await daemon.ask("GET", VIEW)
        assert status == 401
        _, mine, _ = await daemon.ask("GET", VIEW, x_api_key=ACME)
        assert [row["program"] for row in mine["programs"]] == ["ours"]
        assert "theirs" not in json.dumps(mine)
        assert mine["engines"] == []
        assert all("need" not in item["text"] for item in mine["items"])
        _, everything, _ = await daemon.ask("GET", VIEW, x_api_key=ADMIN_KEY)
        assert {row["tenant"] for row in everything["programs"]} == {"acme", "bolt"}
        _, streamed = await first_message(daemon, **{"x-api-key": BOLT})
        assert [row["program"] for row in streamed["programs"]] == ["theirs"]
        assert "ours" not in json.dumps(streamed)


@pytest.mark.parametrize(
    "headers",
    [{"Host": "rebound.example"}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}],
)
async def test_pages_from_elsewhere_may_not_look(headers: dict[str, str]) -> None:
    async with served() as daemon, daemon.http.get(daemon.url + VIEW, headers=headers) as answer:
        assert answer.status == 403
        assert "127.0.0.1" in (await answer.json())["error"]["message"]


async def test_what_the_log_has_can_be_travelled_to(tmp_path: Path) -> None:
    async with served(log=tmp_path / "events.jsonl") as daemon:
        await daemon.chat("hello", program="mine")
        _, view, _ = await daemon.ask("GET", VIEW)
        assert view["logged"]
        period = f"?from_s={view['since_s'] - 1}&to_s={view['at_s'] + 1}"
        status, past, _ = await daemon.ask("GET", f"{VIEW}/recorded{period}")
        assert status == 200
        assert [row["program"] for row in past["programs"]] == ["mine"]
        assert past["programs"][0]["calls"] == view["programs"][0]["calls"]
        assert abs(past["unix_s"] - past["at_s"] - (view["unix_s"] - view["at_s"])) < 5.0
        status, body, _ = await daemon.ask("GET", f"{VIEW}/recorded?from_s=1&to_s=2")
        assert (status, "nothing happened" in body["error"]["message"]) == (404, True)


async def test_a_daemon_before_other_servers_shows_the_same() -> None:
    async with in_front_of(Double(plainly)) as daemon:
        await daemon.chat("hello", program="mine")
        async with daemon.http.get(daemon.url + "/dashboard") as answer:
            assert answer.content_type == "text/html"
        _, told = await first_message(daemon)
        assert [row["program"] for row in told["programs"]] == ["mine"]


async def test_without_a_log_it_is_said_how_to_have_one() -> None:
    async with served() as daemon:
        status, body, _ = await daemon.ask("GET", f"{VIEW}/recorded?from_s=1&to_s=2")
        assert status == 404
        assert "--log" in body["error"]["message"]


@pytest.mark.parametrize(
    "period", ["", "?from_s=1", "?from_s=a&to_s=2", "?from_s=5&to_s=2", "?from_s=0&to_s=1e9"]
)
async def test_a_period_that_is_none_is_refused(tmp_path: Path, period: str) -> None:
    async with served(log=tmp_path / "events.jsonl") as daemon:
        status, body, _ = await daemon.ask("GET", f"{VIEW}/recorded{period}")
        assert status == 400
        assert "_s" in body["error"]["message"]


async def test_the_daemon_stops_at_once_while_somebody_watches() -> None:
    async with served() as daemon:
        answer = await daemon.http.get(daemon.url + VIEW + "/stream")
        assert answer.status == 200
        await daemon.daemon.__aexit__(None, None, None)
        while await answer.content.readline():
            pass
