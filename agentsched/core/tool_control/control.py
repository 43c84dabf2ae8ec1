"""The controller of one host's tool calls, without I/O: facts in, actions out.

As long as there is memory nothing is done. It is tight when little is left beside what the first in line is
still expected to need. Then every call gets a cap at what it holds and what ``grants`` gives it, and waits
there. Calls that end give memory back, caps rise, and are lifted when
there is enough again. Three things end a wait that this does not end:

* the first in line waits for ``grace_s``, and another of a lower priority or rank, or one that waits
  itself, holds memory: the last in line that does is ended. Among equals that still run this takes
  ``PATIENCE`` times as long, for one of them may end by itself;
* memory falls under half the reserve in spite of caps: the last in line is frozen, and after ``grace_s``
  ended;
* any call waits for ``stall_s``: it is ended, one at a time.

So no call is held back for longer than ``stall_s``, a look, and ``settle_s`` for each that waits as long: a
property test holds that, whatever tools do. What is expected of a call (hint, history) is no limit: it orders
the line and says when to begin.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from agentsched.core.tool_control.grants import Asks, share_out
from agentsched.core.tool_control.line import Running, Standing, in_line
from agentsched.core.tool_control.vocabulary import (
    Action,
    Call,
    Cap,
    Freeze,
    HostSeen,
    Kill,
    Protect,
    Seen,
    Terms,
    Thaw,
    Weigh,
    Why,
    Worth,
)
from agentsched.core.tool_control.weights import cpu_weight, kv_factors, rank
from agentsched.graphs.predict import MemoryModel

PATIENCE = 5.0
MOST_OWED = 1024
MOST_PROGRAMS = 4096
"""Past this, those without calls are forgotten, oldest first."""


class ToolControl:
    """See the module. ``memory``: what is learned of command classes; may be shared by several hosts."""

    def __init__(self, terms: Terms | None = None, memory: MemoryModel | None = None) -> None:
        self.terms = terms or Terms()
        self.memory = memory or MemoryModel()
        self.tight = False
        self.next_look_s = math.inf
        """When ``looked`` should be called next, if nothing happens before."""
        self._calls: dict[str, Running] = {}
        self._programs: dict[str, Standing] = {}
        self.first: str | None = None
        """The call that is first in line, as of the last look: what it holds must be seen in every look."""
        self._number = 0
        self._owed: dict[tuple[str, str], tuple[int, int]] = {}
        """Of calls that were ended for others: their place in line by age and what they held, for the next
        call of that kind of the same program: who tries again must not be last again, and so for ever."""
        self._now = 0.0
        self._step = self.terms.step_bytes
        self._settled_s = -math.inf

    def began(self, now: float, call: Call) -> list[Action]:
        """A call runs. Its name must be new."""
        self._now = now
        self._number += 1
        number, held = self._owed.get((call.program, call.key), (self._number, 0))
        expected = max(held, self.memory.usual_bytes(call.key, call.stated_bytes))
        soft = expected if call.limit_bytes is None else min(expected, call.limit_bytes)
        running = self._calls[call.tool_call] = Running(call, number, soft, now)
        self._standing(call.program)
        self.next_look_s = min(self.next_look_s, now + self.terms.tight_look_s)
        actions = self._weigh()
        if self.tight:
            self.next_look_s = now
            actions += self._cap(running, self._step)
        return actions

    def ended(self, now: float, tool_call: str, peak_bytes: int, *, by_itself: bool) -> list[Action]:
        """A call is over; of one that ended ``by_itself`` is learned."""
        running = self._calls.pop(tool_call, None)
        if running is None:
            return []
        if by_itself and not running.ending:
            self.memory.observe(running.call.key, peak_bytes)
            self._owed.pop((running.call.program, running.call.key), None)
        if tool_call == self.first:
            self.first = None
        if not any(other.call.program == running.call.program for other in self._calls.values()):
            standing = self._programs[running.call.program]
            standing.told_weight = 100
        self.next_look_s = now if self.tight else self.next_look_s
        if not self._calls:
            self.next_look_s = math.inf
            self.tight = False
        return self._weigh()

    def worth(self, worth: Worth) -> list[Action]:
        """What a program counts for changed."""
        standing = self._standing(worth.program)
        if worth.weight is not None:
            standing.weight = worth.weight
        if worth.priority is not None:
            standing.priority = worth.priority
        if worth.kv_tokens is not None:
            standing.kv_tokens = worth.kv_tokens
        return self._weigh()

    def soft_bytes(self, tool_call: str) -> int:
        """What the call is expected to need: one that holds more comes later in the line."""
        return self._calls[tool_call].soft_bytes

    def waited_s(self, now: float, tool_call: str) -> float:
        """For how long the call was held back in all, seconds."""
        running = self._calls.get(tool_call)
        return running.waited_s + running.waits(now) if running else 0.0

    def spare_bytes(self, host: HostSeen) -> int:
        """What calls may still take on this host; negative if they took of the reserve."""
        return host.free_bytes - self.terms.reserve_bytes(host.total_bytes)

    def until_tight_bytes(self, host: HostSeen) -> int:
        """By how much calls may grow until it is worth a look."""
        return max(0, self.spare_bytes(host) - self._kept_bytes(host))

    def needs_usage(self, host: HostSeen) -> bool:
        """Whether ``looked`` has to know what each call holds, not only the first in line."""
        return self.tight or self.until_tight_bytes(host) == 0

    def looked(self, now: float, host: HostSeen, seen: Mapping[str, Seen]) -> list[Action]:
        """What was seen of the host, and of calls: the first in line, or all, if ``needs_usage`` says so."""
        self._now = now
        for name, what in seen.items():
            if (running := self._calls.get(name)) is not None:
                running.grows_to(now, what.memory_bytes)
                running.stopped = what.stopped
        line = in_line(self._calls.values(), self._ranks(), self.first)
        if line and line[0].call.tool_call != self.first:
            line[0].grew_s = now  # before, nobody looked whether it grew
        self.first = line[0].call.tool_call if line else None
        spare = self.spare_bytes(host)
        was_tight, self.tight = self.tight, spare < self._kept_bytes(host) and bool(self._calls)
        if not self.tight:
            self._step = self.terms.step(host.total_bytes)
            near = self.until_tight_bytes(host) < 4 * self._step
            pause_s = self.terms.tight_look_s if near else self.terms.calm_look_s
            self.next_look_s = now + pause_s if self._calls else math.inf
            return self._let_go(now) if was_tight else []
        self.next_look_s = now + self.terms.tight_look_s
        self._step = self.terms.step(host.total_bytes)
        grants = self._grants(now, line, spare)
        return self._rationed(now, line, grants) + self._end_waits(now, host, line, grants)

    def check_invariants(self) -> None:
        """Raises AssertionError if what is known contradicts itself."""
        assert self.first is None or self.first in self._calls
        for name, running in self._calls.items():
            assert running.call.tool_call == name
            assert running.call.program in self._programs
            assert self.tight or running.cap_bytes is None or running.ending, "a cap outlived its cause"
            assert self.tight or running.frozen_since_s is None, "a freeze outlived its cause"

    def _kept_bytes(self, host: HostSeen) -> int:
        """What must be left beside the reserve for growth to be free: with what the first in line is still
        expected to need, it at least can come to its end (and then the next one) with nobody ended for it."""
        share = self.terms.ease_share if self.tight else self.terms.tight_share
        first = self._calls.get(self.first) if self.first is not None else None
        rest = first.want_bytes(self._now, 0) if first is not None else 0
        return int(share * host.total_bytes) + rest

    def _standing(self, program: str) -> Standing:
        if program not in self._programs and len(self._programs) >= MOST_PROGRAMS:
            active = {running.call.program for running in self._calls.values()}
            idle = next((name for name in self._programs if name not in active), None)
            if idle is not None:
                del self._programs[idle]
        return self._programs.setdefault(program, Standing())

    def _ranks(self) -> dict[str, tuple[int, int]]:
        factors = self._factors()
        return {
            name: (standing.priority, rank(standing.weight, factors.get(name, 1.0)))
            for name, standing in self._programs.items()
        }

    def _factors(self) -> dict[str, float]:
        active = {running.call.program for running in self._calls.values()}
        return kv_factors({name: s.kv_tokens for name, s in self._programs.items() if name in active})

    def _weigh(self) -> list[Action]:
        intents: dict[str, list[int]] = {}
        for running in self._calls.values():
            intents.setdefault(running.call.program, []).append(running.call.intent)
        factors, actions = self._factors(), list[Action]()
        for program, asked in intents.items():
            standing = self._programs[program]
            weight = cpu_weight(standing.weight, standing.priority, factors[program], asked)
            if abs(weight - standing.told_weight) > standing.told_weight // 10:
                standing.told_weight = weight
                actions.append(Weigh(program=program, weight=weight))
        return actions

    def _let_go(self, now: float) -> list[Action]:
        """There is memory again."""
        actions = list[Action]()
        for running in self._calls.values():
            if not running.ending:
                actions += self._thaw(running) + self._cap(running, None) + self._protect(running, 0)
            running.set_waiting(now, False)
        return actions

    def _grants(self, now: float, line: Sequence[Running], spare: int) -> list[int]:
        step = self._step
        asks = [
            Asks(
                running.want_bytes(now, step),
                max(0, (running.cap_bytes or 0) - running.memory_bytes),
                now >= running.granted_s + self.terms.pace_s,
            )
            for running in line
        ]
        return share_out(asks, spare, step)

    def _rationed(self, now: float, line: Sequence[Running], grants: Sequence[int]) -> list[Action]:
        """Caps for all, and protection for the first; who waits and who does not."""
        actions = list[Action]()
        for index, (running, grant) in enumerate(zip(line, grants, strict=True)):
            waiting = running.frozen_since_s is not None or (running.stopped and grant < self._step)
            running.set_waiting(now, waiting)
            before = running.cap_bytes
            cap = running.memory_bytes + grant
            if before is not None and not grant:
                # where a cap only slows down, it is exceeded: what was taken so must not become the next cap
                cap = min(cap, before)
            if before is None or cap > before or before - cap >= self._step:
                if before is None or cap > before:
                    running.granted_s = now
                actions += self._cap(running, cap)
            actions += self._protect(running, 0 if index else running.memory_bytes)
        return actions

    def _end_waits(
        self, now: float, host: HostSeen, line: Sequence[Running], grants: Sequence[int]
    ) -> list[Action]:
        urgent = host.free_bytes < self.terms.reserve_bytes(host.total_bytes) // 2
        actions = list[Action]()
        for running in line if not urgent else ():
            actions += self._thaw(running)
        if now < self._settled_s:
            return actions
        overdue = [
            running
            for running, grant in zip(line, grants, strict=True)
            if running.waits(now) >= self.terms.stall_s
            and (grant < self._step or running.frozen_since_s is not None)
        ]
        if overdue:  # one at a time: what it held may let the others go on
            why = Why.WAITED if len(line) > 1 else Why.TOO_BIG
            return [*actions, self._kill(now, overdue[-1], why)]
        if urgent:
            return actions + self._emergency(now, line)
        victim = self._yields(now, line)
        return actions if victim is None else [*actions, self._kill(now, victim, Why.SHORT)]

    def _emergency(self, now: float, line: Sequence[Running]) -> list[Action]:
        holding = self._holding(line)
        victim = next((one for one in holding if one.frozen_since_s is not None), None)
        if victim is None:
            if not holding:
                return []  # it is not tool calls that hold the memory
            victim = holding[-1]
            victim.frozen_since_s = now
            victim.set_waiting(now, True)
            return [Freeze(tool_call=victim.call.tool_call)]
        if now - (victim.frozen_since_s or 0.0) < self.terms.grace_s:
            return []
        return [self._kill(now, victim, Why.SHORT if len(line) > 1 else Why.TOO_BIG)]

    def _yields(self, now: float, line: Sequence[Running]) -> Running | None:
        """Who has to end so that the first in line can go on; None if nobody has to by now."""
        if not line or line[0].waits(now) < self.terms.grace_s:
            return None
        holding = self._holding(line[1:])
        if not holding:
            return None
        first, last, ranks = line[0], holding[-1], self._ranks()
        lower = ranks[last.call.program] < ranks[first.call.program]
        stuck = all(running.waits_since_s is not None for running in holding)
        patient = first.waits(now) < PATIENCE * self.terms.grace_s
        return None if patient and not lower and not stuck else last

    def _holding(self, line: Sequence[Running]) -> list[Running]:
        return [one for one in line if not one.ending and one.memory_bytes >= self._step]

    def _cap(self, running: Running, limit_bytes: int | None) -> list[Action]:
        if limit_bytes == running.cap_bytes:
            return []
        running.cap_bytes = limit_bytes
        return [Cap(tool_call=running.call.tool_call, limit_bytes=limit_bytes)]

    def _protect(self, running: Running, held_bytes: int) -> list[Action]:
        if abs(held_bytes - running.protected_bytes) < (self._step if held_bytes else 1):
            return []
        running.protected_bytes = held_bytes
        return [Protect(tool_call=running.call.tool_call, held_bytes=held_bytes)]

    def _thaw(self, running: Running) -> list[Action]:
        if running.frozen_since_s is None or running.ending:
            return []
        running.frozen_since_s = None
        return [Thaw(tool_call=running.call.tool_call)]

    def _kill(self, now: float, running: Running, why: Why) -> Kill:
        running.ending = True
        running.frozen_since_s = None
        if why is not Why.TOO_BIG:
            while len(self._owed) >= MOST_OWED:
                del self._owed[next(iter(self._owed))]
            kind = running.call.program, running.call.key
            self._owed[kind] = running.number, running.memory_bytes
        self._settled_s = now + self.terms.settle_s
        waited_s = running.waited_s + running.waits(now)
        running.set_waiting(now, False)
        return Kill(
            tool_call=running.call.tool_call, why=why, memory_bytes=running.memory_bytes, waited_s=waited_s
        )
