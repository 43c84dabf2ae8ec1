"""Turns: arrival within a tenant, weighted shares between tenants."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentsched.core import Core, make_policy
from agentsched.core import events as ev
from agentsched.core.decisions import Admit, Rank
from agentsched.core.policies.turns import Turns
from tests.core.harness import Harness

TOKENS = 4_000


class Shop:
    """One engine with room for one program at a time, and tenants whose programs make one call each."""

    def __init__(self, weights: dict[str, float], priorities: dict[str, int] | None = None) -> None:
        self.core = Core(make_policy("agentsched"))
        self.weights = weights
        self.priorities = priorities or {}
        self.served: list[str] = []
        self._now = 0.0
        self._count = 0
        self._post(ev.EngineAttached(engine="e0", capacity_tokens=5_000, block_tokens=16))

    def _post(self, event: ev.AnyEvent) -> None:
        self._now += 1.0
        for decision in self.core.handle(self._now, event):
            if isinstance(decision, Admit):
                self.served.append(decision.program)

    def come(self, tenant: str) -> None:
        self._count += 1
        name = f"{tenant}-{self._count}"
        self._post(
            ev.ProgramOpened(
                program=name,
                tenant=tenant,
                weight=self.weights[tenant],
                priority=self.priorities.get(tenant, 0),
            )
        )
        self._post(ev.CallArrived(call=name, program=name, prompt_tokens=TOKENS, max_output_tokens=9))

    def serve(self) -> None:
        """The seated program makes its call and ends."""
        name = self.served[-1]
        self._post(ev.CallStarted(call=name, cached_tokens=0))
        self._post(ev.FirstToken(call=name))
        self._post(ev.CallFinished(call=name, prompt_tokens=TOKENS, cached_tokens=0, output_tokens=9))
        self._post(ev.ProgramClosed(program=name))


def test_a_tenant_that_floods_the_line_waits_behind_its_own_programs() -> None:
    shop = Shop({"flood": 1.0, "quiet": 1.0})
    for _ in range(20):
        shop.come("flood")
    shop.come("quiet")
    for _ in range(3):
        shop.serve()
    assert any(name.startswith("quiet") for name in shop.served[:4])


def test_a_tenant_that_comes_late_has_no_credit_for_the_past() -> None:
    shop = Shop({"early": 1.0, "late": 1.0})
    for _ in range(30):
        shop.come("early")
    for _ in range(15):
        shop.serve()
    before = len(shop.served)
    for _ in range(10):
        shop.come("late")
    for _ in range(8):
        shop.serve()
    late = sum(name.startswith("late") for name in shop.served[before:])
    assert 3 <= late <= 5


@given(weight=st.sampled_from([1.0, 2.0, 3.0]), order=st.permutations(["a"] * 30 + ["b"] * 30))
def test_backlogged_tenants_are_served_by_weight_within_a_program(weight: float, order: list[str]) -> None:
    shop = Shop({"a": 1.0, "b": weight})
    for tenant in order:
        shop.come(tenant)
    first = shop.served[0][0]  # it came to an empty shop, before there was anything to share
    for _ in range(25):
        shop.serve()
    turns = [name[0] for name in shop.served[1:]]
    for count in range(1, len(turns) + 1):
        served = {tenant: turns[:count].count(tenant) for tenant in "ab"}
        served[first] += 1
        lead = abs(served["b"] / weight - served["a"])
        assert lead <= 2.0, f"after {count}: {served}"


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 100)), max_size=80))
def test_with_one_tenant_turns_are_the_order_of_arrival(steps: list[tuple[int, float]]) -> None:
    harness = Harness("agentsched")
    for choice, wait_s in steps:
        harness.now += wait_s
        choices = harness.choices()
        choices[choice % len(choices)]()
    programs = harness.core.state.programs
    line = [
        (rank.key, programs[rank.program].order)
        for rank in (entry.decision for entry in harness.entries)
        if isinstance(rank, Rank) and rank.program in programs
    ]
    keys = dict(sorted({order: key for key, order in line}.items()))
    assert list(keys.values()) == sorted(keys.values())


def test_a_sub_agent_does_not_wait_behind_who_came_after_its_parent() -> None:
    harness = Harness("agentsched-no-tryouts")
    parent = harness.open()
    harness.arrive(parent, 2_000)
    harness.run_call(parent)
    for _ in range(3):
        harness.arrive(harness.open(), 7_000)
    waits = set(harness.core.state.queue)
    assert waits, "the line is empty"
    for name in ("child", "stranger"):
        harness.post(ev.ProgramOpened(program=name, parent=parent if name == "child" else ""))
        decided = harness.arrive(name, 500)
        seated = [d.program for d in decided if isinstance(d, Admit)]
        assert seated == (["child"] if name == "child" else [])
    assert set(harness.core.state.queue) == waits | {"stranger"}


def test_what_a_sub_agent_takes_is_charged_to_its_tenant() -> None:
    harness = Harness("agentsched")
    turns = harness.core.policy.rank
    assert isinstance(turns, Turns)
    parent = harness.open()
    harness.arrive(parent, 2_000)
    harness.run_call(parent)
    before = turns._tenants["default"].tag
    harness.post(ev.ProgramOpened(program="child", parent=parent))
    harness.arrive("child", 1_000)
    assert turns._tenants["default"].tag == before
    harness.run_call("child")
    assert turns._tenants["default"].tag == before + 1_050
    harness.post(ev.ProgramClosed(program="child"))
    assert turns._tenants["default"].tag == before + 1_050


def test_a_higher_priority_is_seated_first_and_equal_ones_share() -> None:
    shop = Shop({"batch": 1.0, "urgent": 1.0, "other": 1.0}, {"urgent": 1})
    for _ in range(6):
        shop.come("batch")
        shop.come("other")
    for _ in range(3):
        shop.come("urgent")
    for _ in range(14):
        shop.serve()
    tenants = [name.split("-")[0] for name in shop.served]
    assert tenants[1:4] == ["urgent"] * 3
    assert tenants[4:].count("batch") in (5, 6)
    assert sorted(tenants) == ["batch"] * 6 + ["other"] * 6 + ["urgent"] * 3
