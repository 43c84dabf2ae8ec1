"""Engines that keep KV as they like are not told what it is worth; those beside them are."""

from __future__ import annotations

import pytest

from agentsched.core import Core, make_policy
from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.core.policies import POLICY_NAMES


def a_gap(core: Core, *, engine: str) -> list[de.AnyDecision]:
    """One call of a program, and its end."""
    decided = core.handle(1.0, ev.ProgramOpened(program="p"))
    decided += core.handle(
        1.0, ev.CallArrived(call="c", program="p", prompt_tokens=500, max_output_tokens=50)
    )
    assert core.state.programs["p"].seat == engine
    decided += core.handle(1.0, ev.CallStarted(call="c", cached_tokens=0))
    decided += core.handle(2.0, ev.FirstToken(call="c"))
    decided += core.handle(
        3.0, ev.CallFinished(call="c", prompt_tokens=500, cached_tokens=0, output_tokens=50)
    )
    decided += core.handle(
        4.0, ev.CallArrived(call="d", program="p", prompt_tokens=600, max_output_tokens=50)
    )
    core.check_invariants()
    return decided


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_nothing_is_ordered_of_an_engine_that_would_not_do_it(policy: str) -> None:
    core = Core(make_policy(policy))
    attached = ev.EngineAttached(engine="e", capacity_tokens=10_000, block_tokens=16, retention=False)
    decided = core.handle(0.0, attached) + a_gap(core, engine="e")
    decided += core.handle(5.0, ev.PolicyEngaged(engaged=False))
    decided += core.handle(6.0, ev.PolicyEngaged(engaged=True))
    assert not [
        d
        for d in decided
        if isinstance(d, de.Retain | de.EngineTerms) and d.reason != "the policy only watches"
    ]


@pytest.mark.parametrize("retention", [True, False])
def test_the_engine_says_whether_it_is_ordered(retention: bool) -> None:
    core = Core(make_policy("agentsched"))
    attached = ev.EngineAttached(engine="e", capacity_tokens=10_000, block_tokens=16, retention=retention)
    decided = core.handle(0.0, attached) + a_gap(core, engine="e")
    assert any(isinstance(decision, de.Retain) for decision in decided) is retention
