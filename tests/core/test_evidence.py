"""What running tools tell of their progress outweighs what such tools took before."""

from __future__ import annotations

from agentsched.core import events as ev
from agentsched.core.decisions import AnyDecision, Pause, Prefetch, Retain
from agentsched.core.foresight import told_ends_s
from tests.core.harness import Harness

CAPACITY = 100_000


def away(harness: Harness, prompt_tokens: int = 3_000) -> tuple[str, str]:
    """A program in a gap, and the tool call that runs."""
    program = harness.open()
    harness.arrive(program, prompt_tokens)
    call = f"c{harness.calls}"
    harness.run_call(program)
    harness.post(ev.ToolStarted(tool_call=f"t-{call}", program=program, tool="bash", command="pytest"))
    return program, f"t-{call}"


def tell(harness: Harness, program: str, tool_call: str, fraction: float) -> list[AnyDecision]:
    return harness.post(
        ev.ToolProgressed(
            tool_call=tool_call, program=program, cpu_s=1.0, memory_bytes=1, done_fraction=fraction
        )
    )


def worth_now(decided: list[AnyDecision], now: float) -> float:
    (order,) = [d for d in decided if isinstance(d, Retain)]
    return next(step.value for step in order.segments[0].device if now < step.until_s)


def test_a_tool_that_is_nearly_done_makes_its_kv_worth_more() -> None:
    harness = Harness("agentsched", capacity_tokens=CAPACITY)
    (slow, slow_tool), (soon, soon_tool) = away(harness), away(harness)
    harness.now += 30.0
    unlikely = worth_now(tell(harness, slow, slow_tool, 0.02), harness.now)
    likely = worth_now(tell(harness, soon, soon_tool, 0.9), harness.now)
    assert likely > 20 * unlikely


def test_who_is_nearly_done_keeps_its_seat_where_contexts_outgrow_the_engine() -> None:
    harness = Harness("agentsched", capacity_tokens=CAPACITY)
    (slow, slow_tool), (soon, soon_tool) = away(harness), away(harness)
    busy = harness.open()
    harness.arrive(busy)
    harness.run_call(busy)
    harness.now += 60.0
    tell(harness, soon, soon_tool, 0.9)
    tell(harness, slow, slow_tool, 0.02)
    decided = harness.arrive(busy, CAPACITY - 4_000)
    assert [d.program for d in decided if isinstance(d, Pause)] == [slow]


def test_one_silent_tool_of_several_leaves_it_to_history() -> None:
    harness = Harness("agentsched")
    program, tool = away(harness)
    harness.post(ev.ToolStarted(tool_call="another", program=program, tool="bash", command="sleep"))
    harness.now += 5.0
    tell(harness, program, tool, 0.9)
    state = harness.core.state
    assert told_ends_s(state, state.programs[program]) == []
    tell(harness, program, "another", 0.1)
    assert min(told_ends_s(state, state.programs[program])) > harness.now + 10.0


HOST_TOKENS_PER_S = 1_000.0


def in_host_memory(tokens: int) -> tuple[Harness, str, str]:
    """An engine with a host tier, where so much lies of a program that is away."""
    harness = Harness("agentsched", capacity_tokens=CAPACITY)
    harness.post(ev.EngineLost(engine="e0"))
    harness.post(
        ev.EngineAttached(
            engine="e0",
            capacity_tokens=CAPACITY,
            block_tokens=16,
            host_capacity_tokens=CAPACITY,
            host_tokens_per_s=HOST_TOKENS_PER_S,
        )
    )
    program, tool = away(harness)
    held = ev.Held(program=program, device_tokens=3_000 - tokens, host_tokens=tokens)
    harness.post(ev.StepReport(engine="e0", free_tokens=CAPACITY, evictable_tokens=0, held=(held,)))
    return harness, program, tool


def fetched(decided: list[AnyDecision]) -> list[Prefetch]:
    return [decision for decision in decided if isinstance(decision, Prefetch)]


def test_kv_in_host_memory_is_fetched_when_the_tool_tells_that_it_ends_and_not_before() -> None:
    harness, program, tool = in_host_memory(2_000)
    harness.now += 30.0
    assert fetched(tell(harness, program, tool, 0.3)) == []  # some 70 s are left, and its way up takes 2
    harness.now += 60.0
    (order,) = fetched(tell(harness, program, tool, 0.99))
    assert order.program == program
    assert harness.now < order.by_s <= harness.now + 2 * 2_000 / HOST_TOKENS_PER_S


def test_kv_in_host_memory_is_fetched_while_the_next_call_is_queued() -> None:
    harness, program, _ = in_host_memory(2_000)
    assert [order.program for order in fetched(harness.arrive(program, 3_100))] == [program]


def test_what_is_on_the_device_is_not_fetched() -> None:
    harness, program, tool = in_host_memory(0)
    harness.now += 90.0
    assert fetched(tell(harness, program, tool, 0.99)) == []
    assert fetched(harness.arrive(program, 3_100)) == []
