"""The ledger's books, whatever changes between two looks at a program."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core import events as ev
from agentsched.core.forecast import Forecast
from agentsched.core.ledger import Ledger
from agentsched.core.policies.seats import Seats
from agentsched.core.state import EngineState, Program
from tests.core.harness import Harness

CAPACITY = 100_000
CHANGES = st.lists(
    st.tuples(
        st.integers(0, 4),  # program
        st.sampled_from(["put", "drop"]),
        st.integers(0, 9_000),  # tokens
        st.sampled_from([0, 1_000, 2_000]),  # shared
        st.one_of(st.none(), st.floats(0, 50)),  # leaves
    ),
    max_size=60,
)


def ledger() -> Ledger:
    return Ledger(EngineState("e0", CAPACITY, CAPACITY))


@given(CHANGES)
def test_need_and_room_are_those_of_who_sits_there(
    changes: list[tuple[int, str, int, int, float | None]],
) -> None:
    book, programs = ledger(), [Program(f"p{n}", "t", n, 0.0) for n in range(5)]
    seated: dict[str, tuple[int, int]] = {}
    for who, what, tokens, shared, leaves_s in changes:
        program = programs[who]
        program.shared_tokens = shared  # learned after the program was seated, perhaps
        if what == "put":
            book.put(program, Forecast(tokens, 10.0, 3.0), leaves_s, 1.0)
            seated[program.name] = (tokens, shared)
        else:
            book.drop(program, 1.0)
            seated.pop(program.name, None)
        assert len(book) == len(seated)
        assert book.need_tokens == sum(tokens for tokens, _ in seated.values())
        assert book.room_tokens == CAPACITY - sum({shared for _, shared in seated.values()})


def test_amounts_nearly_alike_are_shared_and_parts_of_each_other_leave_half_of_the_room() -> None:
    book = ledger()

    def seat(number: int, shared_tokens: int) -> int:
        program = Program(f"p{number}", "t", number, 0.0)
        program.shared_tokens = shared_tokens
        book.put(program, Forecast(1_000, 0.0, 1.0), None, 0.0)
        return book.room_tokens

    assert [seat(0, 20_000), seat(1, 20_160), seat(2, 10_000)] == [80_000, 79_840, 69_840]
    assert [seat(3, 15_000), seat(4, 17_000)] == [54_840, 50_000]
    assert seat(5, 60_000) == 40_000


def test_a_gap_that_ended_or_began_anew_does_not_leave_by_its_old_time() -> None:
    book, program = ledger(), Program("p", "t", 1, 0.0)
    forecast = Forecast(1_000, 0.0, 1.0)
    book.put(program, forecast, 10.0, 0.0)
    book.put(program, forecast, 30.0, 5.0)
    assert not book.leave("p", 10.0)
    assert list(book.leavers()) == []
    assert book.leave("p", 30.0)
    assert list(book.leavers()) == ["p"]
    book.put(program, forecast, None, 31.0)
    assert list(book.leavers()) == []


def test_kv_is_dear_while_programs_compute_and_cheap_while_they_are_away() -> None:
    busy, away = ledger(), ledger()
    program, forecast = Program("p", "t", 1, 0.0), Forecast(1_000, 0.0, 1.0)
    for second in range(600):
        busy.put(program, forecast, None, float(second))
        away.put(program, forecast, 1e9, float(second))
    assert busy.active_share == pytest.approx(1.0, abs=0.01)
    assert away.active_share == pytest.approx(0.0, abs=0.01)
    assert away.price() > 10 * busy.price(), "away: what stands still during a prefill is little"


def test_what_a_program_shares_counts_from_when_its_first_call_begins() -> None:
    harness = Harness("agentsched")
    seats = harness.core.policy.admission
    assert isinstance(seats, Seats)
    harness.arrive(harness.open(), 6_000)
    assert seats._ledgers["e0"].need_tokens == 6_000
    harness.post(ev.CallStarted(call="c1", cached_tokens=4_000))
    assert seats._ledgers["e0"].need_tokens == 2_000
