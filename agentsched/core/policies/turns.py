"""Whose turn it is: order of arrival within a tenant, fair shares by weight between tenants.

Fair queueing over whole programs, by start tags (Goyal, Vin, Cheng 1996). A program's turn is

    start = max(virtual time, finish of its tenant's program before it)
    finish = start + size / weight of the tenant

where size is the KV token-calls that the program is expected to take (its mean context times its
calls). When it ends, its tenant's finish is corrected by what it really took, and virtual time goes on by
that, over the weights of all tenants that have programs: as fast as a fluid server would serve each of
them. So a tenant that floods the line waits behind its own programs, one that was idle has no credit
for the past, newcomers cannot pass one who waits for ever, however many tenants they are, and with one
tenant turns are the order of arrival. When nobody is left, all is forgotten.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from agentsched.core import events as ev
from agentsched.core.policies.parts import RankKey
from agentsched.core.state import Program, State


@dataclass(slots=True)
class _Tenant:
    finish: float = 0.0
    latest: float = 0.0  # start of its program that came last: corrections never let one overtake it
    programs: int = 0
    weight: float = 1.0


class Turns:
    """A learner that numbers programs, and the rank part that follows these numbers."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._idle: list[tuple[float, str]] = []
        self._turn: dict[str, float] = {}
        self._sizes: dict[str, float] = {}
        self._weights = 0.0
        self._live = 0
        self._virtual = 0.0

    def of(self, program: Program) -> tuple[float, int]:
        """The program's place in line; lower goes first."""
        return (self._turn[program.name], program.order)

    def seated(self, program: Program) -> None:
        """The program is given a seat."""
        self._go_on(self._turn[program.name])

    def key(self, state: State, program: Program, now: float, *, preempted: bool) -> RankKey | None:
        turn = self._turn.get(program.name)
        return None if turn is None else RankKey(turn, "by its program's turn")

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        match event:
            case ev.ProgramOpened() if subject is not None:
                self._open(subject)
            case ev.CallArrived() if subject is not None and subject.name not in self._turn:
                self._begin(state, subject)
            case ev.ProgramClosed() if subject is not None:
                self._end(subject)
            case _:
                pass

    def _open(self, program: Program) -> None:
        tenant = self._tenants.setdefault(program.tenant, _Tenant())
        self._live += 1
        tenant.programs += 1
        if tenant.programs > 1:
            self._weights -= tenant.weight
        tenant.weight = program.weight
        self._weights += tenant.weight

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
            self._go_on(self._virtual + took / self._weights)
        self._live -= 1
        tenant.programs -= 1
        if not tenant.programs:
            self._weights -= tenant.weight
            heapq.heappush(self._idle, (max(tenant.finish, tenant.latest), program.tenant))
        if not self._live:
            self._virtual = self._weights = 0.0
            self._tenants.clear()
            self._idle.clear()

    def _go_on(self, virtual: float) -> None:
        """Virtual time has come so far; idle tenants that owe nothing any more are forgotten."""
        self._virtual = max(self._virtual, virtual)
        while self._idle and self._idle[0][0] <= self._virtual:
            _, name = heapq.heappop(self._idle)
            tenant = self._tenants.get(name)
            if tenant is None or tenant.programs:
                continue
            if max(tenant.finish, tenant.latest) <= self._virtual:
                del self._tenants[name]


def _size(first_tokens: float, final_tokens: float, calls: float) -> float:
    """KV token-calls of a program that grows evenly."""
    return calls * (first_tokens + final_tokens) / 2
