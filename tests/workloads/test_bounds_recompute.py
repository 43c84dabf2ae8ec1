"""The least that is recomputed: what brute force, Belady and an engine by itself find."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core import events as ev
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import GenerateRequest, Sampling
from agentsched.engines.cost import CostProfile
from agentsched.engines.simulated import simulated
from agentsched.workloads.bounds import (
    BoundsError,
    CallSpan,
    recompute_bound,
)
from agentsched.workloads.scripts import Piece

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
