"""The tool controller in virtual time: calm costs nothing, bursts are held, and every wait ends."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core.tool_control import (
    Call,
    Cap,
    Freeze,
    HostSeen,
    Kill,
    Protect,
    Seen,
    Terms,
    Thaw,
    ToolControl,
    Weigh,
    Why,
    Worth,
)
from agentsched.core.tool_control.grants import Asks, share_out
from tests.core.tool_host import MIB, STEP_S, Tool, ToyHost

GIB = 1 << 30
TOTAL = 4 * GIB


def tool(name: str, peak_mib: int, *, rate_mib: float = 500, work_s: float = 1.0, program: str = "") -> Tool:
    call = Call(tool_call=name, program=program or f"program of {name}", key="bash:pytest")
    return Tool(call, peak_mib * MIB, rate_mib * MIB, work_s)


def kills(host: ToyHost) -> list[Kill]:
    return [action for action in host.actions if isinstance(action, Kill)]


def test_with_memory_to_spare_nothing_is_done() -> None:
    host = ToyHost(TOTAL)
    for number in range(5):
        host.start(tool(f"t{number}", 300))
    host.run(60)
    assert [tool.ended for tool in host.tools.values()] == ["done"] * 5
    assert host.actions == []


def test_calls_that_do_not_fit_together_run_one_after_the_other_and_all_end() -> None:
    host = ToyHost(TOTAL)
    for _ in range(3):
        host.control.memory.observe("bash:pytest", 2500 * MIB)
    for number in range(3):
        host.start(tool(f"t{number}", 2500, rate_mib=100, work_s=2))
    host.run(300)
    assert [tool.ended for tool in host.tools.values()] == ["done"] * 3
    assert host.overrun_bytes == 0
    lifted = [action for action in host.actions if isinstance(action, Cap) and action.limit_bytes is None]
    assert lifted, "caps are lifted in the end"


def test_calls_that_nobody_expected_to_be_so_big_yield_to_the_first() -> None:
    host = ToyHost(TOTAL)
    for number in range(3):
        host.start(tool(f"t{number}", 2500, rate_mib=100, work_s=2))
    host.run(300)
    assert [tool.ended for tool in host.tools.values()] == ["done", "short", "short"]
    assert host.overrun_bytes == 0


def test_the_one_of_a_higher_priority_is_first_and_another_ends_for_it() -> None:
    host = ToyHost(TOTAL)
    host.start(tool("old", 3000, work_s=600, program="low"))
    host.run(20)
    host.control.worth(Worth(program="high", priority=3))
    host.start(tool("new", 2500, rate_mib=1000, program="high"))
    host.run(60)
    assert host.tools["new"].ended == "done"
    assert [(kill.tool_call, kill.why) for kill in kills(host)] == [("old", Why.SHORT)]
    assert host.overrun_bytes == 0


def test_what_was_taken_over_a_cap_does_not_become_the_next_cap() -> None:
    host = ToyHost(TOTAL, slack=0.05)
    for number in range(3):
        host.start(tool(f"t{number}", 2500))
    host.run(300)
    assert host.overrun_bytes == 0
    assert host.tools["t0"].ended == "done"
    assert not host.live


def test_one_that_needs_more_than_there_is_ends_and_is_told_so() -> None:
    host = ToyHost(TOTAL)
    host.start(tool("huge", 9000))
    host.run(120)
    (kill,) = kills(host)
    assert kill.why is Why.TOO_BIG
    assert kill.waited_s == pytest.approx(host.terms.stall_s, abs=1.0)


def test_who_was_ended_and_tries_again_keeps_its_place_in_line() -> None:
    host = ToyHost(TOTAL)
    for number in range(2):
        host.start(tool(f"t{number}", 2500, rate_mib=200, work_s=20, program=f"p{number}"))
    host.run(30)
    assert [kill.tool_call for kill in kills(host)] == ["t1"]
    host.start(tool("t2", 2500, rate_mib=200, work_s=2, program="p2"))
    host.start(tool("t1 again", 2500, rate_mib=200, work_s=2, program="p1"))
    host.run(300)
    assert [host.tools[name].ended for name in ("t0", "t1 again")] == ["done", "done"]


def test_memory_that_others_take_freezes_a_call_then_ends_it_and_no_more() -> None:
    host = ToyHost(TOTAL)
    host.start(tool("a", 1000, work_s=100))
    host.start(tool("b", 1000, work_s=100))
    host.run(10)
    host.others_bytes = host.total_bytes - 2000 * MIB - 32 * MIB
    host.run(20)
    assert [type(action) for action in host.actions if isinstance(action, Freeze | Kill)] == [Freeze, Kill]
    assert host.tools["b"].ended == "short"
    assert host.tools["a"].ended == ""


def test_a_freeze_ends_with_its_cause() -> None:
    host = ToyHost(TOTAL)
    host.start(tool("a", 1000, work_s=100))
    host.run(5)
    host.others_bytes = host.total_bytes - 1000 * MIB - 32 * MIB
    while not host.tools["a"].frozen:
        host.step()
    host.others_bytes = 0
    host.run(host.now + 1)
    assert not host.tools["a"].frozen
    assert any(isinstance(action, Thaw) for action in host.actions)


def test_memory_that_no_tool_holds_ends_no_tool() -> None:
    host = ToyHost(TOTAL, others_bytes=TOTAL - 20 * MIB)
    host.start(tool("small", 4, work_s=5))
    host.run(20)
    assert host.tools["small"].ended == "done"
    assert kills(host) == []


def test_the_first_in_line_is_protected() -> None:
    host = ToyHost(TOTAL)
    host.start(tool("a", 2600, work_s=5))
    host.start(tool("b", 2600, work_s=5))
    host.run(8)
    protected = [action for action in host.actions if isinstance(action, Protect) and action.held_bytes]
    assert {action.tool_call for action in protected} == {"a"}


def test_what_was_learned_of_a_class_is_expected_of_it_and_a_hint_adds_to_it() -> None:
    control = ToolControl()
    for number in range(5):
        control.began(0.0, Call(tool_call=f"c{number}", program="p", key="bash:make"))
        control.ended(1.0, f"c{number}", 700 * MIB, by_itself=True)
    control.began(2.0, Call(tool_call="x", program="p", key="bash:make"))
    assert control.soft_bytes("x") == 700 * MIB
    control.began(2.0, Call(tool_call="y", program="p", key="bash:make", stated_bytes=900 * MIB))
    assert control.soft_bytes("y") == 900 * MIB
    control.began(2.0, Call(tool_call="z", program="p", key="bash:make", stated_bytes=MIB, limit_bytes=MIB))
    assert control.soft_bytes("z") == MIB


def test_cpu_weights_follow_tenant_intent_and_the_kv_that_waits() -> None:
    control = ToolControl()
    assert control.began(0.0, Call(tool_call="a", program="p")) == []
    assert control.began(0.0, Call(tool_call="b", program="q", intent=200)) == [
        Weigh(program="q", weight=200)
    ]
    assert control.worth(Worth(program="p", weight=3.0)) == [Weigh(program="p", weight=300)]
    control.worth(Worth(program="p", kv_tokens=30_000))
    told = control.worth(Worth(program="q", kv_tokens=10_000))
    assert told == [Weigh(program="p", weight=450), Weigh(program="q", weight=100)]


shapes = st.tuples(
    st.integers(1, 4000),  # peak, MiB
    st.floats(50, 4000),  # MiB a second
    st.floats(0.05, 10),  # work, s
    st.integers(0, 2),  # priority
    st.floats(0, 5),  # starts at, s
)


@settings(max_examples=150)
@given(st.lists(shapes, min_size=1, max_size=8), st.lists(st.tuples(st.floats(0, 20), st.integers(0, 95))))
def test_nobody_is_held_back_for_ever_whatever_tools_and_others_do(
    tools: list[tuple[int, float, float, int, float]], others: list[tuple[float, int]]
) -> None:
    """No wait lasts longer than ``stall_s``, a look, and the ends of others that wait as long; all calls
    end; an order never names what is not there."""
    terms = Terms(stall_s=3.0)
    host = ToyHost(TOTAL, terms=terms)
    waiting = sorted(enumerate(tools), key=lambda item: item[1][4])
    changes = sorted(others)
    while waiting or host.live:
        while waiting and waiting[0][1][4] <= host.now:
            number, (peak, rate, work_s, priority, _) = waiting.pop(0)
            host.control.worth(Worth(program=f"p{number}", priority=priority))
            host.start(tool(f"t{number}", peak, rate_mib=rate, work_s=work_s, program=f"p{number}"))
        while changes and changes[0][0] <= host.now:
            host.others_bytes = changes.pop(0)[1] * TOTAL // 100
        host.step()
        assert host.now < 1_000
    one_by_one_s = len(tools) * (terms.settle_s + terms.tight_look_s)
    bound = terms.stall_s + 2 * terms.tight_look_s + 2 * STEP_S + one_by_one_s
    assert max(tool.longest_stop_s for tool in host.tools.values()) <= bound
    assert all(tool.ended for tool in host.tools.values())


@given(
    st.lists(st.builds(Asks, st.integers(0, TOTAL), st.integers(0, TOTAL), st.booleans()), max_size=20),
    st.integers(-TOTAL, TOTAL),
)
def test_no_more_is_granted_than_there_is(line: list[Asks], spare: int) -> None:
    grants = share_out(line, spare, 16 * MIB)
    assert all(grant >= 0 for grant in grants)
    assert sum(grants) == (max(0, spare) if line else 0)
    if line:
        assert grants[0] >= min(max(0, spare), line[0].want_bytes)


def test_in_calm_times_usage_need_not_be_read() -> None:
    control = ToolControl()
    control.began(0.0, Call(tool_call="a", program="p"))
    calm, tight = HostSeen(total_bytes=TOTAL, free_bytes=3 * GIB), HostSeen(total_bytes=TOTAL, free_bytes=0)
    assert not control.needs_usage(calm)
    assert 0 < control.until_tight_bytes(calm) < 3 * GIB
    assert control.needs_usage(tight)
    assert control.until_tight_bytes(tight) == 0
    control.looked(0.0, tight, {"a": Seen(memory_bytes=GIB)})
    assert control.needs_usage(calm), "caps must be lifted by what is seen"


@pytest.mark.parametrize(
    ("field", "value"), [("reserve_share", 0.9), ("tight_share", 0.9), ("stall_s", 0.0), ("step_bytes", 0)]
)
def test_terms_that_make_no_sense_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=field):
        msgspec.convert({field: value}, Terms)
