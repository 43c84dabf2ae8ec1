"""Whose turn it is: order of arrival within a tenant, fair shares by weight between tenants.

Start-time fair queueing (Goyal, Vin, Cheng 1996) over whole programs. A program's turn is

    start = max(virtual time, finish of its tenant's program before it)
    finish = start + size / weight of the tenant

where virtual time is the latest start that was given a seat, and size is the KV token-calls that the
program is expected to take (its mean context times its calls). When it ends, its tenant's finish is
corrected by what it really took. So a tenant that floods the line waits behind its own programs, one
that was idle gets no credit for the past, and with one tenant turns are the order of arrival.

Overtaking is bounded: while a program waits, another tenant's programs that came later go first only
until that tenant's virtual finish has passed this program's start; so by at most that tenant's share of
the service meanwhile, plus one program.
"""

from __future__ import annotations

from dataclasses import dataclass

from agentsched.core import events as ev
from agentsched.core.policies.parts import RankKey
from agentsched.core.state import Program, State


@dataclass(slots=True)
class _Tenant:
    finish: float = 0.0
    latest: float = 0.0  # start of its program that came last: corrections never let one overtake it
    programs: int = 0


class Turns:
    """A learner that numbers programs, and the rank part that follows these numbers."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._turn: dict[str, float] = {}
        self._sizes: dict[str, float] = {}
        self._virtual = 0.0

    def of(self, program: Program) -> tuple[float, int]:
        """The program's place in line; lower goes first."""
        return (self._turn[program.name], program.order)

    def seated(self, program: Program) -> None:
        """The program is given a seat."""
        self._virtual = max(self._virtual, self._turn[program.name])

    def key(self, state: State, program: Program, now: float, *, preempted: bool) -> RankKey | None:
        return RankKey(self._turn[program.name], "by its program's turn")

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        match event:
            case ev.ProgramOpened() if subject is not None:
                self._tenants.setdefault(subject.tenant, _Tenant()).programs += 1
            case ev.CallArrived() if subject is not None and subject.name not in self._turn:
                self._begin(state, subject)
            case ev.ProgramClosed() if subject is not None:
                self._end(subject)
            case _:
                pass

    def _begin(self, state: State, program: Program) -> None:
        tenant = self._tenants[program.tenant]
        first = program.first_prompt_tokens
        final = state.contexts.expected_final_tokens(
            calls_done=0, tokens_now=first, first_prompt_tokens=first
        )
        size = _size(first, final, state.contexts.expected_calls_left(0, first)) / program.weight
        start = tenant.latest = max(self._virtual, tenant.finish, tenant.latest)
        self._turn[program.name], self._sizes[program.name] = start, size
        tenant.finish = start + size

    def _end(self, program: Program) -> None:
        tenant = self._tenants[program.tenant]
        if self._turn.pop(program.name, None) is not None:
            took = _size(program.first_prompt_tokens, program.context_tokens, program.calls_done)
            tenant.finish = max(0.0, tenant.finish + took / program.weight - self._sizes.pop(program.name))
        tenant.programs -= 1
        if not tenant.programs and tenant.finish <= self._virtual:
            del self._tenants[program.tenant]


def _size(first_tokens: float, final_tokens: float, calls: float) -> float:
    """KV token-calls of a program that grows evenly."""
    return calls * (first_tokens + final_tokens) / 2
