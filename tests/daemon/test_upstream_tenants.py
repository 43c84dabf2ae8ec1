"""Tenants before servers that are there already: keys, limits, accounts, and what outlives the daemon."""

from __future__ import annotations

from pathlib import Path

from agentsched.daemon.charges import Charges
from agentsched.daemon.state import Database
from agentsched.daemon.state.records import CHARGES, programs, records
from tests.daemon.keyed import ACME, BOLT, two_tenants
from tests.daemon.serving import chat
from tests.daemon.upstreams import USAGE, Double, in_front_of, plainly

CHAT = "/v1/chat/completions"


async def test_keys_for_the_daemon_go_no_further() -> None:
    double = Double(plainly)
    async with in_front_of(double, declared=two_tenants()) as served:
        assert (await served.post(CHAT, chat("hi")))[0] == 401
        assert (await served.post(CHAT, chat("hi"), x_api_key=ACME))[0] == 200
        assert (await served.ask("GET", "/v1/models", x_api_key=ACME))[0] == 404  # the server's own answer
        assert (await served.ask("GET", "/v1/models"))[0] == 401
    assert double.requests
    for request in double.requests:
        assert not {"authorization", "x-api-key"} & request.headers.keys()


async def test_programs_of_one_name_are_two_and_limits_are_a_tenants_own() -> None:
    double = Double(plainly)
    async with in_front_of(double, declared=two_tenants(requests_per_minute=1.0)) as served:
        for key in (ACME, BOLT):
            status, _, headers = await served.post(
                CHAT, chat("hi"), x_api_key=key, x_agentsched_program="same"
            )
            assert (status, headers["x-agentsched-program"]) == (200, "same")
            assert list(await served.programs(key)) == ["same"]
        assert (await served.post(CHAT, chat("hi"), x_api_key=ACME))[0] == 429
        assert (await served.post(CHAT, chat("hi"), x_api_key=BOLT))[0] == 200
    assert len(double.requests) == 3


async def test_what_was_answered_is_charged_and_outlives_the_daemon(tmp_path: Path) -> None:
    double = Double(plainly)
    async with in_front_of(double, state=tmp_path) as served:
        for _ in range(2):
            assert (await served.post(CHAT, chat("hi"), x_agentsched_program="p"))[0] == 200
    database = Database(tmp_path)
    charges = records(database, CHARGES, Charges)["default"]
    (kept,) = programs(database)
    database.close()
    assert (charges.calls_finished, charges.prompt_tokens) == (2, 2 * USAGE["prompt_tokens"])
    assert (kept.program, kept.calls_done) == ("p", 2)
