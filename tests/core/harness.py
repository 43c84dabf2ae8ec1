"""A core with a make-believe host: every step is one legal event, chosen by number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from agentsched.core import Core, make_policy
from agentsched.core import events as ev
from agentsched.core.decisions import AnyDecision
from agentsched.core.log import Entry
from agentsched.core.state import Call, Phase

CAPACITY = 10_000


@dataclass
class Harness:
    """Feeds legal events to a core and keeps all that goes in and out."""

    policy: str
    epoch: int = 1
    capacity_tokens: int = CAPACITY
    now: float = 0.0
    entries: list[Entry] = field(default_factory=list)
    opened: int = 0
    calls: int = 0
    max_calls_a_program: int = 6
    deadline_s: float | None = None

    def __post_init__(self) -> None:
        self.core = Core(make_policy(self.policy), epoch=self.epoch)
        self.post(ev.EngineAttached(engine="e0", capacity_tokens=self.capacity_tokens, block_tokens=16))

    def post(self, event: ev.AnyEvent, after_s: float = 0.0) -> list[AnyDecision]:
        self.now += after_s
        decided = self.core.handle(self.now, event)
        self.entries.append(Entry(now=self.now, event=event))
        self.entries.extend(Entry(now=self.now, decision=decision) for decision in decided)
        self.core.check_invariants()
        return decided

    def open(self) -> str:
        self.opened += 1
        name = f"p{self.opened}"
        self.post(ev.ProgramOpened(program=name, deadline_s=self.deadline_s))
        return name

    def arrive(self, program: str, prompt_tokens: int = 1_000) -> list[AnyDecision]:
        self.calls += 1
        return self.post(
            ev.CallArrived(
                call=f"c{self.calls}", program=program, prompt_tokens=prompt_tokens, max_output_tokens=50
            )
        )

    def advance(self, call: Call, output_tokens: int = 50) -> list[AnyDecision]:
        """The next event in a call's life."""
        match call.phase:
            case Phase.SENT:
                return self.post(ev.CallStarted(call=call.name, cached_tokens=0))
            case Phase.RUNNING:
                return self.post(ev.FirstToken(call=call.name))
            case Phase.DECODING:
                ref = ev.ToolCallRef(tool_call=f"t-{call.name}", tool="bash")
                return self.post(
                    ev.CallFinished(
                        call=call.name,
                        prompt_tokens=call.prompt_tokens,
                        cached_tokens=0,
                        output_tokens=output_tokens,
                        tool_calls=(ref,),
                    )
                )
            case Phase.WAITING:
                raise AssertionError("a waiting call cannot advance: the gateway holds it")

    def run_call(self, program: str) -> None:
        """Bring the program's only call to its end."""
        (call,) = self.core.state.programs[program].calls.values()
        while call.name in self.core.state.calls:
            self.advance(call)

    def choices(self) -> list[Callable[[], object]]:
        """Every legal next step, in a fixed order."""
        state = self.core.state
        steps: list[Callable[[], object]] = [lambda: self.arrive(self.open())]
        for program in list(state.programs.values()):
            if program.in_gap:
                grown = program.context_tokens + 300
                if program.calls_done < self.max_calls_a_program and grown < CAPACITY:
                    steps.append(lambda p=program, n=grown: self.arrive(p.name, n))  # type: ignore[misc]
                steps.append(lambda p=program: self.post(ev.ProgramClosed(program=p.name)))  # type: ignore[misc]
        for call in list(state.calls.values()):
            if call.phase is not Phase.WAITING:
                steps.append(lambda c=call: self.advance(c))  # type: ignore[misc]
            steps.append(
                lambda c=call: self.post(ev.CallAborted(call=c.name, reason="client left"))  # type: ignore[misc]
            )
        return steps

    def drain(self) -> int:
        """Let every program go on to its end, with nobody new; the number of events that took."""
        events = 0
        state = self.core.state
        while state.programs:
            events += 1
            assert events < 10_000, "programs do not come to their end"
            movable = [c for c in state.calls.values() if c.phase is not Phase.WAITING]
            idle = [p for p in state.programs.values() if p.in_gap]
            if movable:
                self.advance(movable[0])
            elif idle:
                self.post(ev.ProgramClosed(program=idle[0].name))
            else:
                wakeup = self.core.next_wakeup()
                assert wakeup is not None, "all wait, and nothing will ever happen"
                self.post(ev.Woken(), after_s=max(0.0, wakeup - self.now))
        return events
