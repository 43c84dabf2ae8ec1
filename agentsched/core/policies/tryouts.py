"""Try-outs: a newcomer that finds no seat may begin at once, for a short while and in room that is free.

How long a program will be is not known before it runs, and first prompts do not tell. But lives differ
by factors of a hundred: a program of three short calls that waits three minutes behind long ones is slowed
down a hundredfold, and would have held up nobody. So a newcomer may be let in on trial. If it ends
within ``TRIAL_S`` or ``TRIAL_CALLS``, that was all; else it is paused and waits by its old place in line.
The price is to compute a small context again, and a wait that comes after a tool instead of before the start.

* Trials take only room that nobody needs now, ``MOST_SHARE`` of the KV at most, and are the first to be
  paused where contexts outgrow the engine. Nobody leaves a seat for them.
* They overtake within the bounds of ``turns``, and only where the line is short: in a long one all would
  start and then wait in the middle, which gains nothing.
* They are given only where they pay: while at least ``LEAST_SHORT`` of the programs that ended had ended
  within ``TRIAL_S`` of their first seat.
"""

from __future__ import annotations

from collections.abc import Iterator

from agentsched.core.state import Program, State

TRIAL_S, TRIAL_CALLS = 10.0, 4
MOST_SHARE, MOST_OF_ONE = 0.3, 0.05
"""Of the KV: of all trials in one engine, and of the first call of one."""

LEAST_SHORT = 0.05
FIRST_SHORT, FIRST_WEIGHT = 0.04, 5.0
"""Share of short programs before any has ended, and how many endings it is worth. So nobody is tried before
short programs were seen."""
GAIN = 0.01


class Tryouts:
    """Who is on trial, who may be next, and whether it pays. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._since_s: dict[str, float] = {}
        """Of those on trial; who began first is first."""
        self._untried: dict[str, Program] = {}
        """Newcomers in line, by arrival; who was seated since is found out on a look."""
        self._first_seat_s: dict[str, float] = {}
        self._short = FIRST_SHORT
        self._endings = FIRST_WEIGHT

    def __contains__(self, program: Program) -> bool:
        """Whether it is on trial."""
        return program.name in self._since_s

    def on_trial(self, state: State, engine: str) -> Iterator[Program]:
        """Who is on trial there, longest first."""
        programs = (state.programs[name] for name in self._since_s)
        return (program for program in programs if program.seat == engine)

    def over(self, state: State, now: float) -> list[Program]:
        """Whose trial is over: they are in a gap, and to be paused."""
        if not self._since_s:
            return []
        return [
            program
            for name, since_s in self._since_s.items()
            if now >= since_s + TRIAL_S
            and (program := state.programs[name]).in_gap
            and program.calls_done >= TRIAL_CALLS
        ]

    def next_end_s(self, now: float) -> float | None:
        """When the next trial may be over in the middle of a gap."""
        ends_s = (since_s + TRIAL_S for since_s in self._since_s.values())
        return next((end_s for end_s in ends_s if end_s > now), None)

    def next(self, state: State) -> Program | None:
        """Who is to be tried next, if anybody is: of those who wait, the first that was not yet."""
        if self._short < LEAST_SHORT:
            return None
        while self._untried:
            name, program = next(iter(self._untried.items()))
            if state.queue.get(name) is program:
                return program
            del self._untried[name]
        return None

    def came(self, program: Program) -> None:
        """A newcomer waits."""
        self._untried[program.name] = program

    def passed_over(self, program: Program) -> None:
        """It is not to be tried."""
        self._untried.pop(program.name, None)

    def seated(self, program: Program, now: float, *, on_trial: bool) -> None:
        self._untried.pop(program.name, None)
        self._first_seat_s.setdefault(program.name, now)
        if on_trial:
            self._since_s[program.name] = now

    def unseated(self, program: Program) -> None:
        self._since_s.pop(program.name, None)

    def ended(self, program: Program, now: float) -> None:
        self.unseated(program)
        self.passed_over(program)
        seated_s = self._first_seat_s.pop(program.name, None)
        if seated_s is not None and program.calls_done:
            self._endings += 1
            self._short += ((now - seated_s <= TRIAL_S) - self._short) * max(GAIN, 1 / self._endings)

    def check_invariants(self, state: State) -> None:
        """Raises AssertionError unless all on trial have a seat."""
        for name in self._since_s:
            assert state.programs[name].seat is not None, f"{name} is on trial without a seat"
