"""The view model against the core: what is shown is what is, whenever one begins to look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import pytest

from agentsched.core import Core, make_policy
from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.core.program_state import Phase
from agentsched.daemon.dashboard.model import ALL, LIVE, Model, brief
from agentsched.daemon.dashboard.rows import Delta, Keep, ProgramRow, View
from agentsched.workloads.simulate import Options, play

Happened = list[tuple[float, ev.AnyEvent, Sequence[de.AnyDecision]]]

BUSY = Options(
    traces=("gen:saga-swe",),
    kv_tokens=150_000,
    concurrency=10,
    programs=30,
    tool_cores=4,
    tool_memory_gb=8,
    told_progress=1.0,
    host_tokens=60_000,
)
_PHASES = {Phase.WAITING: "gateway", Phase.SENT: "queue", Phase.RUNNING: "prefill", Phase.DECODING: "decode"}


class Recorder:
    """Stands before the core, and keeps what happened."""

    def __init__(self) -> None:
        self.core = Core(make_policy("agentsched"))
        self.happened: Happened = []

    def handle(self, now: float, event: ev.AnyEvent) -> list[de.AnyDecision]:
        decided = self.core.handle(now, event)
        self.happened.append((now, event, decided))
        return decided

    def next_wakeup(self) -> float | None:
        return self.core.next_wakeup()


@pytest.fixture(scope="module")
def run() -> Recorder:
    recorder = Recorder()
    play(BUSY, recorder, lambda entry: None).run(until_s=150.0)  # type: ignore[arg-type]
    return recorder


def followed(happened: Happened, model: Model | None = None) -> Model:
    model = model or Model("agentsched", ALL)
    for now, event, decided in happened:
        model.apply(now, event, decided)
    return model


def shown(view: View) -> dict[str, ProgramRow]:
    return {row.program: row for row in view.programs if row.ended_s is None}


def assert_as_in_core(view: View, core: Core) -> None:
    rows = shown(view)
    assert rows.keys() == core.state.programs.keys()
    for name, program in core.state.programs.items():
        row = rows[name]
        doing = row.spans[-1].doing
        phases = {_PHASES[call.phase] for call in program.calls.values()}
        assert doing in phases or (not phases and doing in ("tool", "agent")), name
        assert (row.seat, row.calls_done) == (program.seat, program.calls_done), name
        if program.home is not None:
            assert row.kept[-1].device_tokens == program.held_tokens, name
        assert {tool.tool_call for tool in row.tools if tool.ended_s is None} == program.tools.keys(), name


def test_what_is_shown_is_what_the_core_knows(run: Recorder) -> None:
    view = followed(run.happened).view(0.0)
    assert_as_in_core(view, run.core)
    assert {"waits", "gateway"} & {item.kind for item in view.items} == set()
    assert {"admit", "pause", "retain", "evict", "demote"} <= {item.kind for item in view.items}


def test_who_comes_late_sees_the_same_programs(run: Recorder) -> None:
    """The ring remembers the last events only; the rest is what the core knows."""
    late = followed(run.happened[-400:])
    late.settle(run.happened[-1][0], run.core.state, {})
    assert_as_in_core(late.view(0.0), run.core)
    whole = shown(followed(run.happened).view(0.0))
    for name, row in shown(late.view(0.0)).items():
        assert (row.tenant, row.host, row.opened_s) == (
            whole[name].tenant,
            whole[name].host,
            whole[name].opened_s,
        )


def test_the_deltas_add_up_to_the_view(run: Recorder) -> None:
    """A client that merges them as rows.py says has what a new client is given."""
    model = Model("agentsched", ALL)
    client: dict[str, Any] = {}
    items: dict[int, Any] = {}
    for at, (now, event, decided) in enumerate(run.happened):
        model.apply(now, event, decided)
        if at % 50 == 0 or at == len(run.happened) - 1:
            delta = msgspec.json.decode(msgspec.json.encode(model.delta()), type=Delta)
            for news in delta.programs:
                merge(client, news)
            items |= {item.number: item for item in delta.items}
    view = msgspec.json.decode(msgspec.json.encode(model.view(0.0)), type=View)
    for row in view.programs:
        mine = client[row.program]
        assert [span for span in mine.spans if span in row.spans] == row.spans
        assert mine.spans[-1] == row.spans[-1]
        assert msgspec.structs.replace(mine, spans=row.spans) == row
    assert list(items.values()) == view.items


def merge(client: dict[str, Any], news: ProgramRow) -> None:
    known = client.get(news.program)
    if known is None or known.opened_s != news.opened_s:
        client[news.program] = news
        return
    lists: dict[str, list[Any]] = {}
    for name, key in (("spans", 0), ("kept", 0), ("calls", "call"), ("tools", "tool_call")):
        held = list(getattr(known, name))
        for one in getattr(news, name):
            of = [each[key] if isinstance(key, int) else getattr(each, key) for each in held]
            mark = one[key] if isinstance(key, int) else getattr(one, key)
            if mark in of:
                held[of.index(mark)] = one
            else:
                held.append(one)
        lists[name] = held
    client[news.program] = msgspec.structs.replace(news, **lists)


def held(model: Model, now: float, tokens: int) -> None:
    kept = ev.Held(program="p", device_tokens=tokens)
    report = ev.StepReport(engine="e", free_tokens=100_000 - tokens, evictable_tokens=0, held=(kept,))
    model.apply(now, report, [])


def model_with_a_program(keep: Keep) -> Model:
    model = Model("agentsched", keep)
    model.apply(0.0, ev.EngineAttached(engine="e", capacity_tokens=100_000, block_tokens=16), [])
    model.apply(0.0, ev.ProgramOpened(program="p"), [])
    return model


def test_where_kv_is_has_a_new_sample_only_where_that_can_be_seen() -> None:
    model = model_with_a_program(ALL)
    for second in range(1, 101):
        held(model, float(second), 10_000 + 10 * second)
    (row,) = model.view(0.0).programs
    assert len(row.kept) <= 5
    assert row.kept[-1].device_tokens == 11_000, "what is held now is told exactly"


def test_what_nobody_can_travel_to_is_forgotten() -> None:
    model = model_with_a_program(LIVE)
    assert LIVE.past_s is not None
    length_s = 3 * LIVE.past_s
    for second in range(0, int(length_s), 30):
        held(model, float(second), 1_000 * (1 + second % 60))
        model.delta()
    view = model.view(0.0)
    assert view.keep == LIVE
    (row,) = view.programs
    assert row.kept[0].at_s <= length_s - LIVE.past_s <= row.kept[1].at_s, "where it stood then is known"
    model.apply(length_s, ev.ProgramClosed(program="p"), [])
    held(model, length_s + LIVE.past_s + 1, 0)
    assert model.delta().gone == ["p"]


def test_tools_show_what_was_told_of_them() -> None:
    model = Model("agentsched")
    model.apply(0.0, ev.ProgramOpened(program="p"), [])
    model.apply(1.0, ev.ToolStarted(tool_call="t", program="p", tool="bash", command="pytest"), [])
    for at_s, cpu_s in ((2.0, 1.0), (4.0, 5.0)):
        model.apply(
            at_s,
            ev.ToolProgressed(
                tool_call="t", program="p", cpu_s=cpu_s, memory_bytes=2_000, done_fraction=cpu_s / 10
            ),
            [],
        )
    (tool,) = model.view(0.0).programs[0].tools
    assert (tool.tool, tool.command, tool.cores, tool.memory_bytes) == ("bash", "pytest", 2.0, 2_000)
    assert tool.done_fraction == 0.5
    ended = ev.ToolFinished(
        tool_call="t", program="p", exit_status=1, wall_s=4.0, cpu_s=6.0, peak_memory_bytes=3_000
    )
    model.apply(5.0, ended, [])
    (tool,) = model.view(0.0).programs[0].tools
    assert (tool.ended_s, tool.exit_status, tool.cpu_s, tool.memory_bytes) == (5.0, 1, 6.0, 3_000)


def test_what_nobody_tells_of_a_tool_is_not_0() -> None:
    model = Model("agentsched")
    model.apply(0.0, ev.ProgramOpened(program="p"), [])
    model.apply(1.0, ev.CallArrived(call="c", program="p", prompt_tokens=5, max_output_tokens=5), [])
    asked = (ev.ToolCallRef(tool_call="t", tool="bash"),)
    ended = ev.CallFinished(call="c", prompt_tokens=5, cached_tokens=0, output_tokens=1, tool_calls=asked)
    model.apply(2.0, ended, [])
    (row,) = model.view(0.0).programs
    (tool,) = row.tools
    assert (tool.told, tool.cpu_s, tool.memory_bytes) == (False, None, None)
    assert row.spans[-1].doing == "tool"
    answer = ev.CallArrived(call="d", program="p", prompt_tokens=9, max_output_tokens=5, answers=("t",))
    model.apply(7.0, answer, [])
    assert tool.ended_s == 7.0


def test_evictions_say_what_the_kv_was_worth() -> None:
    model = Model("agentsched")
    model.apply(0.0, ev.EngineAttached(engine="e", capacity_tokens=40_000, block_tokens=16), [])
    model.apply(0.0, ev.ProgramOpened(program="p7"), [])
    steps = (de.Worth(until_s=20.0, value=0.3),)
    part = de.Segment(start_tokens=0, end_tokens=30_000, device=steps)
    order = de.Retain(
        program="p7", engine="e", segments=(part,), lease_until_s=20.0, cause=1, epoch=1, seq=1, reason="why"
    )
    model.apply(1.0, ev.Woken(), [order])
    for at_s, tokens in ((2.0, 30_000), (3.0, 24_000), (4.0, 18_000)):
        held = (ev.Held(program="p7", device_tokens=tokens),)
        report = ev.StepReport(engine="e", free_tokens=0, evictable_tokens=0, held=held)
        model.apply(at_s, report, [])
    (said,) = [item for item in model.view(0.0).items if item.kind == "evict"]
    assert said.text == "the engine evicted 12k tail tokens, 18k stay: worth 0.3/s"


def test_memory_is_bounded(run: Recorder) -> None:
    """However long it runs: lists are cut, and programs that ended are dropped."""
    model = Model("agentsched")
    model.apply(0.0, ev.EngineAttached(engine="e", capacity_tokens=40_000, block_tokens=16), [])
    for number in range(3_000):
        at_s, name = 2.0 * number, f"p{number}"
        model.apply(at_s, ev.ProgramOpened(program=name), [])
        call = ev.CallArrived(call=name, program=name, prompt_tokens=9, max_output_tokens=9)
        model.apply(at_s, call, [])
        model.apply(at_s + 1, ev.CallAborted(call=name, reason="x"), [])
        model.apply(at_s + 1, ev.ProgramClosed(program=name), [])
        model.apply(at_s + 1, ev.StepReport(engine="e", free_tokens=0, evictable_tokens=0), [])
        model.delta()
    view = model.view(0.0)
    assert len(view.programs) <= 451
    assert len(view.items) <= 3_000
    assert len(view.engines[0].gauges) <= 901


def test_brief_is_what_is_now(run: Recorder) -> None:
    view = brief(followed(run.happened).view(0.0))
    assert all(row.ended_s is None and len(row.spans) == 1 for row in view.programs)
    assert all(tool.ended_s is None for row in view.programs for tool in row.tools)
