"""The scheduling core: events in, decisions out.

It opens nothing, sleeps never, reads no clock, holds no lock and draws no random number; hosts (the
daemon on a real clock, the simulator on a virtual one) drive it unchanged. One call of ``handle``

1. numbers the event and applies it to the state (``state.py``), or raises ``IllegalEvent`` and has
   changed nothing;
2. lets the policy learn from it;
3. asks the policy's parts what follows: retention for the program whose gap began or changed, ranks
   where they changed, and admission last, since it depends on everything else;
4. where the policy only watches, lets through whom it would keep waiting.

The same events in the same order give the same decisions: that is what replay rests on.
"""

from __future__ import annotations

from collections import Counter

from agentsched.core import events as ev
from agentsched.core.decisions import AnyDecision
from agentsched.core.expiry import Expiry
from agentsched.core.orders import Numbering, Orders
from agentsched.core.policies.parts import Policy
from agentsched.core.state import IllegalEvent, Program, State

WATCHES = "the policy only watches"


class Core:
    """One scheduler for a set of engines. ``epoch`` fences it off from cores that came before."""

    def __init__(self, policy: Policy, *, epoch: int = 1) -> None:
        self.policy = policy
        self.state = State()
        self._numbering = Numbering(epoch)
        self._engaged = True
        self._ranks: dict[str, float] = {}
        """What engines were told last; nothing is sent twice."""
        self._now = float("-inf")

    @property
    def engaged(self) -> bool:
        """Whether what the policy decides is to be carried out."""
        return self._engaged

    def handle(self, now: float, event: ev.AnyEvent) -> list[AnyDecision]:
        """Take one event at ``now`` (monotonic seconds) and answer what is to be done, in order.

        Raises ``IllegalEvent`` for what cannot be (an unknown program, time running backwards); the
        core is unchanged then and goes on.
        """
        if now < self._now:
            raise IllegalEvent(f"time runs backwards: {now} after {self._now}")
        state, policy = self.state, self.policy
        subject = state.apply(now, event)
        self._now = now
        self._numbering.cause += 1
        for learner in policy.learners:
            learner.observe(state, now, event, subject)
        arriving = event.call if type(event) is ev.CallArrived else None
        orders = Orders(state, self._numbering, now, arriving, engaged=self._engaged)
        self._follow(orders, event, subject)
        policy.admission.review(state, orders)
        if orders.paused or orders.admitted:
            self._moved(orders)
        if not self._engaged:
            self._let_all_through(orders)
        return orders.decided

    def _moved(self, orders: Orders) -> None:
        """Programs have lost or got their seats: what follows for their KV, and in the engine."""
        for program, engine in orders.paused:
            if not program.foreground and self._retains(engine):
                self.policy.retention.paused(self.state, orders, program, engine)
        for program in orders.admitted:  # what the engine knew was released with the last seat
            self._ranks.pop(program.name, None)
            self._rank(orders, program)

    def next_wakeup(self) -> float | None:
        """When the core wants a ``Woken`` event, monotonic seconds; None if it waits for nothing."""
        return self.policy.admission.next_review_s(self.state)

    def expired(self, now: float, expiry: Expiry) -> list[str]:
        """Programs that are taken to have ended without a word; the host closes them, ``expired``."""
        return expiry.expired(self.state, now)

    def check_invariants(self) -> None:
        """Raises AssertionError if the core's own books disagree."""
        self.state.check_invariants()
        for books in self.policy.books:
            books.check_invariants(self.state)

    def _follow(self, orders: Orders, event: ev.AnyEvent, subject: Program | None) -> None:
        match event:
            case ev.CallStarted() | ev.FirstToken():
                pass
            case ev.CallArrived() if subject is not None:
                if subject.seat is not None:
                    self._rank(orders, subject)
                    if self._retains(subject.seat):
                        self.policy.retention.returned(self.state, orders, subject)
            case ev.CallFinished() | ev.CallAborted() | ev.ToolStarted() | ev.ToolProgressed() if subject:
                if subject.seat is not None and subject.in_gap and self._retains(subject.seat):
                    self.policy.retention.away(self.state, orders, subject)
            case ev.EngineAttached():
                if event.retention:
                    self.policy.retention.terms(orders, event.engine)
            case ev.PolicyEngaged() if event.engaged != self._engaged:
                self._engage(orders, engaged=event.engaged)
            case ev.StepReport():
                for name in event.preempted:
                    if name in self.state.programs:
                        self._rank(orders, self.state.programs[name], preempted=True)
                if event.snapshot:
                    self._take_over(orders, event)
            case ev.ProgramClosed() if subject is not None:
                self._ranks.pop(subject.name, None)
                if subject.home is not None:
                    orders.release(subject, subject.home, "the program ended")

    def _retains(self, engine: str | None) -> bool:
        """Whether the engine is there, and heeds what KV is worth."""
        known = None if engine is None else self.state.engines.get(engine)
        return known is not None and known.retention

    def _take_over(self, orders: Orders, report: ev.StepReport) -> None:
        """The engine holds KV from before it was attached here: say anew what that is worth. The first
        order of this epoch ends all that earlier cores ordered."""
        for held in report.held:
            program = self.state.programs.get(held.program)
            if program is None:
                orders.forget(held.program, report.engine, "nobody knows this program any more")
            elif program.home == report.engine and not program.foreground and self._retains(report.engine):
                self.policy.retention.paused(self.state, orders, program, report.engine)

    def _engage(self, orders: Orders, *, engaged: bool) -> None:
        """Tell engines all that they are to know, or that it holds no more."""
        self._engaged = engaged
        self._ranks.clear()
        orders.engaged = True
        for engine in self.state.engines:
            if engaged and self._retains(engine):
                self.policy.retention.terms(orders, engine)
            elif not engaged:
                orders.terms(engine, WATCHES)
        for program in list(self.state.programs.values()):
            if not engaged and program.home is not None:
                orders.release(program, program.home, WATCHES)
            elif engaged:
                self._rank(orders, program)
                if program.in_gap and program.foreground and self._retains(program.seat):
                    self.policy.retention.away(self.state, orders, program)
        orders.engaged = engaged

    def _let_all_through(self, orders: Orders) -> None:
        """Calls that would wait: to the engine that computed their program last, else the one with the
        fewest calls."""
        waiting = self.state.waiting()
        if not waiting or not self.state.engines:
            return
        calls = Counter(self.state.programs[call.program].home for call in self.state.calls.values())
        for program in waiting:
            engine = program.home or min(self.state.engines, key=lambda name: (calls[name], name))
            calls[engine] += 1
            orders.let_through(program, engine, f"{WATCHES}; else it would wait")

    def _rank(self, orders: Orders, program: Program, *, preempted: bool = False) -> None:
        if program.seat is None:
            return
        key = self.policy.rank.key(self.state, program, orders.now, preempted=preempted)
        if key is not None and self._ranks.get(program.name, 0.0) != key.value:
            self._ranks[program.name] = key.value
            orders.rank(program, program.seat, key.value, key.reason)
