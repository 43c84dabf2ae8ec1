"""What the next daemon knows of the last one's programs, and what engines that outlive a daemon are told."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from agentsched.core import events as ev
from agentsched.core.decisions import EngineOrder
from agentsched.core.log import read, steps
from agentsched.daemon.charges import Charges
from agentsched.daemon.identity import Ask, Identities, call_digest
from agentsched.daemon.state import Database
from agentsched.daemon.state.keeper import FORGOTTEN_AFTER_S
from agentsched.daemon.state.records import CHARGES, models, programs, records
from agentsched.engines.byte_frontend import VOCABULARY
from agentsched.engines.contract import Engine
from agentsched.engines.frontend import ChatRequest
from agentsched.engines.inprocess import InProcessEngine
from agentsched.engines.simulated import simulated
from tests.daemon.serving import FAST, SLOW, Served, chat, served, until

LONG_ANSWER = "/say an answer that is long enough to be recognised by anybody who sees it again"


async def turn(served_: Served, messages: list[Any], **headers: str) -> tuple[str, dict[str, Any]]:
    """Whose program a call was, and its answer; both are added to the messages."""
    body = {"model": "simulated", "messages": messages}
    status, answer, said = await served_.post("/v1/chat/completions", body, **headers)
    assert status == 200
    message: dict[str, Any] = answer["choices"][0]["message"]
    messages.append(message)
    return said["x-agentsched-program"], answer


async def test_programs_and_who_is_who_outlive_the_daemon(tmp_path: Path) -> None:
    talk: list[Any] = [{"role": "user", "content": LONG_ANSWER}]
    tools: list[Any] = [{"role": "user", "content": '/call bash {"command": "ls"}'}]
    async with served(state=tmp_path) as served_:
        by_words, _ = await turn(served_, talk)
        by_tool, _ = await turn(served_, tools)
        session = {"x_claude_code_session_id": "s", "x_agentsched_deadline_s": "500"}
        by_session, _ = await turn(served_, [{"role": "user", "content": "/say yes"}], **session)
        child = {"x_claude_code_session_id": "s", "x_claude_code_agent_id": "a"}
        await turn(served_, [{"role": "user", "content": "/say yes"}], **child)
        closed, _ = await turn(served_, [{"role": "user", "content": "/say no"}], x_agentsched_program="c")
        await served_.post(
            "/agentsched/v1/events", {"events": [{"event": "ProgramClosed", "program": closed}]}
        )
        before = await served_.programs()
    async with served(state=tmp_path) as served_:
        after = await served_.programs()
        assert list(after) == list(before)
        assert len(after) == 4
        for name, program in after.items():
            for field in ("tenant", "parent", "calls_done", "context_tokens"):
                assert program[field] == before[name][field]
            assert program["state"] == "idle"
            assert program["age_s"] > before[name]["age_s"]
        assert after["claude-code:s/a"]["parent"] == "claude-code:s" == by_session
        talk.append({"role": "user", "content": "/say more"})
        assert (await turn(served_, talk))[0] == by_words
        tools.append({"role": "tool", "tool_call_id": tools[-1]["tool_calls"][0]["id"], "content": "x"})
        assert (await turn(served_, tools))[0] == by_tool
        assert len(await served_.programs()) == 4
        assert (await served_.programs())[by_tool]["calls_done"] == 2
    database = Database(tmp_path)
    assert records(database, CHARGES, Charges)["default"].calls_finished == 7
    assert models(database) is not None
    database.close()


def as_killed(state: Path, at: Path) -> list[str]:
    """A copy of the state as it lies there, as a sudden death would leave it; the programs in it."""
    shutil.rmtree(at, ignore_errors=True)
    shutil.copytree(state, at, ignore=shutil.ignore_patterns("lock"))
    database = Database(at)
    names = [saved.program for saved in programs(database)]
    database.close()
    return names


@pytest.mark.parametrize("stream", [False, True])
async def test_whoever_has_got_an_answer_is_in_the_file(tmp_path: Path, stream: bool) -> None:
    state, copy = tmp_path / "state", tmp_path / "copy"
    async with served(state=state) as served_:
        for number in range(5):
            body = chat(f"/say yes {number}", stream=stream)
            async with served_.http.post(served_.url + "/v1/chat/completions", json=body) as answer:
                name = answer.headers["x-agentsched-program"]
                await answer.read()
            assert name in as_killed(state, copy)


async def test_a_first_call_that_was_cut_off_comes_again_for_the_same_program(tmp_path: Path) -> None:
    state, copy = tmp_path / "state", tmp_path / "copy"
    body = chat("no meaning", max_tokens=1000)
    async with served(SLOW, state=state) as served_:
        call = asyncio.create_task(served_.post("/v1/chat/completions", body))
        await until(lambda: as_killed(state, copy), "the program is in the file")
        (name,) = await served_.programs()
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    async with served(state=copy) as served_:
        assert list(await served_.programs()) == [name]
        _, _, said = await served_.post("/v1/chat/completions", body)
        assert said["x-agentsched-program"] == name
        _, _, said = await served_.post("/v1/chat/completions", body)
        assert said["x-agentsched-program"] != name


async def test_a_program_that_nobody_has_heard_of_for_a_day_is_forgotten(tmp_path: Path) -> None:
    async with served(state=tmp_path) as served_:
        await served_.chat("/say yes", program="old")
        await served_.chat("/say yes", program="new")
    database = Database(tmp_path)
    (old,) = [saved for saved in programs(database) if saved.program == "old"]
    old = msgspec.structs.replace(old, seen_unix_s=old.seen_unix_s - FORGOTTEN_AFTER_S)
    database.write({("programs", ("old",)): old.row()})
    database.close()
    async with served(state=tmp_path) as served_:
        assert list(await served_.programs()) == ["new"]
    assert as_killed(tmp_path, tmp_path.with_name("copy")) == ["new"]


async def test_the_log_of_a_daemon_that_took_programs_up_replays(tmp_path: Path) -> None:
    state, log = tmp_path / "state", tmp_path / "events.jsonl"
    epochs = []
    for _ in range(2):
        async with served(state=state, log=log, policy="agentsched") as served_:
            await served_.chat('/call bash {"command": "ls"}', program="p")
        with log.open("rb") as lines:
            header, entries = read(lines)
            found = list(steps(header, entries))
        epochs.append(header.epoch)
        assert all(step.agrees for step in found)
    assert epochs[0] < epochs[1]
    assert isinstance(found[1].event, ev.ProgramRestored)
    assert found[1].event.calls_done == 1


async def test_without_state_nothing_is_known() -> None:
    for _ in range(2):
        async with served() as served_:
            assert await served_.programs() == {}
            await served_.chat("/say yes", program="p")
            assert not served_.daemon.state_failing


class Outliving(InProcessEngine):
    """An engine that was there before the daemon, and stays when that goes."""

    async def close(self) -> None:
        return None


async def test_an_engine_that_outlives_the_daemon_keeps_its_kv_and_heeds_the_new_one_alone(
    tmp_path: Path,
) -> None:
    machine = simulated(FAST, 4096, vocabulary=VOCABULARY)
    engine = Outliving(machine, name="simulated")
    seen: list[Any] = []
    carry_out = machine.order

    def take(orders: Sequence[EngineOrder], now: float) -> None:
        seen.extend(orders)
        carry_out(orders, now)

    machine.order = take  # type: ignore[method-assign]
    talk: list[Any] = [{"role": "system", "content": "." * 900}]
    talk.append({"role": "user", "content": '/call bash {"command": "ls"}'})

    def make() -> Engine:
        return engine

    async with served(make_engine=make, state=tmp_path) as served_:
        await turn(served_, talk, x_agentsched_program="stays")
        await served_.chat("/say yes" + "." * 900, program="goes")
        await served_.post(
            "/agentsched/v1/events", {"events": [{"event": "ProgramClosed", "program": "goes"}]}
        )
    orders, seen[:] = list(seen), []
    last = max(order.epoch for order in orders)
    async with served(make_engine=make, state=tmp_path) as served_:
        await until(lambda: len(seen) >= 3, "the engine is told what its KV is worth")
        told = {(type(order).__name__, getattr(order, "program", "")) for order in seen}
        assert told == {("EngineTerms", ""), ("Retain", "stays"), ("Release", "goes")}
        assert {order.epoch for order in seen} == {machine._orders.epoch}
        assert machine._orders.epoch > last
        for order in orders:  # of the daemon that is gone, late on their way
            assert not machine._orders.apply(order)
        held = (await served_.programs())["stays"]
        assert held["held_device_tokens"] > 900
        tool = {"role": "tool", "tool_call_id": talk[-1]["tool_calls"][0]["id"], "content": "x"}
        _, answer = await turn(served_, [*talk, tool], x_agentsched_program="stays")
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 900
    await InProcessEngine.close(engine)


def copied(known: Identities) -> Identities:
    """What the next life makes of the tables."""
    new = Identities()
    for kind, table in known.tables().items():
        for key, value in table.entries.items():
            data = msgspec.json.encode(value)
            new.tables()[kind].entries[key] = msgspec.json.decode(data, type=table.value)
    new.recover()
    return new


def ask(text: str, *answers: str, then: str = "go on") -> Ask:
    messages = [{"role": "user", "content": text}]
    for answer in answers:
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": then}]
    chat_ = ChatRequest(model="m", messages=messages)
    return Ask(chat=chat_, digest=call_digest(chat_))


def test_a_first_call_is_found_again_by_what_lasts() -> None:
    known = Identities()
    first = msgspec.structs.replace(ask("task"), digest=b"of this life", lasting=lambda: b"of all")
    claim = known.resolve(first)
    known.begun(claim)
    new = copied(known)
    again = msgspec.structs.replace(first, digest=b"of the next life")
    assert new.resolve(again).program == claim.program
    known.given_up(claim)
    assert known.resolve(first).program == claim.program
    assert known.resolve(first).program != claim.program


def test_each_of_equal_calls_that_were_cut_off_finds_a_program_again() -> None:
    known = Identities()
    claims = [known.resolve(ask("task")) for _ in range(3)]
    for claim in claims:
        known.begun(claim)
    known.answered(claims[0], "an answer that is long enough to be recognised")
    new = copied(known)
    assert not new.tables()["opening"].entries.items()
    again = {new.resolve(ask("task")).program for _ in range(2)}
    assert again == {claim.program for claim in claims[1:]}
    assert (
        new.resolve(ask("task", "an answer that is long enough to be recognised")).program
        == claims[0].program
    )


def test_a_call_that_was_cut_off_in_a_conversation_is_no_fork() -> None:
    known = Identities()
    answer = "an answer that is long enough to be recognised"
    first = known.resolve(ask("task"))
    known.answered(first, answer)
    known.begun(known.resolve(ask("task", answer)))
    again = copied(known).resolve(ask("task", answer, then="go on another way"))
    assert (again.program, again.known_by) == (first.program, "conversation")
