"""Two resources, KV and memory of the tools' hosts, in one packing: nobody waits for ever."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core import POLICY_NAMES, Core, IllegalEvent, make_policy
from agentsched.core import events as ev
from agentsched.core import log as event_log
from agentsched.core.decisions import Admit, AnyDecision, Pause
from agentsched.core.hosts import HostLedger, Need
from agentsched.core.log import Entry
from agentsched.core.policies.host_gate import PATIENCE_S, HostGate
from agentsched.core.policies.seats import Seats
from agentsched.core.state import Phase
from agentsched.graphs.memory import PRIOR_BYTES
from tests.core.cut_logs import check_each_file_replays

CAPACITY = 10_000
GB = 10**9


@dataclass
class Task:
    """A program to be run: prompt tokens and tool memory of each turn; the last turn has no tool.

    ``hangs``: its first tool never ends.
    """

    name: str
    turns: list[tuple[int, int]]
    host: str = ""
    hangs: bool = False
    turn: int = 0
    tool: str | None = None
    kills: int = 0


@dataclass
class World:
    """Programs with tools on hosts, and engines; every step is one legal event."""

    policy: str = "agentsched"
    capacity: int = CAPACITY
    now: float = 0.0
    tasks: dict[str, Task] = field(default_factory=dict)
    entries: list[Entry] = field(default_factory=list)
    begun: int = 0

    def __post_init__(self) -> None:
        self.core = Core(make_policy(self.policy))
        self.engine("e0")

    def post(self, event: ev.AnyEvent) -> list[AnyDecision]:
        decided = self.core.handle(self.now, event)
        self.entries.append(Entry(now=self.now, event=event))
        self.entries.extend(Entry(now=self.now, decision=decision) for decision in decided)
        self.core.check_invariants()
        return decided

    def engine(self, name: str) -> None:
        self.post(ev.EngineAttached(engine=name, capacity_tokens=self.capacity, block_tokens=16))

    def begin(
        self, host: str, turns: list[tuple[int, int]], *, hangs: bool = False, tenant: str = "t"
    ) -> str:
        self.begun += 1
        name = f"p{self.begun}"
        self.tasks[name] = Task(name, turns, host, hangs)
        self.post(ev.ProgramOpened(program=name, tenant=tenant, host=host))
        self._call(self.tasks[name])
        return name

    def _call(self, task: Task) -> None:
        tokens = task.turns[task.turn][0]
        name = f"{task.name}/{task.turn}"
        self.post(ev.CallArrived(call=name, program=task.name, prompt_tokens=tokens, max_output_tokens=9))

    def seated(self) -> set[str]:
        return {p.name for p in self.core.state.programs.values() if p.seat is not None}

    def movable(self) -> list[str]:
        """Who can go on: with a call in an engine, or a tool that may end."""
        found = []
        for task in self.tasks.values():
            program = self.core.state.programs[task.name]
            sent = any(call.phase is not Phase.WAITING for call in program.calls.values())
            if sent or (task.tool is not None and not (task.hangs and task.turn == 0)):
                found.append(task.name)
        return found

    def move(self, name: str, *, killed: bool = False) -> None:
        """The program's next step."""
        task = self.tasks[name]
        if task.tool is not None:
            self._end_tool(task, killed)
            return
        (call,) = self.core.state.programs[name].calls.values()
        if call.phase is Phase.SENT:
            self.post(ev.CallStarted(call=call.name, cached_tokens=0))
        elif call.phase is Phase.RUNNING:
            self.post(ev.FirstToken(call=call.name))
        else:
            self._end_call(task, call.name)

    def run_call(self, name: str) -> None:
        """Until its tool runs, or it has ended."""
        while name in self.tasks and self.tasks[name].tool is None:
            self.move(name)

    def _end_call(self, task: Task, call: str) -> None:
        tokens, _ = task.turns[task.turn]
        last = task.turn == len(task.turns) - 1
        refs = () if last else (ev.ToolCallRef(tool_call=f"{call}/tool", tool="bash"),)
        self.post(
            ev.CallFinished(
                call=call, prompt_tokens=tokens, cached_tokens=0, output_tokens=9, tool_calls=refs
            )
        )
        if last:
            del self.tasks[task.name]
            self.post(ev.ProgramClosed(program=task.name))
            return
        task.tool = f"{call}/tool"
        self.post(ev.ToolStarted(tool_call=task.tool, program=task.name, tool="bash"))

    def _end_tool(self, task: Task, killed: bool) -> None:
        assert task.tool is not None
        memory = task.turns[task.turn][1]
        self.post(
            ev.ToolFinished(
                tool_call=task.tool,
                program=task.name,
                exit_status=ev.KILLED if killed else 0,
                wall_s=1.0,
                cpu_s=0.0,
                peak_memory_bytes=memory // 2 if killed else memory,
            )
        )
        if killed and task.kills < 3:
            task.kills += 1
            self.post(ev.ToolStarted(tool_call=task.tool, program=task.name, tool="bash"))
            return
        task.tool, task.turn, task.kills = None, task.turn + 1, 0
        self._call(task)

    def drain(self, *, most: int = 20_000) -> None:
        """Nobody new comes, tools end and are not killed: all but who hangs end."""
        if not self.core.state.engines:
            self.engine("last")
        for _ in range(most):
            movable = self.movable()
            if movable:
                self.move(movable[0])
                continue
            if all(task.hangs and task.turn == 0 and task.tool for task in self.tasks.values()):
                return
            wakeup_s = self.core.next_wakeup()
            assert wakeup_s is not None, "programs wait, and nothing will ever happen"
            self.now = max(self.now, wakeup_s)
            self.post(ev.Woken())
        raise AssertionError(f"after {most} events still open: {list(self.tasks)}")


def gate(world: World) -> HostGate:
    admission = world.core.policy.admission
    assert isinstance(admission, Seats)
    return admission.hosts


turns = st.lists(
    st.tuples(st.integers(1, CAPACITY - 100), st.sampled_from([0, GB // 4, GB, 3 * GB, 50 * GB])),
    min_size=1,
    max_size=4,
).map(lambda each: sorted(each, key=lambda turn: turn[0]))
hosts = st.sampled_from(["", "a", "b", "nowhere"])
steps = st.one_of(
    st.tuples(st.just("begin"), hosts, turns, st.booleans()),
    st.tuples(st.just("move"), st.integers(0, 99), st.booleans()),
    st.tuples(st.just("wait"), st.floats(0, 700)),
    st.tuples(st.just("size"), st.sampled_from(["a", "b"]), st.sampled_from([1, GB, 4 * GB])),
    st.tuples(st.just("lose host"), st.sampled_from(["a", "b"])),
    st.tuples(st.just("engine"), st.sampled_from(["e0", "e1"])),
)


def play(world: World, script: list[tuple[object, ...]]) -> None:
    state = world.core.state
    for step in script:
        match step:
            case "begin", str(host), list(each), bool(hangs):
                world.begin(host, each, hangs=hangs, tenant=f"t{len(each)}")
            case "move", int(choice), bool(killed) if movable := world.movable():
                world.move(movable[choice % len(movable)], killed=killed)
            case "wait", float(wait_s):
                world.now += wait_s
                world.post(ev.Woken())
            case "size", str(host), int(memory):
                world.post(ev.HostAttached(host=host, memory_bytes=memory))
            case "lose host", str(host) if host in state.hosts:
                world.post(ev.HostLost(host=host))
            case "engine", str(name):
                world.post(ev.EngineLost(engine=name)) if name in state.engines else world.engine(name)
            case _:
                pass


@given(st.lists(steps, max_size=60))
@settings(max_examples=150, deadline=None)
def test_no_deadlock_whatever_programs_need_and_whatever_is_lost(script: list[tuple[object, ...]]) -> None:
    """Hosts of any size, tools larger than their host, tools that hang, engines and hosts that come and
    go: once the storm is over everybody ends but who hangs."""
    world = World()
    play(world, script)
    world.drain()


@given(st.lists(turns, min_size=2, max_size=12), st.sampled_from([1, GB // 2, 2 * GB]))
@settings(max_examples=60, deadline=None)
def test_a_crowd_that_comes_at_once_ends(crowd: list[list[tuple[int, int]]], memory: int) -> None:
    world = World()
    world.post(ev.HostAttached(host="a", memory_bytes=memory))
    for each in crowd:
        world.begin("a", each)
    world.drain()
    assert not world.tasks


@pytest.mark.parametrize("policy", POLICY_NAMES)
@given(script=st.lists(steps, max_size=25))
@settings(max_examples=15, deadline=None)
def test_every_policy_bears_hosts_and_its_log_replays(policy: str, script: list[tuple[object, ...]]) -> None:
    world = World(policy)
    play(world, script)
    header = event_log.Header(agentsched="test", policy=policy, epoch=1, started_unix_s=0.0)
    lines = [event_log.encode(header), *(event_log.encode(entry) for entry in world.entries)]
    assert all(before == after for before, after in event_log.replay(lines))
    check_each_file_replays(policy, world.entries, every=7)


@given(
    st.lists(
        st.tuples(
            st.integers(0, 4),
            st.integers(0, 9),
            st.integers(0, 9),
            st.sampled_from(["seat", "pause", "drop"]),
        ),
        max_size=40,
    )
)
def test_the_ledger_counts_exactly_who_is_there(changes: list[tuple[int, int, int, str]]) -> None:
    book, needs = HostLedger(20), dict[str, Need]()
    for who, running, more, what in changes:
        name, need = f"p{who}", Need(running, running + more, what == "seat")
        if what == "drop":
            book.drop(name)
            needs.pop(name, None)
        else:
            book.put(name, need, (0.0, who) if running == 9 else None)
            needs[name] = need
        book.check_invariants()
        assert book.need_bytes == sum(n.seated_bytes if n.seated else n.running_bytes for n in needs.values())
        assert set(book.seated) == {name for name, need in needs.items() if need.seated}


def crowded() -> World:
    """A host that one program fills, as predicted at first."""
    world = World(capacity=10**7)
    world.post(ev.HostAttached(host="a", memory_bytes=PRIOR_BYTES))
    for ledger in gate(world)._hosts.values():
        ledger.overcommit.factor = 1.0
    return world


def test_who_waits_for_one_host_holds_back_who_stands_behind_for_it_and_nobody_else() -> None:
    world = crowded()
    first, second, third = (world.begin("a", [(100, GB), (200, 0)]) for _ in range(3))
    elsewhere, free = world.begin("b", [(100, 0)]), world.begin("", [(100, 0)])
    assert world.seated() == {first, elsewhere, free}
    for _ in range(3):
        world.run_call(first)
        if first in world.tasks:
            world.move(first)
    assert second in world.seated()
    assert third not in world.seated()


def test_the_tool_of_a_paused_program_holds_its_memory_until_it_ends() -> None:
    world = crowded()
    world.engine("e1")
    first = world.begin("a", [(100, GB), (200, 0)])
    world.run_call(first)
    seat = world.core.state.programs[first].seat
    assert seat is not None
    world.post(ev.EngineLost(engine=seat))  # takes the seat and leaves the tool
    second = world.begin("a", [(100, 0), (200, 0)])
    assert world.seated() == set()
    world.move(first)
    assert world.seated() == {second}, "the host is free once the tool has ended"
    world.drain()
    assert not world.tasks


def test_a_tool_that_hangs_holds_up_its_host_for_ten_minutes_and_no_longer() -> None:
    world = crowded()
    hung = world.begin("a", [(100, GB), (200, 0)], hangs=True)
    world.run_call(hung)
    began_s = world.now
    second = world.begin("a", [(100, 0)])
    assert second not in world.seated()
    world.drain()
    assert world.seated() | set(world.tasks) == {hung}
    assert PATIENCE_S <= world.now - began_s <= PATIENCE_S + 10


def test_a_program_that_needs_more_than_its_host_runs_alone() -> None:
    world = crowded()
    world.post(ev.HostAttached(host="a", memory_bytes=1))
    first, second = world.begin("a", [(100, 9)]), world.begin("a", [(100, 9)])
    assert world.seated() == {first}
    world.run_call(first)
    assert world.seated() == {second}


def test_a_host_that_grows_or_goes_lets_programs_in() -> None:
    for change in (ev.HostAttached(host="a", memory_bytes=9 * GB), ev.HostLost(host="a")):
        world = crowded()
        names = {world.begin("a", [(100, 0), (200, 0)]) for _ in range(3)}
        assert len(world.seated()) == 1
        admitted = {d.program for d in world.post(change) if isinstance(d, Admit)}
        assert len(admitted) == 2
        assert world.seated() == names


def test_who_stands_behind_makes_room_for_a_tool_that_was_killed() -> None:
    world = World(capacity=10**7)
    world.post(ev.HostAttached(host="a", memory_bytes=4 * PRIOR_BYTES))
    first, second = world.begin("a", [(100, 9 * GB), (200, 0)]), world.begin("a", [(100, 0), (200, 0)])
    world.run_call(first)
    world.run_call(second)
    world.move(first, killed=True)
    world.move(second)
    paused = [entry.decision.program for entry in world.entries if isinstance(entry.decision, Pause)]
    assert paused == [second]
    assert world.seated() == {first}, "what the killed tool needs is kept free"
    world.drain()
    assert not world.tasks


def test_host_events_are_checked() -> None:
    with pytest.raises(ValueError, match=r"HostAttached\.memory_bytes"):
        ev.HostAttached(host="a", memory_bytes=0)
    with pytest.raises(ValueError, match=r"HostAttached\.host"):
        ev.HostAttached(host="", memory_bytes=1)
    with pytest.raises(IllegalEvent, match="not attached"):
        World().post(ev.HostLost(host="a"))
    assert ev.ProgramOpened(program="p").host == ""


def test_memory_that_an_agent_states_is_needed_and_what_is_seen_counts_for_more() -> None:
    world = World()
    world.post(ev.HostAttached(host="h", memory_bytes=8 * GB))
    world.post(ev.ProgramOpened(program="p", host="h"))
    started = ev.ToolStarted(
        tool_call="t", program="p", tool="bash", command="make", expected_memory_bytes=3 * GB
    )
    world.post(started)
    state = world.core.state
    program = state.programs["p"]
    assert Need.of(state, program, killed=False).running_bytes == 3 * GB
    world.post(ev.ToolProgressed(tool_call="t", program="p", memory_bytes=5 * GB))
    assert Need.of(state, program, killed=False).running_bytes == 5 * GB
