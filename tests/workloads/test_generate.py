"""Generated workloads meet the published figures that they are made from, and repeat by seed."""

from __future__ import annotations

from collections import Counter
from random import Random
from statistics import mean, quantiles, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.workloads.generate import GENERATORS, generate
from agentsched.workloads.generate.continuum import bfcl
from agentsched.workloads.generate.continuum import swe as continuum_swe
from agentsched.workloads.generate.distributions import Quantiles
from agentsched.workloads.generate.saga import TOOLS, swe, tenants, web
from agentsched.workloads.generate.text2sql import MAX_CORRECTIONS, text2sql
from agentsched.workloads.scripts import Script
from agentsched.workloads.traces import roots


def finals(scripts: list[Script]) -> list[int]:
    return [script.contexts()[-1] + script.turns[-1].output_tokens for script in scripts]


def gaps(scripts: list[Script], tool: str) -> list[float]:
    return [turn.gap_s for script in scripts for turn in script.turns if turn.tool == tool]


@pytest.mark.parametrize("name", GENERATORS)
def test_the_seed_alone_decides(name: str) -> None:
    same = generate(name, {"programs": "5", "seed": "1"})
    assert same == generate(name, {"programs": "5", "seed": "1"})
    assert same != generate(name, {"programs": "5", "seed": "2"})
    assert len(roots(same)) == 5
    assert len({script.program for script in same}) == len(same)
    assert all(script.turns[-1].gap_s == 0 for script in same)


@pytest.mark.parametrize("name", GENERATORS)
def test_contexts_fit_a_window_of_128k_tokens(name: str) -> None:
    for script in generate(name, {"programs": "200"}):
        ends = zip(script.contexts(), script.turns, strict=True)
        assert all(prompt + turn.output_tokens <= 128_100 for prompt, turn in ends)
        assert script.prefix_tokens < script.turns[0].new_tokens
        assert all(turn.new_tokens > script.prefix_tokens for turn in script.turns if turn.fresh)


@given(
    st.tuples(st.floats(0.001, 10), st.floats(1.1, 50), st.floats(1.1, 50)),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_quantile_functions_rise_through_their_knots(
    shape: tuple[float, float, float], one: float, other: float
) -> None:
    p50, p95, p99 = shape[0], shape[0] * shape[1], shape[0] * shape[1] * shape[2]
    law = Quantiles.from_tail(p50, p95, p99)
    assert [law.at(each) for each in (0.5, 0.95, 0.99)] == pytest.approx([p50, p95, p99])
    low, high = sorted((one, other))
    assert p50 / 4 * 0.999 <= law.at(low) <= law.at(high) * 1.000001 <= 2 * p99 * 1.001


@pytest.mark.parametrize(
    "knots", [((0.0, 1.0), (0.9, 2.0)), ((0.0, 2.0), (1.0, 1.0)), ((0.0, 0.0), (1.0, 1.0))]
)
def test_quantiles_must_rise_from_0_to_1(knots: tuple[tuple[float, float], ...]) -> None:
    with pytest.raises(ValueError, match="rise"):
        Quantiles(knots)


@pytest.mark.parametrize(
    ("tool", "published_ms"),
    [
        ("code", (180, 2_400, 28_000)),
        ("file", (45, 320, 1_200)),
        ("web", (850, 4_500, 45_000)),
        ("database", (120, 890, 3_500)),
    ],
)
def test_saga_tools_take_their_published_times(tool: str, published_ms: tuple[int, int, int]) -> None:
    rng = Random(1)
    times = [TOOLS[tool].draw(rng) for _ in range(30_000)]
    for probability, quantile_ms in zip((0.5, 0.95, 0.99), published_ms, strict=True):
        below = sum(1000 * time <= quantile_ms for time in times) / len(times)
        assert below == pytest.approx(
            probability, abs=4 * (probability * (1 - probability) / len(times)) ** 0.5
        )
    assert mean(times) == pytest.approx(TOOLS[tool].mean(), rel=0.1)


def test_saga_agents_use_the_tools_of_their_kind() -> None:
    coding = swe(programs=500)
    code, file = gaps(coding, "code"), gaps(coding, "file")
    assert len(code) / (len(code) + len(file)) == pytest.approx(0.5, abs=0.02)
    assert sum(len(script.turns) - 1 for script in coding) == len(code) + len(file)
    for times, tool in ((code, "code"), (file, "file"), (gaps(web(programs=500), "web"), "web")):
        assert quantiles(times, n=2)[0] == pytest.approx(TOOLS[tool].at(0.5), rel=0.1)


def test_saga_steps_and_their_tokens() -> None:
    for scripts, steps in ((swe(programs=1_000), 37), (web(programs=1_000), 18)):
        assert mean(len(script.turns) for script in scripts) == pytest.approx(steps, rel=0.05)
        added = [turn for script in scripts for turn in script.turns if not turn.fresh]
        assert {min(turn.new_tokens for turn in added), max(turn.new_tokens for turn in added)} == {
            2_000,
            4_000,
        }
        assert mean(turn.new_tokens for turn in added) == pytest.approx(3_000, rel=0.02)
        outputs = [turn.output_tokens for script in scripts for turn in script.turns]
        assert (min(outputs), max(outputs)) == (100, 500)


def test_saga_contexts_are_compacted_at_the_window() -> None:
    small = swe(programs=20, window_tokens=40_000, shared_tokens=1_000)
    fresh = [turn for script in small for turn in script.turns if turn.fresh]
    assert fresh
    assert {turn.new_tokens for turn in fresh} == {10_000}
    assert all(max(script.contexts()) <= 40_000 for script in small)
    assert {script.prefix[0].tokens for script in small} == {1_000}
    assert len({script.prefix for script in small}) == 1


def test_saga_tenants_are_three_heavy_four_medium_three_light() -> None:
    scripts = tenants(programs=1_000)
    assert set(Counter(script.tenant for script in scripts).values()) == {100}
    kinds = Counter(tenant.partition("-")[0] for tenant in {script.tenant for script in scripts})
    assert kinds == {"heavy": 3, "medium": 4, "light": 3}
    tokens = {kind: mean(finals([s for s in scripts if s.tenant.startswith(kind)])) for kind in kinds}
    assert tokens["heavy"] > tokens["medium"] > tokens["light"]


def test_continuum_programs_meet_their_table() -> None:
    scripts = continuum_swe(programs=4_000)
    counts = [len(script.turns) for script in scripts]
    assert mean(counts) == pytest.approx(10.9, abs=0.1)
    assert stdev(counts) == pytest.approx(2.1, abs=0.1)
    assert mean(finals(scripts)) == pytest.approx(70_000, rel=0.02)
    times = gaps(scripts, "bash")
    assert mean(times) == pytest.approx(0.925, rel=0.1)
    # the deviation of so heavy a tail converges slowly; its median follows from both moments
    assert quantiles(times, n=2)[0] == pytest.approx(0.925 / (1 + (3.55 / 0.925) ** 2) ** 0.5, rel=0.05)


def test_function_calling_programs_meet_their_table() -> None:
    scripts = bfcl(programs=4_000)
    assert mean(len(script.turns) for script in scripts) == pytest.approx(6.3, abs=0.1)
    assert mean(finals(scripts)) == pytest.approx(93_000, rel=0.02)
    times = gaps(scripts, "web_search")
    assert mean(times) == pytest.approx(1.923, rel=0.05)
    assert stdev(times) == pytest.approx(2.133, rel=0.1)


def test_questions_are_graphs_of_calls() -> None:
    scripts = text2sql(programs=300, error_rate=0.5)
    by_name = {script.program: script for script in scripts}
    questions = roots(scripts)
    assert len(questions) == 300
    assert len(scripts) == 300 * 5
    for question in questions:
        writers = [by_name[name] for name in question.turns[0].agents]
        assert len(writers) == 4
        assert all(writer.prefix == question.prefix for writer in writers)
        assert not any(turn.agents for turn in question.turns[1:])
    attempts = [len(script.turns) for script in scripts if script not in questions]
    assert max(attempts) <= 1 + MAX_CORRECTIONS
    assert mean(attempts) == pytest.approx(2.0, rel=0.1)
    schemas = {question.prefix[0] for question in questions}
    assert len(schemas) == 11
    assert len({question.prefix[1] for question in questions}) == 300
