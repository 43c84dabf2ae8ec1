"""Memory peaks by key: prior, fallbacks, a program's own history, and garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.graphs.memory import FEW, OWN_PEAKS, PRIOR_BYTES, MemoryModel

MB = 10**6


def test_the_prior_answers_until_something_is_known() -> None:
    model = MemoryModel()
    assert model.peak_bytes("bash:pytest") == PRIOR_BYTES
    assert model.next_peak_bytes(()) == PRIOR_BYTES


def test_a_key_stands_alone_once_it_has_samples_and_its_tool_answers_before() -> None:
    model = MemoryModel()
    for _ in range(FEW):
        model.observe("bash:pytest", 900 * MB)
    assert model.peak_bytes("bash:pytest") == 900 * MB
    assert model.peak_bytes("bash:make") == 900 * MB, "of the same tool"
    for _ in range(30):
        model.observe("read", 1 * MB)
    assert model.peak_bytes("bash:make") == 900 * MB
    assert model.peak_bytes("edit") < 900 * MB, "of all tools together"


def test_a_high_quantile_counts_not_the_mean() -> None:
    model = MemoryModel()
    for number in range(100):
        model.observe("bash", number * MB)
    assert 85 * MB <= model.peak_bytes("bash") <= 95 * MB


def test_what_a_program_used_before_it_will_use_again() -> None:
    model = MemoryModel()
    for _ in range(20):
        model.observe("bash", 100 * MB)
    assert model.next_peak_bytes([2000 * MB]) == 2000 * MB
    assert model.next_peak_bytes([1 * MB]) == 100 * MB, "one small call says little"
    assert model.next_peak_bytes([1 * MB] * OWN_PEAKS) == 1 * MB


@given(st.lists(st.tuples(st.text(max_size=5), st.integers(0, 10**18)), max_size=50))
def test_it_is_bounded_by_what_it_saw(samples: list[tuple[str, int]]) -> None:
    model = MemoryModel()
    for tool, peak in samples:
        model.observe(tool, peak)
    for tool, _ in samples:
        assert 0 <= model.peak_bytes(tool) <= max(PRIOR_BYTES, *(peak for _, peak in samples))


def test_negative_peaks_are_refused() -> None:
    with pytest.raises(ValueError, match="peak_bytes"):
        MemoryModel().observe("bash", -1)


def test_what_an_agent_states_counts_where_nothing_was_seen_and_never_for_less_than_was_seen() -> None:
    model = MemoryModel()
    for _ in range(10):
        model.observe("other", 9_000)
    assert model.peak_bytes("bash:make", stated=50) == 50
    for _ in range(3):
        model.observe("bash:make", 700)
    assert model.peak_bytes("bash:make", stated=50) == 700
    assert model.peak_bytes("bash:make", stated=2_000) == 2_000
    assert model.peak_bytes("bash:make") == 700
