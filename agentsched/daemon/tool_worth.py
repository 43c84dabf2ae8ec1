"""Tells the controller of this host's tool calls what programs are worth, where there is one.

What counts is their tenants' terms, and how much KV an engine keeps for them while their tools run: the join
of the two sides. Nothing waits for it: without a controller, or with one that does not take it at once, it is
told the next time.

Sandboxes know programs by the names that their tenants use. Of two that are called the same the first is told
of, while it is open: so nobody sets what another's tools get.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

import msgspec

from agentsched.cgroups.control import messages as ms
from agentsched.cgroups.control.client import connect_once
from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.daemon.tenancy import scope_of

RETRY_S = 5.0
"""So often it is looked for a controller."""


class ToolWorth:
    """A watcher of the host: see ``host.Watcher``."""

    def __init__(self) -> None:
        self._known: dict[str, ms.Valued] = {}
        self._called: dict[str, str] = {}
        """Which program is meant by a name that a tenant uses."""
        self._changed: dict[str, None] = {}
        self._connection: socket.socket | None = None
        self._looked_s = -RETRY_S

    def observe(self, now: float, event: ev.AnyEvent, decided: Sequence[de.AnyDecision]) -> None:
        """An event was handled."""
        match event:
            case ev.ProgramOpened():
                name = event.program.removeprefix(scope_of(event.tenant))
                if self._called.setdefault(name, event.program) == event.program:
                    valued = ms.Valued(program=name, weight=event.weight, priority=event.priority)
                    self._value(event.program, valued)
            case ev.ProgramClosed():
                if (known := self._known.pop(event.program, None)) is not None:
                    del self._called[known.program]
                self._changed.pop(event.program, None)
        for decision in decided:
            if decision.advice:
                continue
            if isinstance(decision, de.Retain):
                self._keep(decision.program, _tokens(now, decision))
            elif isinstance(decision, de.Release):
                self._keep(decision.program, 0)
        if self._changed:
            self._tell(now)

    def close(self) -> None:
        """Tell no more."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _keep(self, program: str, tokens: int) -> None:
        if (known := self._known.get(program)) is not None and known.kv_tokens != tokens:
            self._value(program, msgspec.structs.replace(known, kv_tokens=tokens))

    def _value(self, program: str, valued: ms.Valued) -> None:
        self._known[program] = valued
        self._changed[program] = None

    def _tell(self, now: float) -> None:
        if self._connection is None:
            if now < self._looked_s + RETRY_S:
                return
            self._looked_s = now
            self._connection = connect_once()
            if self._connection is None:
                return
            self._connection.setblocking(False)
            self._changed = dict.fromkeys(self._known)  # a new controller knows of nothing
        try:
            for program in list(self._changed):
                self._connection.send(ms.encode(self._known[program]))
                del self._changed[program]
        except BlockingIOError:
            return
        except OSError:
            self.close()


def _tokens(now: float, order: de.Retain) -> int:
    """Tokens of a context that are kept on the device for now."""
    return sum(
        segment.end_tokens - segment.start_tokens
        for segment in order.segments
        if any(step.until_s > now and step.value > 0 for step in segment.device)
    )
