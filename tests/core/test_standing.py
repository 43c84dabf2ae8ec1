"""Standing orders: idempotent, leased, and harmless when absent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core.decisions import EngineOrder, EngineTerms, Rank, Release, Retain, Segment, Worth
from agentsched.core.standing import StandingOrders, victim_key


def retain(program: str, value: float, *, until_s: float = 10.0, seq: int = 1, epoch: int = 1) -> Retain:
    worth = (Worth(until_s=until_s / 2, value=value), Worth(until_s=until_s, value=value / 2))
    segment = Segment(start_tokens=0, end_tokens=100, device=worth)
    return Retain(
        cause=1, epoch=epoch, seq=seq, program=program, engine="e", segments=(segment,), lease_until_s=until_s
    )


def test_no_orders_is_stock_lru_and_fcfs() -> None:
    orders = StandingOrders()
    assert orders.device_value("p", 0, 0.0) == 0.0
    assert orders.rank("p") == 0.0
    oldest_tail = victim_key(0.0, 64, 1.0)
    assert oldest_tail < victim_key(0.0, 48, 1.0) < victim_key(0.0, 999, 2.0)


def test_value_falls_in_steps_and_ends_with_the_lease() -> None:
    orders = StandingOrders()
    orders.apply(retain("p", 8.0))
    assert [orders.device_value("p", 0, now) for now in (0.0, 5.0, 9.9, 10.0)] == [8.0, 4.0, 4.0, 0.0]
    assert orders.device_value("p", 100, 0.0) == 0.0, "past the segment"
    orders.expire(10.0)
    assert orders.break_lease(0.0) is None


def test_a_stuck_engine_breaks_the_lease_worth_least_and_the_newest_of_equals() -> None:
    orders = StandingOrders()
    for seq, (program, value) in enumerate([("a", 5.0), ("b", 1.0), ("c", 1.0)], 1):
        orders.apply(retain(program, value, seq=seq))
    assert [orders.break_lease(0.0) for _ in range(4)] == ["c", "b", "a", None]


def test_a_newer_epoch_supersedes_everything_older() -> None:
    orders = StandingOrders()
    orders.apply(retain("p", 8.0, seq=50))
    assert orders.apply(Rank(cause=1, epoch=2, seq=1, program="q", engine="e", key=3.0))
    assert orders.device_value("p", 0, 0.0) == 0.0
    assert not orders.apply(retain("p", 8.0, seq=51, epoch=1))
    assert orders.rank("q") == 3.0


PROGRAMS = st.sampled_from(["a", "b"])


@st.composite
def order_lists(draw: st.DrawFn) -> list[EngineOrder]:
    """Orders numbered in the sequence in which the core gave them."""
    orders: list[EngineOrder] = []
    for seq in range(1, draw(st.integers(1, 12)) + 1):
        kind, program = draw(st.integers(0, 3)), draw(PROGRAMS)
        value = draw(st.floats(0, 9))
        match kind:
            case 0:
                orders.append(retain(program, value, seq=seq))
            case 1:
                orders.append(Rank(cause=1, epoch=1, seq=seq, program=program, engine="e", key=value))
            case 2:
                orders.append(Release(cause=1, epoch=1, seq=seq, program=program, engine="e"))
            case _:
                orders.append(EngineTerms(cause=1, epoch=1, seq=seq, engine="e", device_price=value))
    return orders


def view(orders: StandingOrders) -> tuple[object, ...]:
    return (
        orders.terms,
        [(orders.rank(p), orders.device_value(p, 0, 1.0), orders.device_value(p, 0, 7.0)) for p in "ab"],
    )


@given(given_orders=order_lists(), data=st.data())
def test_orders_sent_twice_or_late_are_harmless(given_orders: list[EngineOrder], data: st.DataObject) -> None:
    once, shuffled = StandingOrders(), StandingOrders()
    for order in given_orders:
        once.apply(order)
    for order in data.draw(st.permutations([*given_orders, *given_orders])):
        shuffled.apply(order)
    assert view(once) == view(shuffled)


def test_segments_are_checked_when_they_are_made() -> None:
    with pytest.raises(ValueError, match="rising"):
        Segment(start_tokens=0, end_tokens=1, device=(Worth(until_s=2, value=1), Worth(until_s=1, value=1)))
    with pytest.raises(ValueError, match="at most 8"):
        Segment(start_tokens=0, end_tokens=1, device=tuple(Worth(until_s=i, value=1) for i in range(1, 10)))
    with pytest.raises(ValueError, match="empty"):
        Segment(start_tokens=5, end_tokens=5, device=())
    with pytest.raises(ValueError, match="value"):
        Worth(until_s=1.0, value=float("nan"))


def test_until_when_it_is_worth_more_than_a_price() -> None:
    orders = StandingOrders()
    assert orders.worth_until("p", 1.0, 3.0) == 3.0
    orders.apply(retain("p", 8.0))  # 8 until 5, then 4 until 10
    assert [orders.worth_until("p", above, 1.0) for above in (9.0, 8.0, 6.0, 4.0, 1.0)] == [1, 1, 5, 5, 10]
    assert orders.worth_until("p", 1.0, 10.0) == 10.0
    orders.apply(retain("q", 8.0, until_s=20.0, seq=2))
    assert orders.worth_until("q", 1.0, 12.0) == 20.0
