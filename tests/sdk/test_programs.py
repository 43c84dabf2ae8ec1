"""Agents become programs, tools are reported, and none of it disturbs the wrapped function."""

import asyncio
import inspect
import logging
import subprocess
import sys
import threading
import time

import pytest

from agentsched.core.events import ProgramOpened
from agentsched.sdk import agent, current_program, headers, program, tool, tool_call, tool_run
from agentsched.sdk.reporting import Reporter, use_reporter
from tests.sdk.recording import Recording


@tool
def double(value: int) -> int:
    """Twice the value."""
    return 2 * value


@tool(name="nap")
async def sleep_briefly() -> str:
    await asyncio.sleep(0.02)
    return "rested"


@tool
def burn(cpu_s: float) -> None:
    end = time.thread_time() + cpu_s
    while time.thread_time() < end:
        pass


def test_a_sync_agent_opens_and_closes_one_program(daemon: Recording) -> None:
    @agent(name="solver")
    def solve() -> str:
        running = current_program()
        assert running is not None
        assert headers() == {"x-agentsched-program": running.id}
        assert double(4) == 8
        return running.id

    identity = solve()
    assert identity.startswith("solver-")
    assert headers() == {}
    (opened,), (closed,) = daemon.named("ProgramOpened"), daemon.named("ProgramClosed")
    assert opened["program"] == closed["program"] == identity
    (started,), (finished,) = daemon.named("ToolStarted"), daemon.named("ToolFinished")
    assert (started["tool"], started["program"]) == ("double", identity)
    assert finished["tool_call"] == started["tool_call"]
    assert finished["exit_status"] == 0
    assert [event["event"] for event in daemon.events] == [
        "ProgramOpened",
        "ToolStarted",
        "ToolFinished",
        "ProgramClosed",
    ]


async def test_concurrent_async_agents_keep_their_own_programs(daemon: Recording) -> None:
    @agent
    async def worker() -> tuple[str, str]:
        before = headers()["x-agentsched-program"]
        assert await sleep_briefly() == "rested"
        return before, headers()["x-agentsched-program"]

    pairs = await asyncio.gather(*(worker() for _ in range(5)))
    assert all(before == after for before, after in pairs)
    assert len({before for before, _ in pairs}) == 5
    finished = daemon.named("ToolFinished")
    assert len(finished) == 5
    assert all(event["wall_s"] >= 0.02 for event in finished)
    assert {event["program"] for event in finished} == {before for before, _ in pairs}


def test_a_nested_agent_is_a_program_of_its_own_with_its_parent(daemon: Recording) -> None:
    @agent
    def child() -> str:
        running = current_program()
        assert running is not None
        assert running.parent is not None
        return running.parent.id

    @agent
    def parent() -> tuple[str, str]:
        seen = child()
        running = current_program()
        assert running is not None
        return seen, running.id

    seen, identity = parent()
    assert seen == identity
    assert len({event["program"] for event in daemon.named("ProgramOpened")}) == 2
    assert [event["program"] for event in daemon.named("ProgramClosed")][-1] == identity


def test_exceptions_pass_through_and_are_reported(daemon: Recording) -> None:
    @tool
    def fail() -> None:
        raise LookupError("gone")

    @agent
    def run() -> None:
        fail()

    with pytest.raises(LookupError, match="gone"):
        run()
    assert [event["exit_status"] for event in daemon.named("ToolFinished")] == [1]
    assert len(daemon.named("ProgramClosed")) == 1
    assert current_program() is None


def test_a_tool_tells_its_cpu_time_and_the_id_of_the_call_that_it_answers(daemon: Recording) -> None:
    with program("p", id="p-1"), tool_call("call_7"):
        burn(0.05)
        double(1)
    first, second = daemon.named("ToolFinished")
    assert first["tool_call"] == "call_7"
    assert 0.05 <= first["cpu_s"] < 0.5
    assert second["tool_call"].startswith("p-1-tool-")


def test_wrapping_keeps_name_doc_and_kind_and_refuses_generators() -> None:
    assert double.__name__ == "double"
    assert double.__doc__ == "Twice the value."
    assert inspect.iscoroutinefunction(sleep_briefly)
    with pytest.raises(TypeError, match="generator"):

        @tool
        def stream() -> object:
            yield 1


def test_without_a_daemon_nothing_happens_but_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("AGENTSCHED_URL", raising=False)
    use_reporter(None)
    threads = threading.active_count()
    run = agent(lambda: double(3))
    with caplog.at_level(logging.WARNING, logger="agentsched.sdk"):
        assert [run() for _ in range(3)] == [6, 6, 6]
    assert len(caplog.records) == 1
    assert "AGENTSCHED_URL" in caplog.text
    assert threading.active_count() == threads
    use_reporter(None)


def test_an_unreachable_daemon_never_blocks_or_raises(caplog: pytest.LogCaptureFixture) -> None:
    use_reporter(Reporter("http://127.0.0.1:9"))
    try:
        with caplog.at_level(logging.WARNING, logger="agentsched.sdk"):
            assert agent(lambda: double(3))() == 6
            from agentsched.sdk import reporting

            assert reporting.reporter().flush()
    finally:
        use_reporter(None)
    assert len(caplog.records) == 1
    assert "do not reach the daemon" in caplog.text


def test_a_full_queue_drops_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("agentsched.sdk.reporting.QUEUE_LIMIT", 2)
    reporter = Reporter("http://127.0.0.1:9")
    monkeypatch.setattr(reporter, "_start_thread", lambda: None)
    with caplog.at_level(logging.WARNING, logger="agentsched.sdk"):
        for number in range(5):
            reporter.report(ProgramOpened(program=f"p{number}"))
    assert len(caplog.records) == 1
    assert "dropped" in caplog.text


def test_reporting_costs_a_tool_call_little(daemon: Recording) -> None:
    with program("p"):
        cost_s = min(_time_of(lambda: double(1)) for _ in range(400))
    assert cost_s < 200e-6  # 50 us on a quiet machine; this bound only catches a blocking send


def _time_of(run: object) -> float:
    assert callable(run)
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def test_the_sdk_imports_without_servers_and_engines() -> None:
    code = (
        "import sys, agentsched.sdk\n"
        "heavy = {'torch', 'aiohttp', 'transformers', 'openai', 'minisweagent', 'fcntl'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_program_tells_its_parent_and_what_is_known_beforehand(daemon: Recording) -> None:
    with program("outer") as outer, program("inner", expected_calls=7, deadline_s=60.0):
        pass
    first, second = daemon.named("ProgramOpened")
    assert first == {"event": "ProgramOpened", "program": outer.id}
    assert (second["parent"], second["expected_calls"], second["deadline_s"]) == (outer.id, 7, 60.0)


def test_events_carry_the_tenants_key(daemon: Recording) -> None:
    reporter = Reporter(daemon.url, "ask-of-acme")
    reporter.report(ProgramOpened(program="p"))
    assert reporter.flush()
    assert daemon.headers[-1]["authorization"] == "Bearer ask-of-acme"


def test_a_tool_says_what_memory_it_needs(daemon: Recording) -> None:
    @tool(hint="memory:2G")
    def heavy() -> None: ...

    @agent
    def run() -> None:
        heavy()

    run()
    assert [event["expected_memory_bytes"] for event in daemon.named("ToolStarted")] == [2 << 30]
    with pytest.raises(ValueError, match="'lots' is not"):
        tool(hint="lots")


async def test_of_parallel_tools_one_answers_the_models_call(daemon: Recording) -> None:
    with program("p", id="p-1"), tool_call("call_1"):
        await asyncio.gather(sleep_briefly(), sleep_briefly(), asyncio.to_thread(double, 1))
    calls = [event["tool_call"] for event in daemon.named("ToolStarted")]
    assert sorted(call == "call_1" for call in calls) == [False, False, True]
    assert len(set(calls)) == 3
    assert {event["program"] for event in daemon.named("ToolFinished")} == {"p-1"}


async def test_a_cancelled_agent_ends_its_tool_and_its_program(daemon: Recording) -> None:
    begun = asyncio.Event()

    @tool
    async def wait_for_ever() -> None:
        begun.set()
        await asyncio.Event().wait()

    @agent
    async def run() -> None:
        await wait_for_ever()

    task = asyncio.create_task(run())
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [event["exit_status"] for event in daemon.named("ToolFinished")] == [130]
    assert len(daemon.named("ProgramClosed")) == 1


async def test_blocks_are_programs_and_tools_across_awaits(daemon: Recording) -> None:
    with program("p", id="p-1"):
        with tool_run("search", tool_call="call_5", hint="memory:64M"):
            await asyncio.sleep(0)
        with pytest.raises(LookupError), tool_run("fetch"):
            raise LookupError
    first, second = daemon.named("ToolStarted")
    assert (first["tool"], first["tool_call"], first["expected_memory_bytes"]) == (
        "search",
        "call_5",
        64 << 20,
    )
    assert second["tool"] == "fetch"
    assert [event["exit_status"] for event in daemon.named("ToolFinished")] == [0, 1]


def test_a_daemon_that_is_away_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def refuse(*_args: object, **_kwargs: object) -> None:
        asked.append(time.monotonic())
        raise ConnectionRefusedError

    monkeypatch.setattr("agentsched.sdk.reporting._opener.open", refuse)
    reporter = Reporter("http://127.0.0.1:9")
    for number in range(5):
        reporter.report(ProgramOpened(program=f"p{number}"))
        assert reporter.flush()
    assert len(asked) == 1
    monkeypatch.setattr(reporter, "_away_until_s", 0.0)
    reporter.report(ProgramOpened(program="late"))
    assert reporter.flush()
    assert len(asked) == 2
