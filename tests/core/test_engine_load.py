"""The ledger of loads counts what a full count would, whatever happens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core import events as ev
from agentsched.core.policies.engine_load import EngineLoads
from agentsched.core.state import Phase, State
from tests.core.harness import CAPACITY, Harness

STEPS = st.lists(st.tuples(st.integers(0, 10_000), st.floats(0, 30)), max_size=60)


def ledger(harness: Harness) -> EngineLoads:
    (loads,) = [part for part in harness.core.policy.learners if isinstance(part, EngineLoads)]
    return loads


def counted(state: State, engine: str) -> tuple[int, int, int, int]:
    seated = [p for p in state.programs.values() if p.seat == engine]
    here = [p for p in state.programs.values() if (p.seat or p.home) == engine]
    phases = [call.phase for program in here for call in program.calls.values()]
    queued = phases.count(Phase.SENT)
    running = phases.count(Phase.RUNNING) + phases.count(Phase.DECODING)
    return len(seated), sum(p.expected_context_tokens for p in seated), queued, running


@pytest.mark.parametrize("policy", ["saga", "thunderagent", "plas"])
@given(steps=STEPS, lose=st.integers(0, 80))
@settings(max_examples=40, deadline=None)
def test_the_ledger_equals_a_full_count(policy: str, steps: list[tuple[int, float]], lose: int) -> None:
    harness = Harness(policy)
    harness.post(ev.EngineAttached(engine="e1", capacity_tokens=CAPACITY // 2, block_tokens=16))
    for number, (choice, wait_s) in enumerate(steps):
        harness.now += wait_s
        if number == lose:
            harness.post(ev.EngineLost(engine="e0"))
        else:
            choices = harness.choices()
            choices[choice % len(choices)]()
        loads, state = ledger(harness), harness.core.state
        assert set(loads.engines) == set(state.engines)
        for name, load in loads.engines.items():
            assert (load.programs, load.tokens, load.queued, load.running) == counted(state, name)
            assert (load.idle_since_s is None) == (load.calls > 0)
            assert (name in loads.overfull) == (load.tokens > load.capacity_tokens)
        assert loads.queued == sum(load.queued for load in loads.engines.values())
