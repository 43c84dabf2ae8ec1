"""Event logs to report on: a small machine that runs seeded programs under one of two rules."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from agentsched.core import events as ev
from agentsched.core.decisions import Admit
from agentsched.core.log import Entry

MakeLog = Callable[..., list[Entry]]
CAPACITY, PREFILL_PER_S, DECODE_PER_S, BLOCK = 12_000, 1_500.0, 60.0, 16
COMMANDS = (("pytest", 3.0, 180), ("grep", 0.1, 8), ("sed", 0.05, 5), ("python", 1.2, 60), ("ls", 0.03, 3))


@dataclass
class Agent:
    name: str
    calls: int
    rng: random.Random
    context: int
    done: int = 0
    peak: int = 0
    answers: tuple[str, ...] = ()


@dataclass
class Machine:
    """One call at a time, KV evicted least recently used first; ``seats`` programs are let in."""

    seats: int
    entries: list[Entry] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)  # least recently used first
    seated: list[str] = field(default_factory=list)
    queue: list[tuple[float, Agent]] = field(default_factory=list)
    waiting: list[tuple[float, Agent]] = field(default_factory=list)
    free_at: float = 0.0

    def say(self, now: float, event: ev.AnyEvent) -> None:
        self.entries.append(Entry(now=now, event=event))

    def admit(self, now: float) -> None:
        while len(self.seated) < self.seats and self.waiting:
            _, agent = self.waiting.pop(0)
            self.seated.append(agent.name)
            admit = Admit(cause=1, epoch=1, seq=len(self.entries), program=agent.name, engine="synthetic")
            self.entries.append(Entry(now=now, decision=admit))
            self.queue.append((now, agent))

    def arrive(self, now: float, agent: Agent) -> None:
        call = f"{agent.name}-c{agent.done}"
        self.say(
            now,
            ev.CallArrived(
                call=call,
                program=agent.name,
                prompt_tokens=agent.context,
                max_output_tokens=200,
                answers=agent.answers,
            ),
        )
        (self.queue if agent.name in self.seated else self.waiting).append((now, agent))
        self.admit(now)

    def compute(self, now: float, agent: Agent) -> float:
        """Run the agent's call from ``now``; its end."""
        call, rng = f"{agent.name}-c{agent.done}", agent.rng
        cached = min(self.held.pop(agent.name, 0), agent.context)
        output = rng.randint(20, 90)
        self.say(now, ev.CallStarted(call=call, cached_tokens=cached))
        first = now + 0.05 + (agent.context - cached) / PREFILL_PER_S
        end = first + output / DECODE_PER_S
        self.say(first, ev.FirstToken(call=call))
        again, agent.peak = max(0, agent.peak - cached), agent.context + output
        refs = tuple(
            ev.ToolCallRef(tool_call=f"{call}-t{i}", tool="bash") for i in range(rng.choice((1, 1, 1, 2)))
        )
        agent.done += 1
        last = agent.done == agent.calls
        self.say(
            end,
            ev.CallFinished(
                call=call,
                prompt_tokens=agent.context,
                cached_tokens=cached,
                output_tokens=output,
                recomputed_tokens=again,
                tool_calls=() if last else refs,
            ),
        )
        agent.answers = tuple(ref.tool_call for ref in refs)
        self.held[agent.name] = agent.peak
        self.report(end, agent.peak - cached, again)
        agent.context = agent.peak + rng.randint(80, 500)
        return end

    def report(self, now: float, prefilled: int, again: int) -> None:
        changed = dict(list(self.held.items())[-1:])
        while sum(self.held.values()) > CAPACITY:
            oldest = next(iter(self.held))
            left = max(0, CAPACITY - (sum(self.held.values()) - self.held[oldest]))
            self.held[oldest] = changed[oldest] = left // BLOCK * BLOCK
            if not self.held[oldest]:
                del self.held[oldest]
        free = CAPACITY - sum(self.held.values())
        self.say(
            now,
            ev.StepReport(
                engine="synthetic",
                free_tokens=free,
                evictable_tokens=CAPACITY - free,
                held=tuple(ev.Held(program=name, device_tokens=tokens) for name, tokens in changed.items()),
                prefilled_tokens=prefilled,
                recomputed_tokens=again,
            ),
        )

    def tools(self, now: float, agent: Agent) -> float:
        """Run the tool calls of the call that just ended, side by side; when the agent is back."""
        back = now
        for tool_call in agent.answers:
            command, seconds, memory_mb = agent.rng.choice(COMMANDS)
            wall = seconds * agent.rng.lognormvariate(0.0, 0.5)
            start = now + 0.02
            self.say(
                start, ev.ToolStarted(tool_call=tool_call, program=agent.name, tool="bash", command=command)
            )
            self.say(
                start + wall,
                ev.ToolFinished(
                    tool_call=tool_call,
                    program=agent.name,
                    exit_status=int(agent.rng.random() < 0.15),
                    wall_s=wall,
                    cpu_s=wall * agent.rng.uniform(0.3, 0.98),
                    peak_memory_bytes=int(memory_mb * 1e6 * agent.rng.uniform(0.8, 1.3)),
                ),
            )
            back = max(back, start + wall)
        return back + 0.05


def make(*, seats: int, seed: int = 1, programs: int = 8, prefix: str = "task") -> list[Entry]:
    """A log of ``programs`` agents that all start within 2 s, ``seats`` of them let in at once."""
    rng = random.Random(seed)
    machine = Machine(seats)
    machine.say(100.0, ev.EngineAttached(engine="synthetic", capacity_tokens=CAPACITY, block_tokens=BLOCK))
    coming: list[tuple[float, int, Agent]] = []
    for number in range(programs):
        own = random.Random(rng.random())
        agent = Agent(f"{prefix}-{number}", own.randint(6, 12), own, own.randint(900, 1600))
        heapq.heappush(coming, (100.0 + rng.uniform(0, 2), number, agent))
    now, number = 100.0, programs
    while coming or machine.queue:
        if coming and (not machine.queue or coming[0][0] <= max(now, machine.queue[0][0])):
            at, _, agent = heapq.heappop(coming)
            if agent.done == 0:
                machine.say(at, ev.ProgramOpened(program=agent.name))
            machine.arrive(at, agent)
            continue
        since, agent = machine.queue.pop(0)
        now = machine.compute(max(now, since), agent)
        if agent.done == agent.calls:
            machine.say(now, ev.ProgramClosed(program=agent.name))
            machine.seated.remove(agent.name)
            machine.admit(now)
        else:
            number += 1
            heapq.heappush(coming, (machine.tools(now, agent), number, agent))
    return sorted(machine.entries, key=lambda entry: entry.now)


@pytest.fixture(scope="session")
def make_log() -> MakeLog:
    return make
