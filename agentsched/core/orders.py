"""The decisions of one event: collected, stamped with cause, epoch and number, and put into effect.

An ``Orders`` object lives while one event is handled. Policies speak through it, so no decision can
leave the core without a cause, and what a policy decides is visible to what it decides next.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentsched.core import decisions as de
from agentsched.core.state import IllegalEvent, Program, State


@dataclass(slots=True)
class Numbering:
    """Sequence numbers of one core: they never repeat within an epoch."""

    epoch: int
    cause: int = 0
    seq: int = 0

    def next_seq(self) -> int:
        self.seq += 1
        return self.seq


class Orders:
    """Collects the decisions that follow from one event."""

    __slots__ = ("_arriving", "_numbering", "_state", "admitted", "decided", "engaged", "now", "paused")

    def __init__(
        self,
        state: State,
        numbering: Numbering,
        now: float,
        arriving: str | None = None,
        *,
        engaged: bool = True,
    ) -> None:
        """``arriving``: the call whose arrival is the event; hosts hold it until all is decided. Not
        ``engaged``: what engines would be told, and who would be turned away, is advice."""
        self.now = now
        self.engaged = engaged
        self._arriving = arriving
        self.decided: list[de.AnyDecision] = []
        self.admitted: list[Program] = []
        self.paused: list[tuple[Program, str]] = []
        self._state = state
        self._numbering = numbering

    def _stamp(self, reason: str) -> dict[str, int | str]:
        n = self._numbering
        return {"cause": n.cause, "epoch": n.epoch, "seq": n.next_seq(), "reason": reason}

    def _order(self, reason: str) -> dict[str, int | str]:
        return self._stamp(reason) | {"advice": not self.engaged}

    def admit(self, program: Program, engine: str, reason: str) -> None:
        """Make a paused program foreground."""
        if program.foreground:
            raise IllegalEvent(f"program {program.name!r} has a seat already")
        source = program.home
        self._state.seat(program, engine)
        self.admitted.append(program)
        self.decided.append(de.Admit(program=program.name, engine=engine, **self._stamp(reason)))  # type: ignore[arg-type]
        if source is not None and source != engine:
            self.release(program, source, "it moved to another engine")

    def let_through(self, program: Program, engine: str, reason: str) -> None:
        """Let a paused program's waiting calls go, for the policy only watches."""
        self._state.let_through(program, engine)
        self.decided.append(de.Pass(program=program.name, engine=engine, **self._stamp(reason)))  # type: ignore[arg-type]

    def pause(self, program: Program, reason: str) -> None:
        """Take a program's seat away; what its KV is worth from now on, retention says."""
        engine = program.seat
        if engine is None:
            raise IllegalEvent(f"program {program.name!r} is paused already")
        self._state.unseat(program, self._arriving)
        self.paused.append((program, engine))
        self.decided.append(de.Pause(program=program.name, **self._stamp(reason)))  # type: ignore[arg-type]

    def reject(self, program: Program, retry_after_s: float, reason: str) -> None:
        """Turn every waiting call of a program away."""
        for call in sorted(program.calls):
            self.decided.append(
                de.Reject(call=call, program=program.name, retry_after_s=retry_after_s, **self._order(reason))  # type: ignore[arg-type]
            )

    def rank(self, program: Program, engine: str, key: float, reason: str) -> None:
        self.decided.append(de.Rank(program=program.name, engine=engine, key=key, **self._order(reason)))  # type: ignore[arg-type]

    def retain(
        self,
        program: Program,
        engine: str,
        steps: tuple[de.Worth, ...],
        lease_until_s: float,
        reason: str,
        *,
        host: tuple[de.Worth, ...] = (),
    ) -> None:
        """Keep the whole context by one step function on the device, and one in host memory. Whole
        blocks past it are of later calls."""
        segment = de.Segment(
            start_tokens=0, end_tokens=max(1, program.expected_context_tokens), device=steps, host=host
        )
        self.decided.append(
            de.Retain(
                program=program.name,
                engine=engine,
                segments=(segment,),
                lease_until_s=lease_until_s,
                **self._order(reason),  # type: ignore[arg-type]
            )
        )

    def prefetch(self, program: Program, engine: str, by_s: float, reason: str) -> None:
        """Have its KV brought back from host memory by then."""
        self.decided.append(
            de.Prefetch(program=program.name, engine=engine, by_s=by_s, **self._order(reason))  # type: ignore[arg-type]
        )

    def release(self, program: Program, engine: str, reason: str) -> None:
        self.forget(program.name, engine, reason)

    def forget(self, program: str, engine: str, reason: str) -> None:
        """Release a program by name, open or not."""
        self.decided.append(de.Release(program=program, engine=engine, **self._order(reason)))  # type: ignore[arg-type]

    def terms(self, engine: str, reason: str, **terms: float) -> None:
        self.decided.append(de.EngineTerms(engine=engine, **terms, **self._order(reason)))  # type: ignore[arg-type]
