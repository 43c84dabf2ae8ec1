"""Tells the controller of this host's tool calls what programs are worth, where there is one.

What counts is their tenants' terms, and how much KV an engine keeps for them while their tools run: the join
of the two sides. Nothing waits for it: without a controller, or with one that does not take it at once, it is
told the next time.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence

from agentsched.cgroups.control import messages as ms
from agentsched.cgroups.control.client import connect_once
from agentsched.core import decisions as de
from agentsched.core import events as ev

RETRY_S = 5.0
"""So often it is looked for a controller."""


class ToolWorth:
    """A watcher of the host: see ``host.Watcher``."""

    def __init__(self) -> None:
        self._known: dict[str, ms.Valued] = {}
        self._changed: dict[str, None] = {}
        self._connection: socket.socket | None = None
        self._looked_s = -RETRY_S

    def observe(self, now: float, event: ev.AnyEvent, decided: Sequence[de.AnyDecision]) -> None:
        """An event was handled."""
        match event:
            case ev.ProgramOpened():
                self._value(ms.Valued(program=event.program, weight=event.weight, priority=event.priority))
            case ev.ProgramClosed():
                self._known.pop(event.program, None)
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
            self._value(
                ms.Valued(program=program, weight=known.weight, priority=known.priority, kv_tokens=tokens)
            )

    def _value(self, valued: ms.Valued) -> None:
        self._known[valued.program] = valued
        self._changed[valued.program] = None

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
