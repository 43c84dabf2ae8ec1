"""The simulated tool host: cores are shared, memory is limited, and neither is invented."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core import Core, make_policy
from agentsched.core import events as ev
from agentsched.core.log import Entry
from agentsched.engines.analytic import AnalyticEngine
from agentsched.engines.cost import PROFILES
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.scripts import Script, Turn
from agentsched.workloads.simulator import Simulation
from agentsched.workloads.tool_host import Happened, HostUsage, ToolHost

Call = tuple[float, float, float, int]
"""When it starts, its time, its CPU time and its memory."""


def times_of(host: ToolHost, calls: Sequence[Call]) -> dict[str, tuple[float, float]]:
    """Start and end of each call, by its number, when they start at their times."""
    ends: dict[str, float] = {}

    def until(now: float) -> None:
        while host.next_s is not None and host.next_s <= now:
            at_s = host.next_s
            for step in host.advance(at_s):
                assert step.name not in ends
                if step.what in (Happened.ENDED, Happened.FAILED):
                    ends[step.name] = at_s
            host.check_invariants()

    order = sorted(range(len(calls)), key=lambda number: calls[number][0])
    for number in order:
        start_s, gap_s, cpu_s, memory = calls[number]
        until(start_s)
        host.start(str(number), gap_s=gap_s, cpu_s=cpu_s, memory_bytes=memory, now=start_s)
        host.check_invariants()
    until(float("inf"))
    assert host.running == 0
    return {str(number): (calls[number][0], ends[str(number)]) for number in order}


def took_s(host: ToolHost, calls: Sequence[Call]) -> list[float]:
    times = times_of(host, calls)
    return [times[str(n)][1] - times[str(n)][0] for n in range(len(calls))]


@pytest.mark.parametrize("cpu_s", [0.0, 1.0, 3.0, 5.5])
def test_a_call_alone_takes_its_time(cpu_s: float) -> None:
    [took] = took_s(ToolHost(cores=2, memory_bytes=100), [(7.0, 3.0, cpu_s, 100)])
    assert took == pytest.approx(3.0)


def test_more_threads_than_cores_take_longer_even_alone() -> None:
    assert took_s(ToolHost(cores=2), [(0.0, 3.0, 12.0, 0)]) == pytest.approx([6.0])


@pytest.mark.parametrize("count", [1, 2, 5])
def test_equal_calls_share_one_core(count: int) -> None:
    assert took_s(ToolHost(cores=1), [(0.0, 2.0, 2.0, 0)] * count) == pytest.approx([2.0 * count] * count)


def test_cores_are_shared_as_calls_come_and_go() -> None:
    # 0 to 2 the first alone; then half each: the second ends at 6 with 2 done, the first has 4 of 5 then.
    assert took_s(ToolHost(cores=1), [(0.0, 5.0, 5.0, 0), (2.0, 2.0, 2.0, 0)]) == pytest.approx([7.0, 4.0])


def test_waiting_takes_no_core() -> None:
    calls = [(0.0, 10.0, 1.0, 0), (0.0, 10.0, 1.0, 0), (5.0, 2.0, 2.0, 0)]
    assert took_s(ToolHost(cores=1), calls) == pytest.approx([11.0, 11.0, 2.0])


def test_the_youngest_is_killed_and_starts_again_until_there_is_room() -> None:
    host = ToolHost(memory_bytes=100)
    # The first holds 60 until 10. The second runs from 1, 4, 8 and 14 on, after pauses of 1, 2 and 4.
    calls = [(0.0, 10.0, 0.0, 60), (1.0, 2.0, 0.0, 50), (1.0, 2.0, 0.0, 40)]
    assert took_s(host, calls) == pytest.approx([10.0, 15.0, 2.0])
    assert (host.usage.over_memory, host.usage.oom_kills) == (1, 3)
    assert host.usage.delay_s == pytest.approx(13.0)
    assert (host.usage.ended, host.usage.peak_memory_bytes) == (3, 100)


def test_what_never_fits_fails_once() -> None:
    host = ToolHost(memory_bytes=100)
    assert took_s(host, [(0.0, 4.0, 0.0, 101)]) == pytest.approx([4.0])
    assert (host.usage.oom_kills, host.usage.ended) == (1, 1)


def test_a_call_of_no_time_computes_nothing() -> None:
    assert took_s(ToolHost(cores=2), [(0.0, 1e-300, 5.0, 0), (0.0, 3.0, 5.0, 0)]) == pytest.approx([0.0, 3.0])


def test_a_host_without_limits_delays_nobody() -> None:
    calls = [(0.1 * number, 1.0 + number, number * 0.9, 10**12) for number in range(20)]
    assert took_s(ToolHost(), calls) == pytest.approx([1.0 + number for number in range(20)])


@pytest.mark.parametrize(
    ("limits", "name"),
    [({"cores": 0.0}, "cores"), ({"cores": float("nan")}, "cores"), ({"memory_bytes": 0}, "memory")],
)
def test_limits_are_checked(limits: dict[str, float], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        ToolHost(**limits)  # type: ignore[arg-type]


amounts = st.integers(0, 40).map(lambda number: number / 4)
schedules = st.lists(st.tuples(amounts, amounts, amounts, st.integers(0, 120)), min_size=1, max_size=12)


@given(schedules, st.sampled_from([0.5, 1.0, 2.0, 3.5]), st.sampled_from([100, 10**9]))
def test_no_more_is_given_than_there_is(calls: list[Call], cores: float, memory: int) -> None:
    host = ToolHost(cores=cores, memory_bytes=memory)
    times = times_of(host, calls)
    work = {str(n): cpu_s if gap_s else 0.0 for n, (_, gap_s, cpu_s, _) in enumerate(calls)}
    for (begin_s, _), (_, end_s) in product(times.values(), times.values()):
        inside = [n for n, (start, end) in times.items() if start >= begin_s and end <= end_s]
        # Windows that hold nobody may be empty or end before they begin.
        if inside:
            assert sum(work[n] for n in inside) <= cores * (end_s - begin_s) + 1e-6
    for number, (start_s, end_s) in times.items():
        assert end_s - start_s >= calls[int(number)][1] - 1e-9, "nobody is faster than alone"
    assert host.usage.cpu_s >= sum(work.values()) - 1e-6
    assert (host.usage.oom_kills == 0) == (host.usage.over_memory == 0)
    assert host.usage.ended == len(calls)


@given(schedules)
def test_it_is_work_conserving(calls: list[Call]) -> None:
    """CPU-bound calls that start together end when all their work is done, not later."""
    together = [(0.0, max(gap_s, 0.25), max(gap_s, 0.25), 0) for _, gap_s, _, _ in calls]
    last_s = max(end_s for _, end_s in times_of(ToolHost(cores=1), together).values())
    assert last_s == pytest.approx(sum(gap_s for _, gap_s, _, _ in together))


@given(schedules)
def test_the_same_calls_end_at_the_same_times(calls: list[Call]) -> None:
    first, second = (times_of(ToolHost(cores=1.5, memory_bytes=150), calls) for _ in range(2))
    assert first == second


# In the simulator

MIB = 2**20


def simulated(
    *, programs: int = 8, agents: tuple[str, ...] = (), **limits: float | int
) -> tuple[list[Entry], HostUsage | None]:
    """Programs of three calls; the tools between them compute for 4 of their 5 s and hold 100 MiB."""
    tool = Turn(20, 5, 5.0, tool="bash", cpu_s=4.0, memory_bytes=100 * MIB, agents=agents)
    scripts = [
        Script(f"p{number}", 0.1 * number, (tool, tool, Turn(20, 5, 0.0))) for number in range(programs)
    ]
    helpers = {name: Script(name, 0.0, (Turn(20, 5, 0.0),)) for name in agents}
    engine = AnalyticEngine(PROFILES["llama-3.1-8b-h100"], 100_000)
    conditions = Conditions(check=True, **limits)  # type: ignore[arg-type]
    simulation = Simulation(Core(make_policy("fcfs-lru")), [engine], scripts, conditions, agents=helpers)
    entries = simulation.run()
    return entries, simulation.gaps.usage


def calls(entries: list[Entry]) -> list[tuple[ev.AnyEvent, float]]:
    kinds = (ev.CallArrived, ev.CallStarted, ev.CallFinished)
    return [(entry.event, entry.now) for entry in entries if isinstance(entry.event, kinds)]


def last_s(entries: list[Entry]) -> float:
    closed = [entry.now for entry in entries if isinstance(entry.event, ev.ProgramClosed)]
    assert len(
        {entry.event.program for entry in entries if isinstance(entry.event, ev.ProgramOpened)}
    ) == len(closed)
    return closed[-1]


def test_a_host_with_room_for_all_changes_nothing() -> None:
    free, nothing = simulated()
    roomy, usage = simulated(tool_cores=8, tool_memory_bytes=1000 * MIB)
    assert nothing is None
    assert [call for call, _ in calls(roomy)] == [call for call, _ in calls(free)]
    assert [now for _, now in calls(roomy)] == pytest.approx([now for _, now in calls(free)])
    assert usage is not None
    assert (usage.ended, usage.oom_kills) == (16, 0)
    assert usage.cpu_s == pytest.approx(64)
    assert usage.delay_s == pytest.approx(0, abs=1e-9)
    assert usage.peak_memory_bytes == 800 * MIB


def test_programs_wait_for_cores() -> None:
    free, (crowded, usage) = simulated()[0], simulated(tool_cores=1)
    # 16 tool calls of 4 s on one core cannot end before 64 s.
    assert last_s(free) < 15
    assert 64 < last_s(crowded) < 70
    assert usage is not None
    assert usage.delay_s > 100


def test_programs_are_set_back_by_memory() -> None:
    crowded, usage = simulated(tool_memory_bytes=250 * MIB)
    assert usage is not None
    assert usage.oom_kills >= usage.over_memory > 0
    assert usage.peak_memory_bytes == 200 * MIB
    # What was computed by killed calls comes on top.
    assert usage.cpu_s == pytest.approx(4.0 * (16 + usage.oom_kills))
    assert last_s(crowded) > 2 * last_s(simulated()[0])


def test_a_crowded_run_is_the_same_every_time() -> None:
    assert simulated(tool_cores=1.5, tool_memory_bytes=350 * MIB) == simulated(
        tool_cores=1.5, tool_memory_bytes=350 * MIB
    )


def test_a_gap_lasts_until_both_the_tool_and_its_agents_have_ended() -> None:
    entries, _ = simulated(programs=1, agents=("child",), tool_cores=0.5)
    arrived = [
        entry.now
        for entry in entries
        if isinstance(entry.event, ev.CallArrived) and entry.event.program == "p0"
    ]
    assert [later - earlier for earlier, later in pairwise(arrived)] == pytest.approx([9.0, 9.0], abs=0.5)
