"""A policy that only watches leaves engines as they are without one."""

from __future__ import annotations

import pytest

from agentsched.core import POLICY_NAMES, Core, make_policy
from agentsched.core import events as ev
from agentsched.engines.analytic import AnalyticEngine
from agentsched.engines.cost import PROFILES
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.generate import generate
from agentsched.workloads.meter import Meter
from agentsched.workloads.selection import draw
from agentsched.workloads.simulator import Simulation


def ends(core: Core) -> dict[str, float]:
    """When each program ended, seconds."""
    scripts = draw(generate("continuum-swe", {}), 40, seed=0)
    by_name = {script.program: script for script in scripts}
    meter = Meter(lambda name: (by_name[name], True), ["default"])
    engine = AnalyticEngine(PROFILES["llama-3.1-8b-h100"], 200_000)
    Simulation(core, [engine], scripts, Conditions(concurrency=8), log=meter.take).run()
    return {name: each.last_s for name, each in meter.programs.items()}


@pytest.mark.parametrize("policy", [name for name in POLICY_NAMES if name != "fcfs-lru"])
def test_every_program_takes_exactly_as_long_as_under_fcfs_lru(policy: str) -> None:
    watching = Core(make_policy(policy))
    watching.handle(0.0, ev.PolicyEngaged(engaged=False))
    assert ends(watching) == pytest.approx(ends(Core(make_policy("fcfs-lru"))), rel=1e-9)
