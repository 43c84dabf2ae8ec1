"""No policy beats a bound; each is also what brute force finds where that can be tried."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core import POLICY_NAMES, Core, make_policy
from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.core.log import Entry
from agentsched.engines.analytic import AnalyticEngine
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import GenerateRequest, Sampling
from agentsched.engines.cost import CostProfile
from agentsched.engines.simulated import simulated
from agentsched.workloads.bounds import (
    BoundsError,
    CallSpan,
    MakespanBound,
    call_seconds_of_run,
    calls_of_run,
    makespan_bound,
    packing_bound,
    packing_bound_reclaiming,
    recompute_bound,
    recompute_bound_of_run,
)
from agentsched.workloads.scripts import Piece, Script, Turn
from agentsched.workloads.simulator import Conditions, SimulatedEngine, Simulation, synthetic_scripts
from agentsched.workloads.stepwise import StepwiseEngine
from agentsched.workloads.summary import summarise

PROFILE = CostProfile(
    step_s=2e-3, prefill_token_s=1e-3, decode_row_s=3e-4, attention_s=1e-8, context_token_s=1e-8
)


def span(
    start_s: float, end_s: float, *path: tuple[str, int], output: int = 1, ended: bool = True
) -> CallSpan:
    """A call; the last piece grows by its output. Of a prompt one token is never held, so one is added."""
    *head, (key, tokens) = path
    prompt = (*(Piece(k, n) for k, n in head), Piece(key, tokens + 1))
    context = (*prompt[:-1], Piece(key, tokens + 1 + output))
    return CallSpan(start_s=start_s, end_s=end_s, prompt=prompt, context=context, ended=ended, holds=ended)


def in_turn(*names: str, tokens: int = 10) -> list[CallSpan]:
    return [span(at, at + 0.5, (name, tokens)) for at, name in enumerate(names)]


def belady_misses(names: Sequence[str], slots: int) -> int:
    """Items fetched again under the optimal replacement of equal items."""
    cached: set[str] = set()
    seen: set[str] = set()
    misses = 0
    for at, name in enumerate(names):
        if name not in cached:
            misses += name in seen
            if len(cached) == slots:
                ahead = {c: next((i for i, n in enumerate(names[at:]) if n == c), len(names)) for c in cached}
                cached.remove(max(cached, key=lambda c: (ahead[c], c)))
            cached.add(name)
        seen.add(name)
    return misses


# Recomputed tokens


@pytest.mark.parametrize(
    ("names", "slots", "misses"),
    [("ababab", 2, 0), ("abab", 1, 2), ("abcabc", 2, 1), ("abcdabcd", 2, 2), ("abcabcabc", 2, 3)],
)
def test_of_equal_items_as_many_are_fetched_again_as_by_hand(names: str, slots: int, misses: int) -> None:
    assert recompute_bound(in_turn(*names), slots * 10) == 10 * misses


@given(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=30), st.integers(1, 5))
@settings(deadline=None)
def test_of_equal_items_as_many_are_fetched_again_as_by_belady(names: list[str], slots: int) -> None:
    assert recompute_bound(in_turn(*names), slots * 10) == 10 * belady_misses(names, slots)


def test_a_part_of_a_context_may_be_kept() -> None:
    calls = [span(0, 1, ("a", 10)), span(2, 3, ("b", 6)), span(4, 5, ("a", 10))]
    assert recompute_bound(calls, 16) == 0
    assert recompute_bound(calls, 12) == 4
    assert recompute_bound(calls, 11, block_tokens=4) == 4
    assert recompute_bound(calls, 12, block_tokens=4) == 0, "what is no full block of four takes no room"


def test_a_shared_prefix_is_held_once_and_recomputed_once() -> None:
    calls = [
        span(0, 1, ("system", 10), ("a", 5)),
        span(2, 3, ("system", 10), ("b", 5)),
        span(4, 5, ("system", 10), ("a", 5)),
    ]
    assert recompute_bound(calls, 20) == 0
    assert recompute_bound(calls, 15) == 5
    apart = [
        CallSpan(
            start_s=c.start_s,
            end_s=c.end_s,
            prompt=(Piece(f"{c.prompt[1].key}-system", 10), *c.prompt[1:]),
            context=(Piece(f"{c.context[1].key}-system", 10), *c.context[1:]),
        )
        for c in calls
    ]
    assert recompute_bound(apart, 15) == 15


def test_the_same_text_after_different_text_is_not_the_same() -> None:
    calls = [span(0, 1, ("x", 4), ("a", 8)), span(2, 3, ("y", 4), ("a", 8))]
    assert recompute_bound(calls, 13) == 0, "the second a was never held behind y"


def test_output_is_reused_by_the_next_prompt_but_for_its_last_token() -> None:
    calls = [
        CallSpan(start_s=0, end_s=1, prompt=(Piece("a", 4),), context=(Piece("a", 8),)),
        span(2, 3, ("b", 10)),
        CallSpan(start_s=4, end_s=5, prompt=(Piece("a", 20),), context=(Piece("a", 21),)),
    ]
    assert recompute_bound(calls, 20) == 0
    assert recompute_bound([calls[0], span(2, 3, ("b", 20)), calls[2]], 20) == 7


def test_what_runs_at_once_is_recomputed_for_nobody() -> None:
    calls = [span(0, 4, ("a", 10)), span(1, 6, ("a", 10)), span(7, 8, ("b", 10)), span(9, 10, ("a", 10))]
    assert recompute_bound(calls, 10) == 10


def test_a_call_that_did_not_end_well_neither_counts_nor_takes_room() -> None:
    first, later = span(0, 1, ("a", 10)), span(8, 9, ("a", 10))
    lost = span(2, 3, ("b", 10), ended=False)
    assert recompute_bound([first, lost, later], 10) == 0
    assert recompute_bound([first, span(2, 3, ("b", 10)), span(4, 5, ("a", 10), ended=False), later], 10) == 0


def test_running_calls_over_the_capacity_are_said() -> None:
    with pytest.raises(BoundsError, match="more than the capacity"):
        recompute_bound([span(0, 2, ("a", 10)), span(1, 3, ("b", 10))], 19)


POOL = ("s", "t", "u")


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[tuple[str, int], ...]]:
    """Contexts, one after the other, over few pieces with shared heads."""
    calls = []
    for _ in range(draw(st.integers(1, 6))):
        head = draw(st.sampled_from([(), (("s", 1),), (("s", 2),)]))
        calls.append((*head, (draw(st.sampled_from(POOL[1:])), draw(st.integers(1, 2)))))
    return calls


def spelled(path: tuple[tuple[str, int], ...]) -> frozenset[tuple[object, ...]]:
    """The context's tokens, each by all that precedes it."""
    tokens, before = [], ()
    for key, count in path:
        for at in range(count):
            before = (*before, (key, at))  # type: ignore[assignment]
            tokens.append(before)
    return frozenset(tokens)


def least_by_search(paths: list[tuple[tuple[str, int], ...]], capacity: int) -> int:
    """Every choice of what to keep at every call, tried."""
    states: dict[frozenset[tuple[object, ...]], int] = {frozenset(): 0}
    once: frozenset[tuple[object, ...]] = frozenset()
    for path in paths:
        need = spelled(path)
        after: dict[frozenset[tuple[object, ...]], int] = {}
        for held, cost in states.items():
            cost += len((need & once) - held)
            idle = sorted(held - need, key=repr)
            for count in range(min(len(idle), capacity - len(need)) + 1):
                for kept in combinations(idle, count):
                    state = need | frozenset(kept)
                    after[state] = min(cost, after.get(state, cost))
        states, once = after, once | need
    return min(states.values())


@given(sequences(), st.integers(4, 8))
@settings(deadline=None)
def test_the_bound_is_what_exhaustive_search_finds(
    paths: list[tuple[tuple[str, int], ...]], capacity: int
) -> None:
    # Output of one token: of prompt and output together all but the last is held, the prompt as it is here.
    calls = [
        CallSpan(
            start_s=at,
            end_s=at + 0.5,
            prompt=(*(Piece(k, n) for k, n in path), Piece(f"end{at}", 1)),
            context=(*(Piece(k, n) for k, n in path), Piece(f"end{at}", 1)),
        )
        for at, path in enumerate(paths)
    ]
    assert recompute_bound(calls, capacity) == least_by_search(paths, capacity)


@st.composite
def overlapping(draw: st.DrawFn) -> list[CallSpan]:
    calls = []
    for _ in range(draw(st.integers(1, 25))):
        start = draw(st.integers(0, 60))
        name = draw(st.sampled_from("abcdef"))
        head = draw(st.integers(0, 1)) * (("system", 30),)
        end = start + draw(st.integers(0, 4))
        calls.append(
            span(start, end, *head, (name, draw(st.integers(1, 40))), output=draw(st.integers(1, 9)))
        )
    return calls


@given(overlapping(), st.integers(1, 8))
@settings(deadline=None)
def test_more_room_never_asks_for_more_and_enough_for_nothing(
    calls: list[CallSpan], block_tokens: int
) -> None:
    running = sum(p.tokens for call in calls for p in call.prompt)
    bounds = []
    for capacity in range(block_tokens, running + 300, 40):
        try:
            bounds.append(recompute_bound(calls, capacity, block_tokens=block_tokens))
        except BoundsError:
            assert not bounds, "what fits in less fits in more"
    assert bounds == sorted(bounds, reverse=True)
    assert recompute_bound(calls, 10**9, block_tokens=block_tokens) == 0


@st.composite
def visits(draw: st.DrawFn) -> list[tuple[float, str, int, int, bool]]:
    """(seconds until it comes, program, system tokens, new tokens, whether the context starts anew)"""
    return draw(
        st.lists(
            st.tuples(
                st.floats(0, 0.4),
                st.sampled_from("abcde"),
                st.sampled_from([0, 16, 40]),
                st.integers(1, 60),
                st.booleans(),
            ),
            min_size=4,
            max_size=20,
        )
    )


@given(visits(), st.integers(10, 30), st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_an_engine_by_itself_never_beats_the_bound(
    plan: list[tuple[float, str, int, int, bool]], blocks: int, max_running: int
) -> None:
    """LRU, preemption and overlapping calls with shared heads, straight on the engine: no core, no log."""
    engine = simulated(PROFILE, blocks * 16, max_running=max_running, chunk_tokens=64)
    texts: dict[str, int] = {}
    contexts: dict[str, list[tuple[str, int]]] = {}
    coming: list[tuple[float, str, list[tuple[str, int]]]] = []
    due = 0.0
    for number, (wait_s, program, system, new, anew) in enumerate(plan):
        due += wait_s
        context = contexts.get(program)
        if context is None or anew or sum(n for _, n in context) + new > blocks * 16 - 20:
            context = [("system", system)] if system else []
            texts[program] = texts.get(program, 0) + 1
            new = min(new, blocks * 16 - 60)
        key = f"{program}{texts[program]}"
        own = sum(n for k, n in context if k == key) + new
        context = [piece for piece in context if piece[0] != key] + [(key, own)]
        contexts[program] = context
        coming.append((due, f"{number}", list(context)))
    spans, recomputed = drive(engine, coming)
    assert recompute_bound(spans, blocks * 16, block_tokens=16) <= recomputed


def token(key: str, at: int) -> int:
    return zlib.crc32(f"{key}/{at}".encode()) % 32_000


def drive(
    engine: BatchingEngine, coming: list[tuple[float, str, list[tuple[str, int]]]]
) -> tuple[list[CallSpan], int]:
    paths = {call: path for _, call, path in coming}
    begun: dict[str, float] = {}
    ended: list[tuple[str, float]] = []
    preempted: set[str] = set()
    recomputed, now = 0, 0.0
    while coming or engine.has_work:
        while coming and (coming[0][0] <= now or not engine.has_work):
            at, call, path = coming.pop(0)
            now = max(now, at)
            prompt = [token(key, i) for key, count in path for i in range(count)]
            engine.submit(
                GenerateRequest(
                    call=call, program=call, prompt=prompt, sampling=Sampling(max_output_tokens=6)
                ),
                now,
            )
        took_s, outputs = engine.step(now)
        now += took_s
        preempted |= set(engine.report(now).preempted)
        for output in outputs:
            match output:
                case ev.CallStarted(call=call):
                    begun[call] = now
                case ev.CallFinished(call=call):
                    ended.append((call, now))
                    recomputed += output.recomputed_tokens
                case _:
                    pass
    spans = [
        CallSpan(
            start_s=begun[call],
            end_s=end,
            prompt=(pieces := tuple(Piece(key, n) for key, n in paths[call])),
            context=(*pieces, Piece(f"output of {call}", 6)),
            holds=call not in preempted,
        )
        for call, end in ended
    ]
    return spans, recomputed


# From logs

PREFIX = (Piece("system", 100), Piece("tools", 80))
CHUNK = 512


def scripts_with_a_prefix(seed: int = 1, programs: int = 8) -> list[Script]:
    plain = synthetic_scripts(
        seed, programs, calls=6, first_tokens=400, new_tokens=120, output_tokens=20, gap_s=0.6
    )
    return [Script(s.program, 0.0, s.turns, prefix=PREFIX) for s in plain]


def analytic(kv_tokens: int, *, host_tokens: int = 0) -> SimulatedEngine:
    return AnalyticEngine(PROFILE, kv_tokens, chunk_tokens=CHUNK, max_running=64, host_tokens=host_tokens)


def stepwise(kv_tokens: int) -> SimulatedEngine:
    return StepwiseEngine(simulated(PROFILE, kv_tokens, name="e0", chunk_tokens=CHUNK, max_running=64))


def simulate(
    policy: str, engine: SimulatedEngine, scripts: list[Script], concurrency: int | None = None
) -> list[Entry]:
    core = Core(make_policy(policy))
    return Simulation(core, [engine], scripts, Conditions(concurrency=concurrency)).run()


def recomputed_tokens(entries: list[Entry]) -> int:
    return sum(e.event.recomputed_tokens for e in entries if isinstance(e.event, ev.CallFinished))


def alone(scripts: list[Script]) -> dict[str, list[float]]:
    """Each call's seconds on an engine of its own, the shared prefix held already."""
    seconds = {}
    for script in scripts:
        first = Script("first", 0.0, (Turn(181, 1, 0.0),), prefix=PREFIX)
        entries = simulate("fcfs-lru", analytic(100_000), [first, replace(script, arrives_s=10.0)])
        seconds[script.program] = call_seconds_of_run(entries)[script.program]
    return seconds


@pytest.mark.parametrize("make", [analytic, stepwise])
@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_no_policy_recomputes_less_than_the_bound(
    policy: str, make: Callable[[int], SimulatedEngine]
) -> None:
    scripts = scripts_with_a_prefix()
    entries = simulate(policy, make(2_400), scripts)
    assert recompute_bound_of_run(entries, scripts) <= recomputed_tokens(entries)
    assert recompute_bound_of_run(simulate(policy, make(100_000), scripts), scripts) == 0


@pytest.mark.parametrize("kv_tokens", [1_600, 2_400, 3_600])
def test_lru_under_pressure_is_above_a_bound_above_zero(kv_tokens: int) -> None:
    scripts = scripts_with_a_prefix()
    entries = simulate("fcfs-lru", stepwise(kv_tokens), scripts)
    assert 0 < recompute_bound_of_run(entries, scripts) < recomputed_tokens(entries)


def test_host_memory_is_room_too() -> None:
    scripts = scripts_with_a_prefix()
    entries = simulate("fcfs-lru", analytic(2_400, host_tokens=9_600), scripts)
    assert [engine.capacity_tokens for engine in calls_of_run(entries, scripts)] == [12_000]
    assert recompute_bound_of_run(entries, scripts) <= recomputed_tokens(entries)


def test_without_scripts_contexts_are_guessed_from_sizes() -> None:
    scripts = [replace(script, prefix=()) for script in scripts_with_a_prefix()]
    entries = simulate("fcfs-lru", stepwise(2_400), scripts)
    assert recompute_bound_of_run(entries) == recompute_bound_of_run(entries, scripts) > 0


def entries_of(*events: ev.AnyEvent | de.AnyDecision) -> list[Entry]:
    return [
        Entry(now=float(at), event=item)
        if isinstance(item, ev.Event)
        else Entry(now=float(at), decision=item)
        for at, item in enumerate(events)
    ]


def test_a_log_gives_each_call_to_the_engine_that_it_was_sent_to() -> None:
    admit = de.Admit(cause=0, epoch=1, seq=0, program="p", engine="e1")
    report = ev.StepReport(engine="e1", free_tokens=0, evictable_tokens=0)
    (first, second) = calls_of_run(
        entries_of(
            ev.EngineAttached(engine="e0", capacity_tokens=64, block_tokens=16),
            ev.EngineAttached(engine="e1", capacity_tokens=32, block_tokens=16, host_capacity_tokens=16),
            ev.CallArrived(call="c", program="p", prompt_tokens=10, max_output_tokens=5),
            admit,
            ev.CallStarted(call="c", cached_tokens=0),
            ev.CallFinished(call="c", prompt_tokens=10, cached_tokens=0, output_tokens=5),
            report,
            report,
            ev.CallArrived(call="d", program="p", prompt_tokens=20, max_output_tokens=5),
            ev.CallStarted(call="d", cached_tokens=0),
            ev.StepReport(engine="e1", free_tokens=0, evictable_tokens=0, preempted=("p",)),
            ev.CallAborted(call="d", reason="client gone"),
        )
    )
    assert (first.calls, second.capacity_tokens) == ((), 48)
    c, d = second.calls
    assert (c.start_s, c.end_s, c.ended, c.holds) == (4.0, 5.0, True, True)
    assert (d.start_s, d.end_s, d.ended, d.holds) == (9.0, 11.0, False, False)
    assert [piece.tokens for piece in (*c.prompt, *c.context, *d.prompt)] == [10, 15, 20]
    assert d.prompt[0].key == c.prompt[0].key


def test_a_script_that_is_not_the_logs_is_said() -> None:
    scripts = scripts_with_a_prefix()
    entries = simulate("fcfs-lru", analytic(4_000), scripts)
    other = [replace(s, turns=(replace(s.turns[0], new_tokens=401), *s.turns[1:])) for s in scripts]
    with pytest.raises(BoundsError, match="prompt has 400 tokens"):
        calls_of_run(entries, other)


# Packing


def steady(program: str, *, prefix: tuple[Piece, ...] = (), gap_s: float = 8.0) -> Script:
    """Two calls of 1,000 and 1,200 tokens, the second after 100 tokens of output and ``gap_s``."""
    return Script(program, 0.0, (Turn(1_000, 100, gap_s), Turn(100, 1, 0.0)), prefix=prefix)


def test_the_packing_bound_is_capacity_over_mean_token_seconds() -> None:
    scripts = [steady("a"), steady("b")]
    bound = packing_bound(scripts, 10_000, {"a": [1.0, 2.0], "b": [1.0, 2.0]})
    each = 1_000 * 1 + 1_100 * 8 + 1_200 * 2
    assert bound.token_seconds == each
    assert bound.tasks_per_hour == pytest.approx(3600 * 10_000 / each)
    assert packing_bound(scripts, 10_000, {"a": [1, 2], "b": [1, 2]}, engines=3).tasks_per_hour == (
        pytest.approx(3 * bound.tasks_per_hour)
    )


def test_a_prefix_that_all_share_is_taken_off_capacity_once() -> None:
    scripts = [steady(name, prefix=(Piece("system", 300), Piece("tools", 500))) for name in "abcdefghijklmn"]
    bound = packing_bound(scripts, 2_000, {script.program: [1.0, 2.0] for script in scripts})
    each = 200 * 1 + 300 * 8 + 400 * 2
    assert bound.token_seconds == each
    assert bound.tasks_per_hour == pytest.approx(3600 * (2_000 - 800) / each)


def test_a_prefix_is_held_no_longer_than_those_who_share_it_need() -> None:
    shared = [steady(name, prefix=(Piece("system", 800),)) for name in "ab"]
    scripts = [*shared, *(steady(f"plain{n}") for n in range(20))]
    seconds = {script.program: [1.0, 2.0] for script in scripts}
    bound = packing_bound(scripts, 10_000, seconds)
    assert bound.shared_token_seconds == pytest.approx(800 * 11), "as long as one program lives"


def test_a_gap_lasts_as_long_as_the_agents_that_it_starts() -> None:
    parent = Script("parent", 0.0, (Turn(1_000, 1, 2.0, agents=("child",)), Turn(1, 1, 0.0)))
    child = Script("child", 0.0, (Turn(10, 1, 5.0), Turn(1, 1, 0.0)))
    bound = packing_bound([parent, child], 10_000, {"parent": [0.0, 0.0], "child": [1.0, 1.0]})
    assert bound.token_seconds == pytest.approx((1_001 * 7 + (10 * 1 + 11 * 5 + 12 * 1)) / 2)


def test_long_gaps_are_worth_no_more_than_their_reload() -> None:
    seconds = {"a": [1.0, 2.0]}
    kept = packing_bound([steady("a")], 10_000, seconds)
    # Of 1,100 tokens each takes 5 ms: at 1,200 tokens held meanwhile, 6 token-seconds instead of 8.
    freed = packing_bound_reclaiming([steady("a")], 10_000, seconds, reload_token_s=5e-3)
    assert freed.makespan_s == pytest.approx((1_000 * 1 + 1_100 * 6 + 1_200 * 2) / 10_000)
    short = packing_bound_reclaiming([steady("a", gap_s=0.1)], 10_000, seconds, reload_token_s=5e-3)
    assert short.makespan_s == pytest.approx(
        packing_bound([steady("a", gap_s=0.1)], 10_000, seconds).makespan_s
    )
    assert kept.makespan_s > freed.makespan_s


def test_reloading_everything_is_bound_by_computing() -> None:
    scripts = [steady(f"p{n}", gap_s=1_000.0) for n in range(10)]
    seconds = {script.program: [1.0, 2.0] for script in scripts}
    free = packing_bound_reclaiming(scripts, 10_000, seconds, reload_token_s=5e-3)
    paid = packing_bound_reclaiming(scripts, 10_000, seconds, reload_token_s=5e-3, reload_work_s=5e-3)
    # Kept for a share f of the tokens, memory asks for 10 - 6.6 f + 1,100 f seconds, computing for
    # 55 (1 - f): the two meet at f = 45 / 1,148.4.
    best = 55 * (1 - 45 / 1_148.4)
    assert free.makespan_s == pytest.approx(10)
    assert 0.99 * best <= paid.makespan_s <= best


@pytest.mark.parametrize(
    ("seconds", "capacity", "message"),
    [
        ({"a": [1.0]}, 10_000, "has 1 calls, the script has 2"),
        ({}, 10_000, "has 0 calls"),
        ({"a": [1.0, float("nan")]}, 10_000, "must be finite"),
        ({"a": [1.0, 2.0]}, 1_100, "over the capacity"),
        ({"a": [1.0, 2.0]}, 0, "capacity_tokens"),
    ],
)
def test_what_cannot_be_packed_is_said(seconds: dict[str, list[float]], capacity: int, message: str) -> None:
    with pytest.raises(BoundsError, match=message):
        packing_bound([steady("a")], capacity, seconds)


def test_agents_in_a_ring_and_short_prompts_are_said() -> None:
    ring = Script("a", 0.0, (Turn(10, 1, 0.0, agents=("a",)), Turn(1, 1, 0.0)))
    with pytest.raises(BoundsError, match="starts itself"):
        packing_bound([ring], 100, {"a": [0.0, 0.0]})
    with pytest.raises(BoundsError, match="prefix of 2000 tokens"):
        packing_bound([steady("a", prefix=(Piece("system", 2_000),))], 10_000, {"a": [1.0, 2.0]})
    with pytest.raises(BoundsError, match="no scripts"):
        packing_bound([], 100, {})


# Makespan


def test_the_makespan_is_bound_by_what_is_scarce() -> None:
    scripts = [steady(f"p{n}") for n in range(10)]
    seconds = {script.program: [1.0, 2.0] for script in scripts}

    def bound(**options: int) -> MakespanBound:
        values = {"engines": 1, "capacity_tokens": 1_000_000, **options}
        return makespan_bound(scripts, profile=PROFILE, uncontended=seconds, **values)

    roomy = bound(engines=100)
    assert roomy.makespan_s == roomy.longest_s == roomy.mean_tct_s == 11
    busy = bound()
    # Prefilled tokens (the last one of an output among them) take 1 ms, decoded rows 0.3, attention little.
    rows = 1_000 + 101 + 99 * 0.3
    assert busy.makespan_s == pytest.approx(busy.work_s, rel=0.02) == pytest.approx(rows / 100, rel=0.02)
    assert bound(concurrency=2).makespan_s == bound(concurrency=2).slots_s == 55
    tight = bound(capacity_tokens=1_300)
    assert tight.makespan_s == tight.memory_s > busy.makespan_s
    assert bound(chunk_tokens=100).work_s == pytest.approx(busy.work_s + 110.1 * PROFILE.step_s)


def test_in_a_closed_loop_a_program_does_not_wait_for_those_before_it() -> None:
    scripts = [steady(f"p{n}") for n in range(10)]
    seconds = {script.program: [1.0, 2.0] for script in scripts}
    closed, open_ = (
        makespan_bound(
            scripts,
            1,
            PROFILE,
            capacity_tokens=1_300,
            uncontended=seconds,
            concurrency=concurrency,
            reload_token_s=1.0,
            reload_work_s=1.0,
        )
        for concurrency in (2, None)
    )
    each = (1_000 * 1 + 1_100 * 8 + 1_200 * 2) / 1_300
    ends = [11.0, *(k * each for k in range(2, 11))]  # the first one is bound by its own life
    assert open_.mean_tct_s == pytest.approx(sum(ends) / 10)
    assert closed.mean_tct_s == pytest.approx((9 + 10) * each / 10)
    assert open_.memory_s == closed.memory_s == pytest.approx(10 * each)


def test_a_closed_loop_begins_at_zero() -> None:
    late = replace(steady("a"), arrives_s=1.0)
    with pytest.raises(BoundsError, match="arrives late"):
        makespan_bound(
            [late], 1, PROFILE, capacity_tokens=10_000, uncontended={"a": [1.0, 2.0]}, concurrency=1
        )


@pytest.mark.parametrize("concurrency", [None, 3, 6])
@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_no_policy_is_faster_than_the_bounds(policy: str, concurrency: int | None) -> None:
    kv_tokens, scripts = 2_400, scripts_with_a_prefix()
    seconds = alone(scripts)
    entries = simulate(policy, analytic(kv_tokens), scripts, concurrency)
    run = summarise(entries, policy=policy, seed=0, engine="analytic")
    bound = makespan_bound(
        scripts,
        1,
        PROFILE,
        capacity_tokens=kv_tokens,
        uncontended=seconds,
        concurrency=concurrency,
        chunk_tokens=CHUNK,
        max_running=64,
    )
    packed = packing_bound_reclaiming(scripts, kv_tokens, seconds, reload_token_s=PROFILE.prefill_token_s)
    assert bound.mean_tct_s <= run.tct_s.mean
    assert run.tasks_per_hour <= 3600 * len(scripts) / bound.makespan_s
    assert run.tasks_per_hour <= packed.tasks_per_hour
