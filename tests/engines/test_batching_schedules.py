"""Random schedules of calls, aborts, orders and failures: what holds for the batching engine always."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core.decisions import EngineTerms, Rank, Release
from agentsched.core.events import CallAborted, CallFinished
from tests.engines.bench import BLOCK, Bench, failing, prompt

PROGRAMS = st.integers(0, 3).map("p{}".format)
ACTIONS = st.one_of(
    st.tuples(st.just("submit"), PROGRAMS, st.integers(1, 30), st.integers(1, 12), st.integers(0, 2)),
    st.tuples(st.just("step"), st.integers(1, 6)),
    st.tuples(st.just("abort"), st.integers(0, 40)),
    st.tuples(st.just("rank"), PROGRAMS, st.integers(0, 3)),
    st.tuples(st.just("retain"), PROGRAMS, st.integers(0, 3), st.integers(1, 40)),
    st.tuples(st.just("release"), PROGRAMS),
    st.tuples(st.just("terms"), st.integers(0, 2), st.integers(0, 9), st.integers(0, 5), st.integers(0, 40)),
    st.tuples(st.just("break"), st.booleans()),
)


def act(bench: Bench, action: tuple[Any, ...], submitted: list[str]) -> None:
    match action:
        case ("submit", program, length, output, branch):
            call = f"c{len(submitted)}"
            # Prompts of one branch are prefixes of one another, so calls share and extend contexts.
            bench.submit(call, prompt(branch, length), output, program)
            submitted.append(call)
        case ("step", count):
            bench.step(count)
        case ("abort", number):
            bench.engine.abort(f"c{number}", bench.now)
        case ("rank", program, key):
            bench.order(Rank, program=program, key=float(key))
        case ("retain", program, value, tokens):
            bench.retain(program, float(value), tokens)
        case ("release", program):
            bench.order(Release, program=program)
        case ("terms", price, chunk, running, floor):
            bench.order(
                EngineTerms,
                device_price=float(price),
                chunk_tokens=chunk,
                max_running=running,
                free_floor_tokens=floor,
            )
        case ("break", broken):
            bench.executor.fault = failing if broken else None
        case _:
            raise AssertionError(action)


@settings(max_examples=150)
@given(st.lists(ACTIONS, max_size=60), st.integers(11, 24))
def test_every_call_ends_once_and_nothing_leaks(actions: list[tuple[Any, ...]], num_blocks: int) -> None:
    bench = Bench(num_blocks, chunk_tokens=8, max_running=4)
    submitted: list[str] = []
    reports = []
    for action in actions:
        act(bench, action, submitted)
        bench.engine.check_invariants()
        reports.append(bench.report())
    bench.executor.fault = None
    bench.drain()
    ends = [item.call for item in bench.outputs if isinstance(item, CallFinished | CallAborted)]
    assert sorted(ends) == sorted(submitted)
    for item in bench.outputs:
        if isinstance(item, CallFinished):
            assert len(bench.tokens(item.call)) == item.output_tokens
    last = bench.engine.report(bench.now, snapshot=True)
    assert last.free_tokens + last.evictable_tokens == num_blocks * BLOCK
    assert (last.running, last.queued) == (0, 0)


@settings(max_examples=50)
@given(st.lists(ACTIONS, max_size=40))
def test_the_same_schedule_gives_the_same_outputs(actions: list[tuple[Any, ...]]) -> None:
    first, second = Bench(12, chunk_tokens=8), Bench(12, chunk_tokens=8)
    for bench in (first, second):
        submitted: list[str] = []
        for action in actions:
            act(bench, action, submitted)
    assert first.outputs == second.outputs
    assert first.report() == second.report()


@settings(max_examples=50)
@given(st.lists(st.tuples(PROGRAMS, st.integers(1, 30), st.integers(1, 12)), min_size=1, max_size=12))
def test_orders_change_when_a_call_runs_and_never_what_it_says(
    calls: list[tuple[str, int, int]],
) -> None:
    stock, ordered = Bench(11, chunk_tokens=8), Bench(11, chunk_tokens=8)
    for place, program in enumerate(("p0", "p1", "p2", "p3")):
        ordered.order(Rank, program=program, key=float(3 - place))
        ordered.retain(program, float(place), 20)
    for bench in (stock, ordered):
        for number, (program, length, output) in enumerate(calls):
            bench.submit(f"c{number}", prompt(number % 3, length), output, program)
            bench.step()
        bench.drain()
    for number in range(len(calls)):
        assert stock.tokens(f"c{number}") == ordered.tokens(f"c{number}")
