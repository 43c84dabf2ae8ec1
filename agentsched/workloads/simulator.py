"""The second host of the core: virtual time, simulated engines, thousands of programs in seconds.

The loop pops the earliest thing that happens (a program arrives, a gap ends, an engine's run of steps
ends, the core wants to be woken), hands it to the unchanged core and carries its decisions out.
Nothing in it decides anything. With one seed it is deterministic.
"""

from __future__ import annotations

import heapq
import time
from array import array
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from random import Random
from typing import assert_never

from agentsched.core import events as ev
from agentsched.core.core import Core
from agentsched.core.decisions import Admit, AnyDecision, EngineOrder, Pass, Pause, Reject
from agentsched.core.log import Entry
from agentsched.engines.analytic import Output
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.gaps import Gaps
from agentsched.workloads.scripts import Script, Turn
from agentsched.workloads.simulated_engine import SimulatedEngine as SimulatedEngine

DECISIONS_KEPT = 100_000


@dataclass(slots=True)
class _Request:
    call: str
    pieces: tuple[tuple[str, int], ...]
    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True)
class _Running:
    script: Script
    parent: _Running | None = None
    host: str = ""
    turn: int = 0
    own_tokens: int = 0
    epoch: int = 0
    seat: str | None = None
    waiting: _Request | None = None
    answers: tuple[str, ...] = ()
    agents_left: int = 0
    gap_over: bool = False


class Simulation:
    """One run. ``entries`` is its log, as the daemon would have written it; ``decided_s`` the real seconds
    that each ``handle`` of the core took, of the latest; ``gaps`` has the tools' hosts, if they have
    limits."""

    def __init__(
        self,
        core: Core,
        engines: Iterable[SimulatedEngine],
        scripts: Iterable[Script],
        conditions: Conditions | None = None,
        *,
        agents: Mapping[str, Script] | None = None,
        then: Iterable[Script] = (),
        log: Callable[[Entry], None] | None = None,
        progress: Callable[[float, int], None] | None = None,
    ) -> None:
        """``agents``: scripts that tool calls start (``Turn.agents``), by name, looked up when one starts.
        ``then`` follows on ``scripts`` in a closed loop, each taken when its place is free, so it may be
        endless. ``log`` takes the entries instead of ``entries``. ``progress`` is told the virtual
        time and how many programs have ended, at each ending."""
        self.entries: list[Entry] = []
        self.decided_s = array("d")
        self._decided = 0
        self.now = 0.0
        self.ended = 0
        self.conditions = conditions or Conditions()
        self.gaps = Gaps(
            self._at,
            self._post,
            hosts=self.conditions.tool_hosts,
            cores=self.conditions.tool_cores,
            memory_bytes=self.conditions.tool_memory_bytes,
            told_share=self.conditions.told_share,
            seed=self.conditions.seed,
        )
        self._core = core
        self._engines = {engine.name: engine for engine in engines}
        self._agents = {} if agents is None else agents
        self._log = self.entries.append if log is None else log
        self._progress = progress
        self._random = Random(self.conditions.seed)
        self._programs: dict[str, _Running] = {}
        self._owner: dict[str, _Running] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._tie = 0
        self._planned: dict[str, float | None] = dict.fromkeys(self._engines)
        self._reported_s = dict.fromkeys(self._engines, 0.0)
        self._wakeup_s: float | None = None
        ordered = sorted(scripts, key=lambda script: (script.arrives_s, script.program))
        at_once = len(ordered) if self.conditions.concurrency is None else self.conditions.concurrency
        self._later = chain(ordered[at_once:], then)
        for script in ordered[:at_once]:
            self._at(script.arrives_s, lambda script=script: self._begin(script, None))  # type: ignore[misc]

    def run(self, *, until_s: float = float("inf")) -> list[Entry]:
        """Run until all programs have ended, or virtual time is up; the log entries of the run."""
        if not self.decided_s:
            self._attach()
        while self._due and self._due[0][0] <= until_s:
            self.now, _, action = heapq.heappop(self._due)
            action()
            if self.conditions.check:
                self._check()
        return self.entries

    def _attach(self) -> None:
        self.gaps.attach()
        for name, engine in self._engines.items():
            self._post(
                ev.EngineAttached(
                    engine=name,
                    capacity_tokens=engine.capacity_tokens,
                    block_tokens=engine.block_tokens,
                    host_capacity_tokens=engine.host_tokens,
                    host_tokens_per_s=engine.host_tokens_per_s,
                    max_running=engine.max_running,
                )
            )
            self._post(engine.report(self.now, snapshot=True))

    def _check(self) -> None:
        self._core.check_invariants()
        self.gaps.check_invariants()
        for engine in self._engines.values():
            engine.check_invariants()

    def _at(self, when_s: float, action: Callable[[], None]) -> None:
        self._tie += 1
        heapq.heappush(self._due, (max(when_s, self.now), self._tie, action))

    # The core

    def _post(self, event: ev.AnyEvent) -> None:
        begin_s = time.perf_counter()
        decided = self._core.handle(self.now, event)
        took_s = time.perf_counter() - begin_s
        if len(self.decided_s) < DECISIONS_KEPT:
            self.decided_s.append(took_s)
        else:
            self.decided_s[self._decided % DECISIONS_KEPT] = took_s
        self._decided += 1
        self._log(Entry(now=self.now, event=event))
        for decision in decided:
            self._log(Entry(now=self.now, decision=decision))
            self._carry_out(decision)
        wakeup_s = self._core.next_wakeup()
        if wakeup_s is not None and wakeup_s != self._wakeup_s:
            self._wakeup_s = wakeup_s
            self._at(wakeup_s, self._wake)

    def _wake(self) -> None:
        if self._wakeup_s is not None and self.now >= self._wakeup_s:
            self._wakeup_s = None
            self._post(ev.Woken())

    def _carry_out(self, decision: AnyDecision) -> None:
        if decision.advice:
            return
        match decision:
            case Admit() | Pass():
                program = self._programs[decision.program]
                program.seat = decision.engine
                self._send(program)
                if isinstance(decision, Pass):
                    program.seat = None  # its next call asks again
            case Pause():
                self._programs[decision.program].seat = None
            case Reject():
                program = self._programs[decision.program]
                self._at(self.now, lambda: self._turn_away(program, decision))
            case _:
                self._order(decision)

    def _order(self, order: EngineOrder) -> None:
        conditions = self.conditions
        if conditions.lost_orders and self._random.random() < conditions.lost_orders:
            return
        if conditions.control_delay_s:
            self._at(self.now + conditions.control_delay_s, lambda: self._arrived(order))
        else:
            self._arrived(order)

    def _arrived(self, order: EngineOrder) -> None:
        engine = self._engines[order.engine]
        engine.order(order, self.now)
        self._plan(engine)

    def _turn_away(self, program: _Running, decision: Reject) -> None:
        if program.waiting is None:
            return
        program.waiting = None
        self._owner.pop(decision.call)
        self._post(ev.CallAborted(call=decision.call, reason="rejected"))
        self._at(self.now + decision.retry_after_s, lambda: self._call(program))

    # Programs

    def _begin(self, script: Script, parent: _Running | None) -> None:
        program = _Running(script, parent, self.gaps.place(script, parent.host if parent else ""))
        self._programs[script.program] = program
        self._post(
            ev.ProgramOpened(
                program=script.program,
                tenant=script.tenant,
                deadline_s=script.deadline_s,
                host=program.host,
                parent=parent.script.program if parent else "",
            )
        )
        self._turn(program)

    def _turn(self, program: _Running) -> None:
        turn = program.script.turns[program.turn]
        if turn.fresh and program.turn:
            program.epoch += 1
        if turn.fresh or program.turn == 0:
            program.own_tokens = -program.script.prefix_tokens
        program.own_tokens += turn.new_tokens
        self._call(program)

    def _pieces(self, program: _Running, turn: Turn) -> tuple[tuple[str, int], ...]:
        own = f"{program.script.program}/{program.epoch}"
        if turn.pieces:
            # The output must not grow a piece that others share.
            return (*((piece.key, piece.tokens) for piece in turn.pieces), (f"{own}/{program.turn}", 0))
        prefix = tuple((piece.key, piece.tokens) for piece in program.script.prefix)
        if program.own_tokens < 1:
            raise ValueError(f"script {program.script.program!r}: its prompt is shorter than its prefix")
        return (*prefix, (own, program.own_tokens))

    def _call(self, program: _Running) -> None:
        turn = program.script.turns[program.turn]
        pieces = self._pieces(program, turn)
        prompt = sum(tokens for _, tokens in pieces)
        call = f"{program.script.program}/{program.turn}"
        self._owner[call] = program
        program.waiting = _Request(call, pieces, prompt, turn.output_tokens)
        answers, program.answers = program.answers, ()
        self._post(
            ev.CallArrived(
                call=call,
                program=program.script.program,
                prompt_tokens=prompt,
                max_output_tokens=turn.output_tokens,
                answers=answers,
            )
        )
        self._send(program)

    def _send(self, program: _Running) -> None:
        if program.seat is None or program.waiting is None:
            return
        request, program.waiting = program.waiting, None
        engine = self._engines[program.seat]
        engine.submit(
            request.call,
            program.script.program,
            request.pieces,
            request.prompt_tokens,
            request.output_tokens,
            self.now,
        )
        self._plan(engine)

    def _finished(self, output: ev.CallFinished) -> None:
        program = self._owner.pop(output.call)
        script, turn = program.script, program.script.turns[program.turn]
        program.turn += 1
        program.own_tokens += turn.output_tokens
        last = program.turn == len(script.turns)
        asks = bool(turn.tool) and not last
        refs = (ev.ToolCallRef(tool_call=f"{output.call}/tool", tool=turn.tool),) if asks else ()
        program.answers = tuple(ref.tool_call for ref in refs)
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
        if last:
            self._end(program)
            return
        self._away(program, turn, refs[0].tool_call if refs else None)

    def _away(self, program: _Running, turn: Turn, tool_call: str | None) -> None:
        agents = [self._agents[name] for name in turn.agents if name in self._agents]
        program.agents_left, program.gap_over = len(agents), False
        for script in agents:
            self._at(self.now, lambda script=script: self._begin(script, program))  # type: ignore[misc]
        self.gaps.begin(
            program.script.program,
            turn,
            self.now,
            lambda: self._gap_over(program),
            host=program.host,
            tool_call=tool_call,
        )

    def _gap_over(self, program: _Running) -> None:
        program.gap_over = True
        if not program.agents_left:
            self._turn(program)

    def _end(self, program: _Running) -> None:
        name = program.script.program
        self._post(ev.ProgramClosed(program=name))
        del self._programs[name]
        for engine in self._engines.values():
            engine.forget(name)
        if program.parent is not None:
            program.parent.agents_left -= 1
            if program.parent.gap_over and not program.parent.agents_left:
                self._turn(program.parent)
            return
        self.ended += 1
        if self._progress is not None:
            self._progress(self.now, self.ended)
        if self.conditions.concurrency is not None:
            script = next(self._later, None)
            if script is not None:
                self._at(script.arrives_s, lambda: self._begin(script, None))

    # Engines

    def _plan(self, engine: SimulatedEngine) -> None:
        when_s = engine.next_s
        if when_s is not None and when_s != self._planned[engine.name]:
            self._planned[engine.name] = when_s
            self._at(when_s, lambda: self._advance(engine, when_s))

    def _advance(self, engine: SimulatedEngine, when_s: float) -> None:
        if engine.next_s != when_s or self._planned[engine.name] != when_s:
            return
        self._planned[engine.name] = None
        for output in engine.advance(self.now):
            self._deliver(output)
        since_s = self.now - self._reported_s[engine.name]
        if engine.next_s is None or since_s >= self.conditions.report_every_s:
            self._report(engine)
        self._plan(engine)

    def _report(self, engine: SimulatedEngine) -> None:
        self._reported_s[engine.name] = self.now
        report = engine.report(self.now)
        if self.conditions.control_delay_s:
            self._at(self.now + self.conditions.control_delay_s, lambda: self._post(report))
        else:
            self._post(report)

    def _deliver(self, output: Output) -> None:
        match output:
            case ev.CallFinished():
                self._finished(output)
            case ev.CallStarted() | ev.FirstToken():
                self._post(output)
            case ev.CallAborted():
                self._aborted(output)
            case _:
                assert_never(output)

    def _aborted(self, output: ev.CallAborted) -> None:
        """What the engine refuses for good ends the program; the summary counts it as unfinished."""
        program = self._owner.pop(output.call)
        self._post(output)
        self._end(program)
