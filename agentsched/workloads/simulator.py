"""The second host of the core: virtual time, engines stepped by hand, thousands of calls in seconds.

The loop pops the earliest thing that happens (a program arrives, a gap ends, an engine's step ends,
the core wants to be woken), hands it to the unchanged core and carries its decisions out. Nothing in
it decides anything. With one seed it is deterministic.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import assert_never

from agentsched.core import events as ev
from agentsched.core.core import Core
from agentsched.core.decisions import Admit, AnyDecision, Migrate, Pause, Reject
from agentsched.core.log import Entry
from agentsched.engines.contract import EngineOutput, GenerateRequest, Sampling, StepEngine, TokensOut

REPORT_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Turn:
    """One call and the gap after it: tokens that the prompt gains, tokens answered, seconds away."""

    new_tokens: int
    output_tokens: int
    gap_s: float
    tool: str = "bash"


@dataclass(frozen=True, slots=True)
class Script:
    """What one program does, and when it first arrives (seconds from the start)."""

    program: str
    arrives_s: float
    turns: tuple[Turn, ...]


@dataclass(slots=True)
class _Running:
    script: Script
    random: Random
    turn: int = 0
    context: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    seat: str | None = None
    waiting: GenerateRequest | None = None
    tool_calls: tuple[str, ...] = ()


class Simulation:
    """One run. ``concurrency`` caps how many programs are alive at once (closed loop): the next one
    arrives when one ends; without it programs arrive at their own times (open loop)."""

    def __init__(
        self,
        core: Core,
        engines: Mapping[str, StepEngine],
        scripts: Iterable[Script],
        *,
        seed: int = 0,
        concurrency: int | None = None,
        check: bool = False,
    ) -> None:
        self.entries: list[Entry] = []
        self.now = 0.0
        self._core, self._engines, self._seed, self._check = core, dict(engines), seed, check
        self._programs: dict[str, _Running] = {}
        self._owner: dict[str, str] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._tie = 0
        self._stepping = dict.fromkeys(self._engines, False)
        self._reported_s = dict.fromkeys(self._engines, 0.0)
        self._wakeup_s: float | None = None
        ordered = sorted(scripts, key=lambda script: (script.arrives_s, script.program))
        at_once = ordered if concurrency is None else ordered[:concurrency]
        self._later = ordered[len(at_once) :]
        for script in at_once:
            self._at(script.arrives_s, lambda script=script: self._begin(script))  # type: ignore[misc]

    def run(self, *, until_s: float = float("inf")) -> list[Entry]:
        """Run until all programs have ended, or virtual time is up; the log entries of the run."""
        for name, engine in self._engines.items():
            c = engine.capabilities
            self._post(
                ev.EngineAttached(
                    engine=name,
                    capacity_tokens=c.capacity_tokens,
                    block_tokens=c.block_tokens,
                    host_capacity_tokens=c.host_capacity_tokens,
                    max_running=c.max_running,
                )
            )
            self._post(engine.report(self.now, snapshot=True))
        while self._due and self._due[0][0] <= until_s:
            self.now, _, action = heapq.heappop(self._due)
            action()
        return self.entries

    def _at(self, when_s: float, action: Callable[[], None]) -> None:
        self._tie += 1
        heapq.heappush(self._due, (max(when_s, self.now), self._tie, action))

    def _post(self, event: ev.AnyEvent) -> None:
        decided = self._core.handle(self.now, event)
        self.entries.append(Entry(now=self.now, event=event))
        self.entries.extend(Entry(now=self.now, decision=decision) for decision in decided)
        for decision in decided:
            self._carry_out(decision)
        if self._check:
            self._core.check_invariants()
            for engine in self._engines.values():
                engine.check_invariants()
        wakeup_s = self._core.next_wakeup()
        if wakeup_s is not None and wakeup_s != self._wakeup_s:
            self._wakeup_s = wakeup_s
            self._at(wakeup_s, self._wake)

    def _wake(self) -> None:
        if self._wakeup_s is not None and self.now >= self._wakeup_s:
            self._wakeup_s = None
            self._post(ev.Woken())

    def _carry_out(self, decision: AnyDecision) -> None:
        match decision:
            case Admit() | Migrate():
                program = self._programs[decision.program]
                program.seat = decision.engine
                self._send(program)
            case Pause():
                self._programs[decision.program].seat = None
            case Reject():
                program = self._programs[decision.program]
                self._at(self.now, lambda: self._post(ev.CallAborted(call=decision.call, reason="rejected")))
                self._at(self.now + decision.retry_after_s, lambda: self._call(program))
            case _:
                self._engines[decision.engine].order([decision], self.now)

    def _begin(self, script: Script) -> None:
        program = _Running(script, Random(f"{self._seed}/{script.program}"))
        self._programs[script.program] = program
        self._post(ev.ProgramOpened(program=script.program))
        self._turn(program)

    def _turn(self, program: _Running) -> None:
        turn = program.script.turns[program.turn]
        vocabulary = next(iter(self._engines.values())).capabilities.vocabulary
        draw = program.random.randrange
        program.context += [*program.output, *(draw(vocabulary) for _ in range(turn.new_tokens))]
        program.output = [draw(vocabulary) for _ in range(turn.output_tokens)]
        self._call(program)

    def _call(self, program: _Running) -> None:
        call = f"{program.script.program}/{program.turn}"
        turn = program.script.turns[program.turn]
        self._owner[call] = program.script.program
        program.waiting = GenerateRequest(
            call=call,
            program=program.script.program,
            prompt=list(program.context),
            sampling=Sampling(max_output_tokens=turn.output_tokens),
            recorded=program.output,
        )
        answers, program.tool_calls = program.tool_calls, ()
        self._post(
            ev.CallArrived(
                call=call,
                program=program.script.program,
                prompt_tokens=len(program.context),
                max_output_tokens=turn.output_tokens,
                answers=answers,
            )
        )
        self._send(program)

    def _send(self, program: _Running) -> None:
        if program.seat is None or program.waiting is None:
            return
        request, program.waiting = program.waiting, None
        self._engines[program.seat].submit(request, self.now)
        self._step_soon(program.seat)

    def _step_soon(self, engine: str) -> None:
        if not self._stepping[engine]:
            self._stepping[engine] = True
            self._at(self.now, lambda: self._step(engine))

    def _step(self, engine: str) -> None:
        """Begin a step now; its outputs come when it ends, and then the next one begins."""
        if not self._engines[engine].has_work:
            self._stepping[engine] = False
            self._report(engine)
            return
        took_s, outputs = self._engines[engine].step(self.now)
        self._at(self.now + took_s, lambda: self._stepped(engine, outputs))

    def _stepped(self, engine: str, outputs: list[EngineOutput]) -> None:
        for output in outputs:
            self._deliver(output)
        if self.now - self._reported_s[engine] >= REPORT_EVERY_S:
            self._report(engine)
        self._step(engine)

    def _report(self, engine: str) -> None:
        self._reported_s[engine] = self.now
        self._post(self._engines[engine].report(self.now))

    def _deliver(self, output: EngineOutput) -> None:
        match output:
            case TokensOut():
                return
            case ev.CallFinished():
                self._finished(self._programs[self._owner.pop(output.call)], output)
            case ev.CallStarted() | ev.FirstToken() | ev.CallAborted() | ev.StepReport():
                self._post(output)
            case _:
                assert_never(output)

    def _finished(self, program: _Running, output: ev.CallFinished) -> None:
        script, turn = program.script, program.script.turns[program.turn]
        program.turn += 1
        last = program.turn == len(script.turns)
        refs = () if last else (ev.ToolCallRef(tool_call=f"{output.call}/tool", tool=turn.tool),)
        program.tool_calls = tuple(ref.tool_call for ref in refs)
        self._post(
            ev.CallFinished(
                call=output.call,
                prompt_tokens=output.prompt_tokens,
                cached_tokens=output.cached_tokens,
                output_tokens=output.output_tokens,
                recomputed_tokens=output.recomputed_tokens,
                tool_calls=refs,
            )
        )
        if not last:
            self._at(self.now + turn.gap_s, lambda: self._turn(program))
            return
        self._post(ev.ProgramClosed(program=script.program))
        if self._later:
            script = self._later.pop(0)
            self._at(max(self.now, script.arrives_s), lambda: self._begin(script))


def synthetic_scripts(
    seed: int,
    programs: int,
    *,
    calls: int = 11,
    first_tokens: int = 2_000,
    new_tokens: int = 400,
    output_tokens: int = 60,
    gap_s: float = 1.5,
    spread: float = 0.8,
    arrive_every_s: float = 0.0,
) -> list[Script]:
    """Coding-agent-like programs: log-normal gaps and growth about the given medians, seeded."""
    random = Random(seed)
    scripts = []
    for number in range(programs):
        turns = tuple(
            Turn(
                new_tokens=first_tokens
                if index == 0
                else max(1, int(random.lognormvariate(0, spread) * new_tokens)),
                output_tokens=max(1, int(random.lognormvariate(0, 0.5) * output_tokens)),
                gap_s=random.lognormvariate(0, spread) * gap_s,
            )
            for index in range(max(1, round(random.gauss(calls, calls / 4))))
        )
        scripts.append(Script(f"p{number:04d}", number * arrive_every_s, turns))
    return scripts
