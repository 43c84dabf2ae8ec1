"""A core made from a snapshot goes on as the one that it was taken of; and what outlives a core."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core import ABLATION_NAMES, POLICY_NAMES, Core, make_policy
from agentsched.core import events as ev
from agentsched.core import log as event_log
from agentsched.core.decisions import Admit, Release, Retain
from agentsched.core.snapshot import Snapshot, SnapshotError, freeze, thaw
from agentsched.graphs.predict import Learned
from tests.core.harness import Harness

STEPS = st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 30)), max_size=40)


def play(harness: Harness, steps: list[tuple[int, float]]) -> None:
    for choice, wait_s in steps:
        harness.now += wait_s
        choices = harness.choices()
        choices[choice % len(choices)]()


def through_json(core: Core) -> bytes:
    return msgspec.json.encode(freeze(core))


@pytest.mark.parametrize("policy", [*POLICY_NAMES, *ABLATION_NAMES])
@given(before=STEPS, after=STEPS)
@settings(max_examples=25, deadline=None)
def test_each_file_of_a_log_replays_by_itself(
    policy: str, before: list[tuple[int, float]], after: list[tuple[int, float]]
) -> None:
    harness = Harness(policy, epoch=3)
    play(harness, before)
    header = event_log.Header(
        agentsched="test", policy=policy, epoch=3, started_unix_s=0.0, file=2, snapshot=freeze(harness.core)
    )
    harness.entries.clear()
    play(harness, after)
    harness.drain()
    lines = [event_log.encode(header), *(event_log.encode(entry) for entry in harness.entries)]
    found = list(event_log.steps(*event_log.read(lines)))
    assert len(found) == len([entry for entry in harness.entries if entry.event is not None])
    assert all(step.agrees for step in found)


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_snapshot_is_the_same_after_a_round_trip(policy: str) -> None:
    harness = Harness(policy)
    play(harness, [(number * 7919, 0.3) for number in range(200)])
    once = through_json(harness.core)
    again = thaw(msgspec.json.decode(once, type=Snapshot))
    again.check_invariants()
    assert through_json(again) == once


@pytest.mark.parametrize(
    "objects",
    [
        [],
        [["os:system", {}]],
        [["agentsched.core.core:Nothing", {}]],
        [["agentsched.core.core:Core", {"state": ["@", 9]}]],
        [["agentsched.core.core:Core", {"state": ["method", "popen", ["@", 0]]}]],
        [["agentsched.core.core:Core", {"state": ["call", 1]}]],
        [["dict", 1, 2]],
    ],
)
def test_a_snapshot_that_is_none_is_an_error(objects: list[list[object]]) -> None:
    with pytest.raises(SnapshotError, match="snapshot is of"):
        thaw(Snapshot(objects))


def test_what_cannot_be_said_as_a_value_is_refused_by_name() -> None:
    core = Core(make_policy("agentsched"))
    core.policy.admission.clock = open  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="builtin_function"):
        freeze(core)


def learned() -> Core:
    """A core in which some agents have ended."""
    harness = Harness("agentsched")
    for _ in range(12):
        program = harness.open()
        for turn in range(4):
            harness.now += 2.0
            harness.arrive(program, 1_000 + 400 * turn)
            harness.run_call(program)
        harness.post(ev.ProgramClosed(program=program))
    return harness.core


def test_models_outlive_their_core() -> None:
    known, new = learned().state, Core(make_policy("agentsched")).state
    data = msgspec.msgpack.encode(known.learned())
    new.learn(msgspec.msgpack.decode(data, type=Learned))
    assert new.learned() == known.learned()
    assert new.contexts.expected_calls_left(2, 1_000) == known.contexts.expected_calls_left(2, 1_000)
    assert new.contexts.expected_calls_left(2, 1_000) < 6
    assert new.gaps.samples("bash") == known.gaps.samples("bash") == [2.0] * 36


def test_models_of_another_make_are_refused() -> None:
    known = learned().state.learned()
    calls = msgspec.structs.replace(known.contexts.calls, pooled=([0.0], [0.0]))
    wrong = msgspec.structs.replace(known, contexts=msgspec.structs.replace(known.contexts, calls=calls))
    with pytest.raises(ValueError, match="buckets"):
        Core(make_policy("agentsched")).state.learn(wrong)


RESTORED = ev.ProgramRestored(
    program="old",
    open_s=50.0,
    calls_done=3,
    first_prompt_tokens=1_000,
    context_tokens=3_000,
    gap_key="bash",
    asked=(ev.ToolCallRef(tool_call="t", tool="bash"),),
)


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_a_restored_program_goes_on_and_ends(policy: str) -> None:
    harness = Harness(policy)
    harness.now = 100.0
    harness.post(ev.ProgramOpened(program="old", deadline_s=60.0))
    harness.post(RESTORED)
    old = harness.core.state.programs["old"]
    assert (old.opened_s, old.calls_done, old.context_tokens, old.in_gap) == (50.0, 3, 3_000, True)
    harness.now += 30.0
    harness.arrive("old", 3_200)
    assert harness.core.state.gaps.dump().pooled == []  # the outage is no gap to learn from
    harness.run_call("old")
    assert old.calls_done == 4
    assert harness.drain() < 20


def test_a_restored_program_stands_before_whoever_is_new() -> None:
    harness = Harness("agentsched", capacity_tokens=4_000)
    for name in ("old", "older"):
        harness.post(ev.ProgramOpened(program=name))
        harness.post(msgspec.structs.replace(RESTORED, program=name))
    harness.arrive(harness.open(), 3_900)
    for name in ("new", "old"):
        if name == "new":
            harness.post(ev.ProgramOpened(program="new"))
        harness.arrive(name, 3_200)
    harness.run_call("p1")
    decided = harness.post(ev.ProgramClosed(program="p1"))
    assert [d.program for d in decided if isinstance(d, Admit)] == ["old"]


def test_only_a_new_program_can_be_restored() -> None:
    harness = Harness("agentsched")
    harness.arrive(harness.open())
    with pytest.raises(Exception, match="has made calls"):
        harness.post(msgspec.structs.replace(RESTORED, program="p1"))


def test_an_engine_that_still_holds_kv_is_told_anew_what_it_is_worth() -> None:
    core = Core(make_policy("agentsched"), epoch=8)
    core.handle(1.0, ev.ProgramOpened(program="old"))
    core.handle(1.0, RESTORED)
    core.handle(2.0, ev.EngineAttached(engine="e", capacity_tokens=10_000, block_tokens=16))
    held = (ev.Held(program="old", device_tokens=2_992), ev.Held(program="gone", device_tokens=512))
    report = ev.StepReport(engine="e", free_tokens=0, evictable_tokens=10_000, held=held, snapshot=True)
    decided = core.handle(3.0, report)
    told = {(type(d), d.program, d.epoch) for d in decided if isinstance(d, Retain | Release)}
    assert told == {(Retain, "old", 8), (Release, "gone", 8)}
    assert len(decided) == len(told)
    assert core.state.programs["old"].home == "e"
    assert core.state.programs["old"].held_tokens == 2_992
    core.check_invariants()
