"""One call as clients see it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from random import getrandbits

from agentsched.daemon.answers import Ending, Piece, Usage
from agentsched.daemon.apis.contract import Request
from agentsched.daemon.asked import AskedTool
from agentsched.daemon.errors import ApiError
from agentsched.daemon.gate import Ticket
from agentsched.daemon.identity import Claim
from agentsched.daemon.tenancy import Tenancy
from agentsched.engines.frontend import Prepared


@dataclass(eq=False, kw_only=True)
class LiveCall:
    """``pieces`` is the answer so far; then either ``ending`` or ``error`` is set, and nothing changes
    any more. ``delivered``: some of it has left for a client; ``charged``: all has, and its tenant's account
    knows of it. ``first``: its program had no answer before. ``clients`` have asked for it so far, and
    ``attached`` of them still wait. The first ``shared_tokens`` of its prompt are no secret."""

    claim: Claim
    tenancy: Tenancy
    request: Request
    prepared: Prepared
    arrived_s: float
    first: bool
    shared_tokens: int = 0
    name: str = field(default_factory=lambda: f"{getrandbits(128):032x}", init=False)
    """Tells it from all others, and is no secret."""
    clients: int = field(default=1, init=False)
    attached: int = field(default=1, init=False)
    delivered: bool = field(default=False, init=False)
    charged: bool = field(default=False, init=False)
    pieces: list[Piece] = field(default_factory=list, init=False)
    ending: Ending | None = field(default=None, init=False)
    error: ApiError | None = field(default=None, init=False)
    core_name: str = field(default="", init=False)
    beginnings: int = field(default=0, init=False)
    cached_tokens: int = field(default=0, init=False)
    output_tokens: int = field(default=0, init=False)
    ticket: Ticket | None = field(default=None, init=False)
    task: asyncio.Task[None] | None = field(default=None, init=False)
    _changed: asyncio.Event | None = field(default=None, init=False)
    """While somebody waits for a change."""

    @property
    def program(self) -> str:
        return self.claim.program

    @property
    def stated_program(self) -> str:
        """What its client calls the program."""
        return self.tenancy.outside(self.claim.program)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prepared.prompt)

    @property
    def usage(self) -> Usage:
        """What is known of it now."""
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            output_tokens=self.output_tokens,
        )

    @property
    def can_be_joined(self) -> bool:
        """Whether a retry can still get all of its answer."""
        return True

    @property
    def held(self) -> bool:
        """Whether it waits at the gate."""
        return self.ticket is not None and self.ticket.held

    @property
    def ended(self) -> bool:
        return self.ending is not None or self.error is not None

    async def over(self, timeout_s: float) -> bool:
        """Wait until the end; False if the time ran out."""
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ended:
                    await self._change()
        except TimeoutError:
            return False
        return True

    async def more(self, seen: int, timeout_s: float | None = None) -> bool:
        """Wait until there are more than ``seen`` pieces, or the end; False if the time ran out."""
        try:
            async with asyncio.timeout(timeout_s):
                while len(self.pieces) <= seen and not self.ended:
                    await self._change()
        except TimeoutError:
            return False
        return True

    async def end(self) -> Ending:
        """Wait for the end. Raises the ``ApiError`` that it ended with."""
        while not self.ended:
            await self._change()
        if self.error is not None:
            raise self.error
        assert self.ending is not None
        return self.ending

    def count_output(self, tokens: int) -> None:
        """So many more have come. Raises ``ApiError`` (500) if they are more than were asked for."""
        self.output_tokens += tokens
        most = self.prepared.sampling.max_output_tokens
        if self.prepared.recorded is None and self.output_tokens > most:
            too_long = f"the engine went on past the {most} tokens that it was asked for"
            raise ApiError(500, too_long, kind="server_error")

    def note_asked(self, tool_call: str, tool: str, arguments: str) -> None:
        """Its answer asks for a tool call."""
        program, run = self.stated_program, self.claim.run
        self.tenancy.asked.note(AskedTool(tool_call, tool, arguments, program, run, time.monotonic()))

    def notify(self) -> None:
        """Something changed: wake everybody who waits."""
        if self._changed is not None:
            self._changed.set()
            self._changed = None

    async def _change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.Event()
        await self._changed.wait()
