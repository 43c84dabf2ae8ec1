"""Stop strings end a text exactly where they begin, however the text is cut into pieces."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentsched.daemon.stopping import StopStrings

letters = st.text("ab", max_size=12)


@given(st.lists(letters, max_size=8), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_pieces_give_what_the_whole_would(pieces: list[str], stops: list[str]) -> None:
    cutting = StopStrings(stops)
    passed = ""
    for piece in pieces:
        passed += cutting.feed(piece)
        if cutting.hit:
            break
    if not cutting.hit:
        passed += cutting.finish()
    whole = "".join(pieces)
    assert cutting.hit == any(stop in whole for stop in stops)
    # Which of two overlapping stops is complete first may depend on the cut; none is ever passed on.
    assert whole.startswith(passed)
    assert not any(stop in passed for stop in stops)
    if not cutting.hit:
        assert passed == whole


def test_text_is_passed_on_as_soon_as_it_cannot_be_a_stop() -> None:
    cutting = StopStrings(["END"])
    assert cutting.feed("some E") == "some "
    assert cutting.feed("vening EN") == "Evening "
    assert cutting.feed("D and more") == ""
    assert cutting.hit
