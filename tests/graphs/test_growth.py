"""Growth of programs: laws for any input, what is learned from whom, and calibration of the quantiles."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.graphs.growth import CALL_EDGES, TOKEN_EDGES, ContextModel
from agentsched.graphs.lifetable import MEMORY, Ahead, LifeTable

ended = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 100_000), st.integers(0, 200_000)), max_size=30)
garbage = st.sampled_from([math.inf, -math.inf, math.nan, -1.0, -1e-9, 1e300])


def taught(programs: list[tuple[int, int, int]]) -> ContextModel:
    model = ContextModel()
    for calls, first, final in programs:
        model.observe_program(calls=calls, first_prompt_tokens=first, final_tokens=final)
    return model


@dataclass
class Run:
    """A program that makes ``calls`` calls and gains ``step`` tokens at each."""

    name: str
    calls: int
    first: int
    step: int
    done: int = 0

    @property
    def tokens(self) -> int:
        return self.first + self.step * self.done

    def tell(self, model: ContextModel) -> None:
        """One further call is done."""
        self.done += 1
        model.observe_call(
            self.name, calls_done=self.done, tokens_now=self.tokens, first_prompt_tokens=self.first
        )

    def end(self, model: ContextModel) -> None:
        model.observe_program(
            calls=self.calls, first_prompt_tokens=self.first, final_tokens=self.tokens, program=self.name
        )


def drawn(rng: random.Random, number: int) -> Run:
    """Calls log-normal around 20; two kinds of agent that begin and grow unlike."""
    kind = number % 2
    calls = max(1, round(rng.lognormvariate(3.0, 0.8)))
    return Run(f"p{number}", calls * (1 + 2 * kind), (8_000, 16_000)[kind], rng.randint(300, 1_500))


@given(ended, st.integers(0, 5_000), st.integers(0, 300_000), st.integers(0, 300_000))
def test_answers_are_finite_and_in_order(
    programs: list[tuple[int, int, int]], done: int, now: int, first: int
) -> None:
    model = taught(programs)
    final = model.expected_final_tokens(calls_done=done, tokens_now=now, first_prompt_tokens=first)
    assert now <= final < math.inf
    assert 1.0 <= model.expected_calls_left(done) < math.inf
    assert model.growth_tokens_per_call(calls_done=done, tokens_now=now, first_prompt_tokens=first) >= 0
    left = model.calls_left_samples(done, first)
    assert left == sorted(left)
    assert left[0] >= 1
    assert math.isfinite(left[-1])
    quantiles = [
        model.final_tokens_quantile(q, calls_done=done, tokens_now=now, first_prompt_tokens=first)
        for q in (0.0, 0.1, 0.5, 0.9, 1.0)
    ]
    assert quantiles == sorted(quantiles)
    assert now <= quantiles[0]
    assert math.isfinite(quantiles[-1])


def test_before_any_ending_own_growth_and_twelve_calls_decide() -> None:
    model = ContextModel()
    assert model.expected_calls_left(0) == pytest.approx(12, rel=0.05)
    assert 25 < model.expected_calls_left(100) < 60
    fresh = model.expected_final_tokens(calls_done=0, tokens_now=1000, first_prompt_tokens=1000)
    assert fresh == pytest.approx(1000 + 12 * 1500, rel=0.05)
    slow = model.expected_final_tokens(calls_done=4, tokens_now=1040, first_prompt_tokens=1000)
    fast = model.expected_final_tokens(calls_done=4, tokens_now=5000, first_prompt_tokens=1000)
    assert 1040 < slow < fresh
    assert fast > 15_000


def test_learned_programs_replace_the_prior() -> None:
    model = taught([(10, 1000, 6000)] * 20)
    assert model.expected_calls_left(4, 1000) == pytest.approx(6, rel=0.1)
    assert model.calls_left_samples(4, 1000)[:-1] == [6.0] * 31
    assert model.growth_tokens_per_call(
        calls_done=0, tokens_now=1000, first_prompt_tokens=1000
    ) == pytest.approx(500, rel=0.03)
    final = model.expected_final_tokens(calls_done=4, tokens_now=3000, first_prompt_tokens=1000)
    assert final == pytest.approx(6000, rel=0.05)


def test_contexts_that_saturate_put_a_ceiling_on_growth() -> None:
    model = taught([(100, 1000, 9000)] * 20)
    assert model.expected_final_tokens(
        calls_done=10, tokens_now=8000, first_prompt_tokens=1000
    ) == pytest.approx(9000, rel=0.05)
    past = model.expected_final_tokens(calls_done=10, tokens_now=10_000, first_prompt_tokens=1000)
    assert 10_000 < past < 15_000


def test_programs_that_begin_alike_count_for_each_other() -> None:
    model = taught([(5, 8_000, 10_000), (50, 16_000, 90_000)] * 20)
    assert model.expected_calls_left(2, 8_100) == pytest.approx(3, abs=1.5)
    assert model.expected_calls_left(2, 15_900) == pytest.approx(48, rel=0.15)
    assert 10 < model.expected_calls_left(2) < 40
    assert model.growth_tokens_per_call(
        calls_done=0, tokens_now=8_000, first_prompt_tokens=8_000
    ) == pytest.approx(400, rel=0.3)


def test_a_size_never_seen_falls_back_to_all_programs() -> None:
    model = taught([(30, 8_000, 40_000)] * 20)
    assert model.expected_calls_left(0, 200) == pytest.approx(30, rel=0.35)


def test_living_programs_teach_that_others_end_later() -> None:
    """With 24 at once the first that end are the short ones; those still running count as well."""
    laws = random.Random(3)
    told, untold = ContextModel(), ContextModel()
    live = [drawn(laws, number) for number in range(24)]
    errors: list[tuple[float, float, int]] = []
    number, endings = 24, 0
    while endings < 60:
        for run in list(live):
            left = run.calls - run.done
            if endings >= 10:
                errors.append(
                    (
                        told.expected_calls_left(run.done, run.first),
                        untold.expected_calls_left(run.done, run.first),
                        left,
                    )
                )
            run.tell(told)
            if run.done == run.calls:
                run.end(told)
                untold.observe_program(
                    calls=run.calls, first_prompt_tokens=run.first, final_tokens=run.tokens
                )
                live[live.index(run)] = drawn(laws, number)
                number, endings = number + 1, endings + 1
    truth = sum(left for _, _, left in errors)
    from_all = sum(guess for guess, _, _ in errors) / truth
    from_ended = sum(guess for _, guess, _ in errors) / truth
    assert from_ended < 0.5
    assert 1.3 * from_ended < from_all < 1.2


def test_quantiles_are_calibrated() -> None:
    """300 programs of known law, learned one after the other; each is predicted at every call before
    it is learned. Predictions of one program go together, hence a tolerance of 0.08."""
    rng = random.Random(11)
    model = ContextModel()
    below = {0.1: [0, 0], 0.5: [0, 0], 0.9: [0, 0]}
    fewer = {0.1: [0.0, 0], 0.5: [0.0, 0], 0.9: [0.0, 0]}
    for number in range(300):
        run = drawn(rng, number)
        final = run.first + run.step * run.calls
        for _ in range(run.calls):
            if number >= 40:
                left = model.calls_left_samples(run.done, run.first)
                for q in below:
                    level = model.final_tokens_quantile(
                        q, calls_done=run.done, tokens_now=run.tokens, first_prompt_tokens=run.first
                    )
                    below[q][0] += final <= level
                    below[q][1] += 1
                    truth = run.calls - run.done
                    bound = left[int(q * len(left))]
                    fewer[q][0] += ((truth < bound) + (truth <= bound)) / 2
                    fewer[q][1] += 1
            run.tell(model)
        run.end(model)
    for counts in (below, fewer):
        for q, (hits, asked) in counts.items():
            assert hits / asked == pytest.approx(q, abs=0.08)


def test_the_largest_context_counts_where_contexts_shrink() -> None:
    model = ContextModel()
    for number in range(20):
        for done, tokens in enumerate((20_000, 60_000, 10_000), 1):
            model.observe_call(f"p{number}", calls_done=done, tokens_now=tokens, first_prompt_tokens=10_000)
        model.observe_program(calls=3, first_prompt_tokens=10_000, final_tokens=10_000, program=f"p{number}")
    final = model.expected_final_tokens(calls_done=0, tokens_now=10_000, first_prompt_tokens=10_000)
    assert final == pytest.approx(60_000, rel=0.15)


def test_old_programs_are_forgotten() -> None:
    model = taught([(50, 0, 50_000)] * 10 + [(5, 0, 500)] * (4 * MEMORY))
    assert model.expected_calls_left(0) == pytest.approx(5, rel=0.05)


def test_asking_changes_no_answer() -> None:
    asked, silent = ContextModel(), ContextModel()
    rng = random.Random(5)
    for number in range(60):
        run = drawn(rng, number)
        twin = Run(run.name, run.calls, run.first, run.step)
        for _ in range(run.calls):
            run.tell(asked)
            twin.tell(silent)
            asked.calls_left_samples(run.done, run.first)
            asked.final_tokens_quantile(
                0.9, calls_done=run.done, tokens_now=run.tokens, first_prompt_tokens=run.first
            )
        run.end(asked)
        twin.end(silent)
    for done in (0, 3, 30):
        assert asked.expected_calls_left(done, 8_000) == silent.expected_calls_left(done, 8_000)
        assert asked.calls_left_samples(done, 16_000) == silent.calls_left_samples(done, 16_000)


def test_memory_stays_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ContextModel, "MAX_LIVE", 100)
    monkeypatch.setattr(LifeTable, "CLASSES", 20)
    model = ContextModel()
    for number in range(300):
        size = int(100 * 1.06**number) % 10**9
        model.observe_call(f"p{number}", calls_done=1, tokens_now=size, first_prompt_tokens=size)
        model.expected_final_tokens(calls_done=1, tokens_now=size, first_prompt_tokens=size)
    assert len(model._live) == 100
    assert len(model._calls._classes) <= 20
    assert len(model._finals._compiled) <= 20
    model.forget("p299")
    assert len(model._live) == 99


@given(garbage)
def test_garbage_is_refused_and_changes_nothing(bad: float) -> None:
    model = ContextModel()
    before = model.expected_calls_left(0)
    for call in (
        lambda: model.observe_program(calls=3, first_prompt_tokens=1, final_tokens=bad),  # type: ignore[arg-type]
        lambda: model.observe_program(calls=3, first_prompt_tokens=bad, final_tokens=1),  # type: ignore[arg-type]
        lambda: model.observe_program(calls=bad, first_prompt_tokens=1, final_tokens=1),  # type: ignore[arg-type]
        lambda: model.observe_call("p", calls_done=1, tokens_now=bad, first_prompt_tokens=1),  # type: ignore[arg-type]
        lambda: model.expected_calls_left(bad),  # type: ignore[arg-type]
        lambda: model.expected_calls_left(1, bad),  # type: ignore[arg-type]
        lambda: model.calls_left_samples(bad),  # type: ignore[arg-type]
        lambda: model.growth_tokens_per_call(calls_done=1, tokens_now=bad, first_prompt_tokens=1),  # type: ignore[arg-type]
        lambda: model.final_tokens_quantile(bad, calls_done=1, tokens_now=1, first_prompt_tokens=1),
    ):
        with pytest.raises(ValueError, match="must be"):
            call()
    with pytest.raises(ValueError, match="calls must be >= 1"):
        model.observe_program(calls=0, first_prompt_tokens=1, final_tokens=1)
    assert model.expected_calls_left(0) == before
    assert not model._live


@given(
    st.lists(st.floats(0, 1), min_size=len(CALL_EDGES) - 1, max_size=len(CALL_EDGES) - 1),
    st.floats(0, 10_000),
)
def test_a_compiled_table_agrees_with_itself(hazards: list[float], position: float) -> None:
    """Quantiles rise and lie ahead; their mean is the mean."""
    ahead = Ahead(CALL_EDGES, [0.01 + 0.98 * h for h in hazards], 0.25)
    ends = [ahead.end_quantile(position, (i + 0.5) / 2000) for i in range(2000)]
    assert ends == sorted(ends)
    assert ends[0] >= position
    assert sum(ends) / 2000 == pytest.approx(ahead.expected_end(position), rel=0.02, abs=0.05)


def test_edges_cover_what_there_is() -> None:
    for edges in (CALL_EDGES, TOKEN_EDGES):
        assert edges[0] == 0
        assert edges == sorted(set(edges))
    assert CALL_EDGES[:12] == [float(i) for i in range(12)]


def test_queries_stay_cheap_with_much_learned() -> None:
    rng = random.Random(2)
    model = ContextModel()
    for number in range(300):
        run = drawn(rng, number)
        for _ in range(run.calls):
            run.tell(model)
        run.end(model)
    started = time.perf_counter()
    for i in range(10_000):
        model.final_tokens_quantile(0.9, calls_done=i % 50, tokens_now=20_000, first_prompt_tokens=8_000)
        model.calls_left_samples(i % 50, 8_000)
    assert time.perf_counter() - started < 5.0
