"""Simulated hosts and the core that minds them: who runs where, what is told, and that everybody ends."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core import POLICY_NAMES, Core, make_policy
from agentsched.core import events as ev
from agentsched.core.log import Entry
from agentsched.engines.analytic import AnalyticEngine
from agentsched.engines.cost import PROFILES
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.scripts import Script, Turn
from agentsched.workloads.simulator import Simulation

MB = 10**6


def run(
    scripts: list[Script], policy: str = "agentsched", *, kv_tokens: int = 20_000, **limits: float | int
) -> tuple[list[Entry], Simulation]:
    engines = [AnalyticEngine(PROFILES["llama-3.1-8b-h100"], kv_tokens, name=f"e{n}") for n in range(2)]
    conditions = Conditions(check=True, **limits)  # type: ignore[arg-type]
    simulation = Simulation(Core(make_policy(policy)), engines, scripts, conditions)
    return simulation.run(), simulation


def crowd(programs: int = 30, *, memory: int = 400 * MB, host: str = "") -> list[Script]:
    tool = Turn(50, 20, 8.0, tool="bash", command="make", memory_bytes=memory)
    return [
        Script(f"p{n}", 0.01 * n, (tool, tool, tool, Turn(20, 5, 0.0)), host=host) for n in range(programs)
    ]


turns = st.builds(
    Turn,
    st.integers(1, 3_000),
    st.integers(1, 50),
    st.integers(0, 240).map(lambda quarters: quarters / 4),
    tool=st.sampled_from(["bash", "read", ""]),
    command=st.sampled_from(["", "pytest"]),
    cpu_s=st.sampled_from([0.0, 5.0]),
    memory_bytes=st.sampled_from([0, 50 * MB, 400 * MB, 900 * MB, 3_000 * MB]),
)
scripts = st.lists(
    st.tuples(st.floats(0, 20), st.lists(turns, min_size=1, max_size=5)), min_size=1, max_size=12
).map(lambda each: [Script(f"p{n}", at_s, tuple(turns)) for n, (at_s, turns) in enumerate(each)])


@given(scripts, st.sampled_from([1, 3]), st.sampled_from([1, 500 * MB, 1_000 * MB]))
@settings(max_examples=50, deadline=None)
def test_everybody_ends_whatever_tools_need(each: list[Script], hosts: int, memory: int) -> None:
    entries, simulation = run(each, tool_hosts=hosts, tool_memory_bytes=memory, tool_cores=2)
    closed = {entry.event.program for entry in entries if isinstance(entry.event, ev.ProgramClosed)}
    assert closed == {script.program for script in each}
    assert all(host.running == 0 for host in simulation.gaps.hosts.values())


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_policy_bears_hosts(policy: str) -> None:
    entries, _ = run(crowd(), policy, tool_hosts=2, tool_memory_bytes=1_000 * MB)
    assert sum(isinstance(entry.event, ev.ProgramClosed) for entry in entries) == 30


def test_who_minds_the_host_has_fewer_tools_killed_and_ends_sooner() -> None:
    plain, blind = run(crowd(), "fcfs-lru", kv_tokens=10**6, tool_memory_bytes=1_000 * MB)
    minded, ours = run(crowd(), kv_tokens=10**6, tool_memory_bytes=1_000 * MB)
    assert blind.gaps.usage is not None
    assert ours.gaps.usage is not None
    assert 2 * ours.gaps.usage.oom_kills < blind.gaps.usage.oom_kills
    assert minded[-1].now < plain[-1].now


def test_with_room_for_all_hosts_change_nothing() -> None:
    free, _ = run(crowd())
    roomy, _ = run(crowd(), tool_memory_bytes=10**12)
    ends = [
        [entry.now for entry in entries if isinstance(entry.event, ev.ProgramClosed)]
        for entries in (free, roomy)
    ]
    assert ends[0] == pytest.approx(ends[1])


def test_programs_are_placed_in_turn_or_as_their_scripts_say() -> None:
    def hosts_of(entries: list[Entry]) -> list[str]:
        return [entry.event.host for entry in entries if isinstance(entry.event, ev.ProgramOpened)]

    spread, _ = run(crowd(5), tool_hosts=2, tool_memory_bytes=10**12)
    assert hosts_of(spread) == ["h0", "h1", "h0", "h1", "h0"]
    told, _ = run(crowd(3, host="h1"), tool_hosts=2, tool_memory_bytes=10**12)
    assert hosts_of(told) == ["h1"] * 3
    free, _ = run(crowd(2, host="h1"))
    assert hosts_of(free) == ["", ""]
    with pytest.raises(ValueError, match="there is no host 'h7'"):
        run(crowd(1, host="h7"), tool_memory_bytes=1)


def test_the_core_is_told_what_tools_use_and_that_they_were_killed() -> None:
    entries, simulation = run(crowd(6), "fcfs-lru", kv_tokens=10**6, tool_memory_bytes=1_000 * MB)
    finished = [entry.event for entry in entries if isinstance(entry.event, ev.ToolFinished)]
    started = [entry.event for entry in entries if isinstance(entry.event, ev.ToolStarted)]
    killed = [event for event in finished if event.exit_status == ev.KILLED]
    assert len(started) == len(finished)
    assert simulation.gaps.usage is not None
    assert len(killed) == simulation.gaps.usage.oom_kills > 0
    assert {event.peak_memory_bytes for event in finished if event not in killed} == {400 * MB}
    assert all(event.peak_memory_bytes < 400 * MB for event in killed)
