"""Whose turn it is: arrival within a tenant, fair shares by weight between tenants, deadlines within bounds.

**Tenants.** Fair queueing over whole programs, by start tags (Goyal, Vin, Cheng 1996). A tenant's tag is
the service that its programs were given, over its weight; who waits for a first seat is served in the
order of tenants' tags. Service is KV token-calls: the context of every call, summed. Whoever is seated
is charged what programs like it take, more once it took more, and what it took when it has ended.
A tenant that comes anew starts at virtual time, which goes on

* to the tag of whoever is seated, and
* by all service over the weights of all tenants that have programs, as fast as a fluid server would
  serve each of them: so newcomers cannot pass one who waits for ever, however many they are.

But it starts at most one program of its own behind whoever stands first. So a tenant that floods the
line waits behind its own programs, one that was idle has no credit for the past, and for tenants i and j
that both have programs in line all the while, with L their largest programs (as they were, or were
thought to be) and E what those programs of theirs that sit were charged wrongly:

    | service_i / weight_i - service_j / weight_j |  <=  (L_i + E_i) / weight_i + (L_j + E_j) / weight_j

**Within a tenant** turns are the order of arrival. A program that lost its seat comes back by its old place.
What a seated program begins (a sub-agent, a fork) stands where that does, for its parent waits for it, and
holds KV meanwhile. It is charged for what it takes as it takes it.

**Deadlines.** A program whose deadline is at stake (``urgency.py``) takes the place of whoever stands first,
the earliest deadline before others, if

* it is one of the ``OVERTAKING`` programs of its tenant that follow the one that waits longest: so while a
  call waits for a seat, at most ``OVERTAKING`` later programs of its tenant get their first seats before it;
* its tenant's tag is beyond that of whoever stands first by one program at most, the largest of all. So
  with L the largest of all tenants', (L / weight_i + L / weight_j) is added to the bound above.

**Trials** (``tryouts.py``) overtake by the same rule, with ``TRIED`` for ``OVERTAKING``, and keep their place
in line. What they take is charged when they end, or with their seat.

**Priorities.** All of this is among tenants of the same priority. Who waits in one of a higher priority is
seated before, however long the others have waited: that is what it is for, and there is no bound.

Far-off deadlines change nothing. When nobody is left, all is forgotten but how long programs live.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from agentsched.core import events as ev
from agentsched.core.policies.parts import RankKey
from agentsched.core.policies.urgency import Urgency
from agentsched.core.state import Program, State

OVERTAKING = 16
TRIED = 8
"""With 64, all start and then wait: at pressure 4 the P99 of the time to first token after tools rose from
7 to 700 s."""
CLAIMS_SEEN = 64
"""Earliest deadlines among which somebody is sought who may overtake: a bound on the time a look takes."""

_Entry = tuple[int, int, Program]
"""(number of the account, order, program)"""


@dataclass(slots=True)
class _Tenant:
    tag: float = 0.0
    latest: float = 0.0
    """Place of its program that was seated last: corrections of the tag let nobody overtake it."""
    weight: float = 1.0
    priority: int = 0
    programs: int = 0
    called: int = 0
    newcomers: int = 0
    """Who waits for a first seat."""
    lines: dict[str, list[_Entry]] = field(default_factory=dict)
    """Who waits, by host of tools ("": without limits), heaps by number; also who went away since."""


@dataclass(slots=True)
class _Account:
    """One live program's, from its first call on. Service in token-calls."""

    number: int
    """Of its tenant's programs, by first call."""
    charged: float
    took: float = 0.0
    waits: bool = False
    place: float | None = None
    """In line, and its rank: fixed when it is first seated."""


class Turns:
    """A learner that keeps the line, and the rank part that follows it."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._accounts: dict[str, _Account] = {}
        self._idle: list[tuple[float, str]] = []
        self._weights = 0.0
        self._live = 0
        self._virtual = 0.0
        self._lined: dict[str, _Tenant] = {}
        """Tenants whose line is not empty."""
        self._pushed = 0
        self._urgency = Urgency()
        self._soon: list[tuple[float, int, Program]] = []
        """Who waits with a deadline, by when it will have a claim."""
        self._claims: dict[str, Program] = {}
        """Who waits with a claim; who lost it since is found out on a look."""
        self._dues: list[tuple[float, int, Program]] = []
        """The same, by deadline."""
        self._largest = 0.0
        """Charge of the largest program."""
        self._full: frozenset[str] = frozenset()
        """Hosts whose lines are passed over."""
        self._first: Program | None = None
        self._front, self._front_priority = 0.0, 0
        """Tag and priority of whoever stood first by tags, when that was looked up last."""
        self._holds_s = -math.inf
        """Until when ``_first`` stands, if nothing happens."""

    # The line

    def first(self, state: State, now: float, full: frozenset[str] = frozenset()) -> Program | None:
        """Who is to be seated next, of those in the state's queue whose hosts are not ``full``."""
        known = self._first is not None and self._first.name in state.queue
        if known and now < self._holds_s and full == self._full:
            return self._first
        self._full = full
        self._first, self._holds_s = self._oldest(state), math.inf
        if self._first is not None and (self._soon or self._dues):
            self._first = self._first_claim(state, now) or self._first
        return self._first

    def standing_first(self, state: State) -> Program | None:
        """Who stood first when that was looked up last, if it still waits."""
        first = self._first
        return None if first is None or state.queue.get(first.name) is not first else first

    def presses(self, program: Program, now: float) -> bool:
        """Whether it waits, and its deadline allows no further delay."""
        lost = now >= self._urgency.claims_until_s(program, now)
        return program.name in self._claims and not lost and self._urgency.presses(program, now)

    def seated(self, program: Program, now: float) -> None:
        """The program is given a seat; it was ``first``."""
        self._holds_s = -math.inf
        self._urgency.seated(program, now)
        claims = self._claims.pop(program.name, None) is not None
        account, tenant = self._accounts[program.name], self._tenants[program.tenant]
        if account.place is None:
            account.place = min(tenant.tag, self._front)
            self._go_on(account.place)
            if not claims:
                account.place = tenant.latest = max(account.place, math.nextafter(tenant.latest, math.inf))
            self._count(tenant, account, waits=False)
            tenant.tag += account.charged / program.weight
            self._largest = max(self._largest, account.charged)

    def of(self, program: Program) -> tuple[float, int]:
        """The place in line of a program that has or had a seat; lower goes first, who is on trial last."""
        place = self._accounts[program.name].place
        return (math.inf if place is None else place, program.order)

    def was_seated(self, program: Program) -> bool:
        """Whether it ever had a seat by its turn."""
        return self._accounts[program.name].place is not None

    def may_try(self, state: State, program: Program) -> bool:
        """Whether a newcomer that waits may begin on trial."""
        return self._may_overtake(state, program, TRIED)

    def tried(self) -> None:
        """Somebody begins on trial, and keeps its place among those who wait for a first seat."""
        self._holds_s = -math.inf

    def key(self, state: State, program: Program, now: float, *, preempted: bool) -> RankKey | None:
        account = self._accounts.get(program.name)
        if account is None or account.place is None:
            return None
        if not state.queue:
            return RankKey(0.0, "nobody waits: first come, first served")
        return RankKey(account.place, "by its program's turn")

    def _oldest(self, state: State) -> Program | None:
        """Who stands first, deadlines apart."""
        best: tuple[int, float, int, Program] | None = None
        for name, tenant in list(self._lined.items()):
            head = self._head(state, tenant)
            if not tenant.lines:
                del self._lined[name]
            if head is None:
                continue
            at = (-tenant.priority, self._tag(head, tenant), head.order)
            if best is None or at < best[:3]:
                best = (*at, head)
        if best is None:
            return None
        self._front_priority, self._front = -best[0], best[1]
        return best[3]

    def _head(self, state: State, tenant: _Tenant) -> Program | None:
        """Who of the tenant waits longest, by first calls, but for full hosts."""
        heads: list[_Entry] = []
        for host, line in list(tenant.lines.items()):
            while line and state.queue.get(line[0][-1].name) is not line[0][-1]:
                heapq.heappop(line)
            if not line:
                del tenant.lines[host]
            elif host not in self._full:
                heads.append(line[0])
        return min(heads)[-1] if heads else None

    def _tag(self, program: Program, tenant: _Tenant) -> float:
        place = self._accounts[program.name].place
        return tenant.tag if place is None else place

    def _first_claim(self, state: State, now: float) -> Program | None:
        """Who takes the place of whoever stands first."""
        while self._soon and self._soon[0][0] <= now:
            _, order, program = heapq.heappop(self._soon)
            if program.due_s is not None:
                self._claims[program.name] = program
                heapq.heappush(self._dues, (program.due_s, order, program))
        self._holds_s = self._soon[0][0] if self._soon else math.inf
        seen: list[tuple[float, int, Program]] = []
        found: Program | None = None
        while self._dues and found is None and len(seen) < CLAIMS_SEEN:
            due = heapq.heappop(self._dues)
            program, until_s = due[2], self._urgency.claims_until_s(due[2], now)
            if until_s <= now or state.queue.get(program.name) is not program:
                self._claims.pop(program.name, None)
                continue
            seen.append(due)
            self._holds_s = min(self._holds_s, until_s)
            if self._may_overtake(state, program, OVERTAKING):
                found = program
        for due in seen:
            heapq.heappush(self._dues, due)
        return found

    def _may_overtake(self, state: State, program: Program, many: int) -> bool:
        """Whether it is among the next ``many`` of its tenant, and the tenant's turn is not far off."""
        account, tenant = self._accounts[program.name], self._tenants[program.tenant]
        head = self._head(state, tenant)
        if head is None or _host(state, program) in self._full or tenant.priority < self._front_priority:
            return False
        if account.number > self._accounts[head.name].number + many:
            return False
        return (
            self._tag(program, tenant) <= self._front + max(self._largest, account.charged) / program.weight
        )

    # What is seen

    def observe(self, state: State, now: float, event: ev.AnyEvent, subject: Program | None) -> None:
        match event:
            case ev.CallStarted() | ev.FirstToken():
                pass
            case ev.CallArrived() if subject is not None:
                if subject.name not in self._accounts:
                    self._begin(state, subject)
                if subject.seat is None:
                    self._wait(state, subject, now)
            case ev.CallFinished() if subject is not None:
                self._serve(subject, event.prompt_tokens + event.output_tokens)
            case ev.ProgramOpened() if subject is not None:
                self._open(subject)
            case ev.ProgramRestored() if subject is not None and subject.calls_done:
                self._begin(state, subject)  # so that it comes before whoever is new
            case ev.CallAborted() if subject is not None and subject.name not in state.queue:
                self._count(self._tenants[subject.tenant], self._accounts[subject.name], waits=False)
            case ev.ProgramClosed() if subject is not None:
                self._end(subject, now)
            case ev.EngineLost() | ev.HostAttached() | ev.HostLost():
                self._line_up(state, now)
            case ev.ProgramAnnotated() if subject is not None and subject.name in state.queue:
                self._line_up(state, now)  # its deadline may be another one
            case _:
                pass

    def _open(self, program: Program) -> None:
        tenant = self._tenants.setdefault(program.tenant, _Tenant())
        self._live += 1
        tenant.programs += 1
        if tenant.programs > 1:
            self._weights -= tenant.weight
        tenant.weight, tenant.priority = program.weight, program.priority
        self._weights += tenant.weight

    def _begin(self, state: State, program: Program) -> None:
        tenant = self._tenants[program.tenant]
        parent = state.programs.get(program.parent)
        family = self._accounts.get(program.parent)
        if parent is None or family is None or parent.tenant != program.tenant:
            tenant.called += 1
            number, place = tenant.called, None
        else:
            number, place = family.number, family.place
        if place is not None:
            self._accounts[program.name] = _Account(number, 0.0, place=place)
            return
        first = program.first_prompt_tokens
        final = state.contexts.expected_final_tokens(
            calls_done=0, tokens_now=first, first_prompt_tokens=first
        )
        calls = state.contexts.expected_calls_left(0, first)
        self._accounts[program.name] = _Account(number, calls * (first + final) / 2)

    def _wait(self, state: State, program: Program, now: float) -> None:
        if self._pushed > 2 * len(state.queue) + 64:
            self._line_up(state, now)
        account, tenant = self._accounts[program.name], self._tenants[program.tenant]
        if account.place is None and not tenant.newcomers:
            self._come_anew(state, tenant, account.charged / program.weight)
        self._count(tenant, account, waits=account.place is None)
        self._push(state, program, now)

    def _come_anew(self, state: State, tenant: _Tenant, size: float) -> None:
        """The tenant has somebody in line again; ``size`` over its weight."""
        others = self._oldest(state)
        start = self._virtual if others is None else min(self._virtual, self._front + size)
        tenant.tag = max(tenant.tag, start)

    def _push(self, state: State, program: Program, now: float) -> None:
        tenant = self._tenants[program.tenant]
        self._pushed += 1
        self._holds_s = -math.inf
        self._lined[program.tenant] = tenant
        line = tenant.lines.setdefault(_host(state, program), [])
        heapq.heappush(line, (self._accounts[program.name].number, program.order, program))
        if program.due_s is not None:
            from_s = self._urgency.claims_from_s(program, now)
            heapq.heappush(self._soon, (from_s, program.order, program))

    def _line_up(self, state: State, now: float) -> None:
        """The line anew, of those who wait."""
        for tenant in self._lined.values():
            tenant.lines.clear()
        self._lined.clear()
        self._soon.clear()
        self._dues.clear()
        self._claims.clear()
        self._pushed = 0
        for program in state.waiting():
            if program.name in self._accounts:
                self._push(state, program, now)

    def _count(self, tenant: _Tenant, account: _Account, *, waits: bool) -> None:
        tenant.newcomers += waits - account.waits
        account.waits = waits

    def _serve(self, program: Program, tokens: int) -> None:
        account = self._accounts[program.name]
        account.took += tokens
        self._go_on(self._virtual + tokens / self._weights)
        if account.place is not None and account.took > account.charged:
            self._charge(program, account)

    def _charge(self, program: Program, account: _Account) -> None:
        """What it took so far instead of what it was thought to take."""
        self._holds_s = -math.inf
        tenant = self._tenants[program.tenant]
        tenant.tag = max(0.0, tenant.tag + (account.took - account.charged) / program.weight)
        account.charged = account.took
        self._largest = max(self._largest, account.charged)

    def _end(self, program: Program, now: float) -> None:
        tenant = self._tenants[program.tenant]
        account = self._accounts.pop(program.name, None)
        self._urgency.ended(program, now)
        if account is not None:
            self._count(tenant, account, waits=False)
            if account.place is None:
                account.charged = 0.0
            self._charge(program, account)
        self._live -= 1
        tenant.programs -= 1
        if not tenant.programs:
            self._weights -= tenant.weight
            heapq.heappush(self._idle, (tenant.tag, program.tenant))
        if not self._live:
            self._virtual = self._weights = self._largest = 0.0
            for each in (self._tenants, self._lined, self._idle, self._soon, self._dues, self._claims):
                each.clear()

    def _go_on(self, virtual: float) -> None:
        """Virtual time has come so far; idle tenants that owe nothing any more are forgotten."""
        self._virtual = max(self._virtual, virtual)
        while self._idle and self._idle[0][0] <= self._virtual:
            _, name = heapq.heappop(self._idle)
            tenant = self._tenants.get(name)
            if tenant is not None and not tenant.programs and tenant.tag <= self._virtual:
                del self._tenants[name]


def _host(state: State, program: Program) -> str:
    """Whose line the program stands in: its host's, or "" where no host limits it."""
    return program.host if program.host in state.hosts else ""
