"""Holds the calls of programs that have no seat: no call reaches an engine but by the core's decision."""

from __future__ import annotations

import asyncio
from typing import assert_never

from agentsched.core import decisions as de


class TurnedAway(Exception):
    """The core rejected the call: come back after ``retry_after_s``."""

    def __init__(self, retry_after_s: float, reason: str) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class Ticket:
    """One call at the gate. ``engine`` is the name of the one that it was let through to."""

    __slots__ = ("_error", "_waiter", "call", "engine", "program")

    def __init__(self, call: str, program: str) -> None:
        self.call = call
        self.program = program
        self.engine: str | None = None
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None

    @property
    def held(self) -> bool:
        """Whether it waits still."""
        return self.engine is None and self._error is None

    async def passed(self) -> str:
        """Wait for the engine's name. Raises what ended the wait."""
        if self.held:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if self._error is not None:
            raise self._error
        assert self.engine is not None, "it was let through"
        return self.engine

    def let_through(self, engine: str) -> None:
        if self.held:
            self.engine = engine
            self._wake()

    def refuse(self, error: Exception) -> None:
        """End the wait; whoever awaits gets the error."""
        if self.held:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class Gate:
    """Lets the calls of foreground programs through, and what the core lets pass."""

    def __init__(self) -> None:
        self._seat: dict[str, str] = {}
        self._held: dict[str, Ticket] = {}

    def hold(self, call: str, program: str) -> Ticket:
        """A call came. Tell the core then, and ``pass_seated`` after what it decides."""
        ticket = self._held[call] = Ticket(call, program)
        return ticket

    def pass_seated(self, ticket: Ticket) -> None:
        """A program that has its seat already gets no new decision: its call just goes through."""
        if (engine := self._seat.get(ticket.program)) is not None:
            self._let_through(ticket, engine)

    def leave(self, ticket: Ticket) -> None:
        """The call is not waiting any more, whether it passed or not."""
        self._held.pop(ticket.call, None)

    def forget(self, program: str) -> None:
        """The program ended."""
        self._seat.pop(program, None)

    def lost(self, engine: str) -> None:
        """The engine is gone, and with it the seats there."""
        self._seat = {program: seat for program, seat in self._seat.items() if seat != engine}

    def carry_out(self, decision: de.GateOrder) -> None:
        match decision:
            case de.Admit():
                self._seat[decision.program] = decision.engine
                self._let_program_through(decision.program, decision.engine)
            case de.Pass():
                self._let_program_through(decision.program, decision.engine)
            case de.Pause():
                self._seat.pop(decision.program, None)
            case de.Reject():
                if (held := self._held.get(decision.call)) is not None:
                    held.refuse(TurnedAway(decision.retry_after_s, decision.reason))
            case _:
                assert_never(decision)

    def _let_program_through(self, program: str, engine: str) -> None:
        for ticket in list(self._held.values()):
            if ticket.program == program:
                self._let_through(ticket, engine)

    def _let_through(self, ticket: Ticket, engine: str) -> None:
        self._held.pop(ticket.call, None)
        ticket.let_through(engine)
