"""Pins that are on or off, from orders that say what KV is worth over time."""

from __future__ import annotations

from typing import Any

from agentsched.core.decisions import YIELDS, EngineTerms, Release, Retain, Segment, Worth
from agentsched.core.standing import StandingOrders
from agentsched.engines.upstream.soft_pins import SETTLE_S, SoftPins


class Pins:
    """Orders by hand."""

    def __init__(self) -> None:
        self.orders = StandingOrders()
        self.pins = SoftPins(self.orders)
        self._seq = 0

    def _stamp(self) -> dict[str, Any]:
        self._seq += 1
        return {"engine": "e", "cause": 1, "epoch": 1, "seq": self._seq}

    def terms(self, now: float) -> None:
        self._apply(EngineTerms(**self._stamp()), now)

    def retain(self, program: str, *steps: tuple[float, float], now: float, lease_s: float = 1e9) -> None:
        worths = tuple(Worth(until_s=until_s, value=value) for until_s, value in steps)
        segment = Segment(start_tokens=0, end_tokens=100, device=worths)
        order = Retain(program=program, segments=(segment,), lease_until_s=lease_s, **self._stamp())
        self._apply(order, now)

    def release(self, program: str, now: float) -> None:
        self._apply(Release(program=program, **self._stamp()), now)

    def _apply(self, order: Any, now: float) -> None:
        assert self.orders.apply(order)
        self.pins.ordered([order], now)


def test_a_session_is_open_while_its_program_is_away_and_closed_when_that_is_worth_nothing_more() -> None:
    it = Pins()
    it.pins.began("p")
    it.pins.ended("p", 10.0)
    it.retain("p", (20.0, 5.0), (30.0, 1.0), now=10.0)
    assert it.pins.closing(10.0) == []
    assert it.pins.next_s() in (10.0 + SETTLE_S, 30.0)
    assert it.pins.closing(29.9) == []
    assert it.pins.next_s() == 30.0
    assert it.pins.closing(30.0) == ["p"]
    assert it.pins.closing(99.0) == []
    assert len(it.pins) == 0


def test_a_lease_ends_it_earlier() -> None:
    it = Pins()
    it.pins.began("p")
    it.pins.ended("p", 0.0)
    it.retain("p", (60.0, 5.0), now=0.0, lease_s=40.0)
    assert it.pins.closing(39.0) == []
    assert it.pins.closing(40.0) == ["p"]


def test_what_yields_to_new_calls_is_not_pinned() -> None:
    """As the KV of programs that are paused."""
    it = Pins()
    it.pins.began("p")
    it.pins.ended("p", 0.0)
    it.retain("p", (60.0, YIELDS), now=0.1)
    assert it.pins.closing(0.1) == ["p"]


def test_nothing_is_closed_while_a_call_runs() -> None:
    it = Pins()
    it.pins.began("p")
    it.pins.began("p")
    it.pins.ended("p", 1.0)
    it.release("p", 2.0)
    assert it.pins.closing(100.0) == []
    it.pins.ended("p", 101.0)
    assert it.pins.closing(101.0) == []
    assert it.pins.closing(101.0 + SETTLE_S) == ["p"]


def test_who_is_released_or_never_retained_is_closed() -> None:
    it = Pins()
    for program in ("released", "forgotten"):
        it.pins.began(program)
        it.pins.ended(program, 0.0)
    it.retain("released", (600.0, 5.0), now=0.0)
    it.release("released", 0.1)
    assert it.pins.closing(0.1) == ["released"]
    assert it.pins.closing(SETTLE_S) == ["forgotten"]


def test_a_program_that_comes_back_has_a_session_again() -> None:
    it = Pins()
    it.pins.began("p")
    it.pins.ended("p", 0.0)
    assert it.pins.closing(1.0) == ["p"]
    it.pins.began("p")
    it.pins.ended("p", 2.0)
    it.retain("p", (50.0, 5.0), now=2.0)
    assert it.pins.closing(49.0) == []
    assert it.pins.closing(50.0) == ["p"]


def test_pins_are_used_only_where_something_is_retained_since_the_terms_were_set() -> None:
    it = Pins()
    it.terms(0.0)
    assert not it.pins.used
    it.retain("p", (50.0, 5.0), now=1.0)
    assert it.pins.used
    it.release("p", 2.0)
    assert it.pins.used
    it.terms(3.0)  # the policy watches from here on
    assert not it.pins.used


def test_orders_that_are_replaced_do_not_pile_up() -> None:
    it = Pins()
    it.pins.began("p")
    it.pins.ended("p", 0.0)
    for number in range(1_000):
        it.retain("p", (1e6 + number, 5.0), now=1.0 + number)
        it.pins.closing(1.0 + number)
    assert len(it.pins._due) < 200
    assert it.pins.closing(1e6 + 998.0) == []
    assert it.pins.closing(1e6 + 999.0) == ["p"]


def test_a_session_of_an_earlier_daemon_is_closed_when_its_program_is_released() -> None:
    it = Pins()
    it.release("theirs", 1.0)
    assert it.pins.closing(1.0) == ["theirs"]
    assert len(it.pins) == 0
