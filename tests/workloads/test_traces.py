"""Traces: reading, the rules that settle what a record leaves open, selection and drawing."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.workloads.scripts import Piece, Script
from agentsched.workloads.traces import (
    Session,
    TraceError,
    TraceTool,
    TraceTurn,
    draw,
    human_paced,
    load,
    read_sessions,
    roots,
    scripts_from,
    write_sessions,
)


def turn(prompt: int | None = None, output: int | None = None, gap_s: float | None = None) -> TraceTurn:
    return TraceTurn(prompt_tokens=prompt, output_tokens=output, gap_after_s=gap_s)


def growing(name: str, count: int = 3, *, first: int = 20_000, **fields: Any) -> Session:
    """Prompts that grow by 100 over the context, outputs of 50, gaps of 1 s."""
    turns = [turn(first + 150 * index, 50, 1.0) for index in range(count)]
    return Session(session=name, turns=turns, **fields)


def only(*sessions: Session, **options: Any) -> Script:
    (script,) = scripts_from(sessions, **options)
    return script


def spelled(name: str, *prompts: tuple[int, list[tuple[int, int]]]) -> Session:
    turns = [TraceTurn(prompt_tokens=tokens, output_tokens=9, blocks=runs) for tokens, runs in prompts]
    return Session(session=name, source="chat", block_scope="global", block_size=512, turns=turns)


def written(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines))
    return path


# reading


@pytest.mark.parametrize("name", ["t.jsonl", "t.jsonl.gz"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    sessions = [growing("a", source="x", t0=3.0), growing("b", 5, tenant="acme")]
    write_sessions(tmp_path / name, sessions)
    assert list(read_sessions(tmp_path / name)) == sessions


def test_unknown_fields_nulls_and_blank_lines_are_tolerated(tmp_path: Path) -> None:
    record = {
        "session": "a",
        "source": None,
        "kind": None,
        "weather": "fine",
        "turns": [{"prompt_tokens": 7, "mood": [1, {}], "tools": [{"name": "Bash", "later": 1}]}],
    }
    (session,) = read_sessions(written(tmp_path / "t.jsonl", "", json.dumps(record), ""))
    assert session.turns[0].prompt_tokens == 7
    assert session.turns[0].tools == [TraceTool(name="Bash")]


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ('{"session": "a", "turns": [{"prompt_tokens": "many"}]}', r"line 2: .*turns\[\.*\d*.*prompt_tokens"),
        ('{"session": "a", "turns": [{"output_tokens": -1}]}', r"line 2: .*output_tokens"),
        ('{"session": "a"}', r"line 2: .*`turns`"),
        ('{"session": "a", "turns"', r"line 2: "),
    ],
)
def test_errors_name_file_line_and_field(tmp_path: Path, line: str, complaint: str) -> None:
    path = written(tmp_path / "bad.jsonl", '{"session": "good", "turns": []}', line)
    with pytest.raises(TraceError, match=r"bad\.jsonl, " + complaint):
        list(read_sessions(path))


def test_a_file_that_is_cut_off_or_not_there_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"session": "a", "turns": []}\n' * 100, mtime=0)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[:-12])
    (tmp_path / "plain.jsonl.gz").write_text("{}")
    for name in ("cut.jsonl.gz", "plain.jsonl.gz", "absent.jsonl", "."):
        with pytest.raises(TraceError, match=name):
            list(read_sessions(tmp_path / name))


# tokens and gaps


def test_prompts_gain_what_they_exceed_the_context_by_and_at_least_32() -> None:
    session = Session(session="a", turns=[turn(1000, 100), turn(1500, 100), turn(1590, 10), turn(5000, 10)])
    script = only(session)
    assert [each.new_tokens for each in script.turns] == [1000, 400, 32, 3358]
    assert script.contexts() == (1000, 1500, 1632, 5000)


def test_a_much_shorter_prompt_starts_anew() -> None:
    session = Session(session="a", turns=[turn(9000, 1000), turn(8000, 10), turn(6009, 10), turn(6050, 10)])
    script = only(session)
    assert [each.fresh for each in script.turns] == [False, False, True, False]
    assert [each.new_tokens for each in script.turns] == [9000, 32, 6009, 32]


@given(
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 5_000)), min_size=1, max_size=20),
    st.booleans(),
)
def test_contexts_follow_the_recorded_prompts(sizes: list[tuple[int, int]], shared: bool) -> None:
    """Never below the record; above it only by what a small step back or a framing of 32 leaves."""
    fields = {"source": "kv-cache-tester", "tool_tokens": 10, "system_tokens": 20} if shared else {}
    session = Session(session="a", turns=[turn(*size) for size in sizes], **fields)  # type: ignore[arg-type]
    script = only(session, min_calls=1)
    for context, (prompt, _) in zip(script.contexts(), sizes, strict=True):
        assert prompt <= context <= prompt + 2_000 + 32 + 30


def test_unknown_outputs_come_from_characters_and_else_are_100() -> None:
    turns = [
        TraceTurn(prompt_tokens=9, output_chars=4000),
        TraceTurn(prompt_tokens=9, output_chars=4),
        TraceTurn(prompt_tokens=9),
        TraceTurn(prompt_tokens=9, output_tokens=0),
    ]
    assert [each.output_tokens for each in only(Session(session="a", turns=turns)).turns] == [
        1000,
        30,
        100,
        1,
    ]


def test_unknown_prompts_come_from_characters_and_else_add_the_least() -> None:
    turns = [TraceTurn(prompt_chars=4000, output_tokens=10), turn(None, 10), turn(2000, 10)]
    assert only(Session(session="a", turns=turns)).contexts() == (1000, 1042, 2000)
    left_out: Counter[str] = Counter()
    nothing = Session(session="b", turns=[turn(), turn(), turn(50)])
    assert scripts_from([nothing], left_out=left_out) == []
    assert left_out == {"first prompt of unknown size": 1}


def test_gaps_unknown_negative_and_last() -> None:
    turns = [turn(9, 1, None), turn(9, 1, -0.01), turn(9, 1, 500.0), turn(9, 1, 7.0)]
    assert [each.gap_s for each in only(Session(session="a", turns=turns)).turns] == [0.5, 0.0, 500.0, 0.0]


@pytest.mark.parametrize(
    ("source", "cap", "gap_s"),
    [
        ("kv-cache-tester", "auto", 60.0),
        ("kv-cache-tester", None, 500.0),
        ("kv-cache-tester", 5.0, 5.0),
        ("agentcgroup-haiku", "auto", 500.0),
        ("agentcgroup-haiku", 60.0, 60.0),
        ("new-agents", "auto", 500.0),
        (None, "auto", 500.0),
    ],
)
def test_only_human_paced_gaps_are_capped_unless_said(source: str | None, cap: Any, gap_s: float) -> None:
    session = Session(session="a", source=source, turns=[turn(9, 1, 500.0), turn(99, 1), turn(199, 1)])
    assert only(session, gap_cap_s=cap).turns[0].gap_s == gap_s


def test_the_tool_is_the_slowest_and_what_all_used_adds_up() -> None:
    tools = [
        TraceTool(name="Read", duration_s=0.1, cpu_s=0.5, container_peak_rss_mb=300.0),
        TraceTool(name="Bash", command_class="test", duration_s=9.0, cpu_s=2.0, peak_rss_mb=200.0),
        TraceTool(name="Grep"),
    ]
    first = TraceTurn(prompt_tokens=9, tools=tools)
    asked = TraceTurn(prompt_tokens=9, gap_kind="tool")
    script = only(Session(session="a", turns=[first, asked, TraceTurn(prompt_tokens=9, gap_kind="user")]))
    assert (script.turns[0].tool, script.turns[0].command) == ("Bash", "test")
    assert (script.turns[0].cpu_s, script.turns[0].memory_bytes) == (2.5, 300_000_000)
    assert [each.tool for each in script.turns[1:]] == ["unknown", ""]


# shared prefixes


@pytest.mark.parametrize(
    ("source", "tokens"),
    [("agentcgroup-haiku", 11_174), ("agentcgroup-18tasks", 13_796), ("agentcgroup-local", 0), ("new", 0)],
)
def test_prefixes_that_providers_reported(source: str, tokens: int) -> None:
    assert only(growing("a", source=source)).prefix_tokens == tokens
    assert only(growing("a", source=source), sharing=False).prefix == ()
    assert only(growing("a", source=source, first=5_000)).prefix == ()


def test_prefixes_of_equal_pairs_of_sizes() -> None:
    pairs = {"a": (10, 300), "b": (10, 300), "c": (300, 10), "d": (10, None)}
    made = {
        name: only(growing(name, source="kv-cache-tester", tool_tokens=tools, system_tokens=system)).prefix
        for name, (tools, system) in pairs.items()
    }
    assert made["a"] == made["b"] == (Piece("shared:kv-cache-tester:10+300", 310),)
    assert made["c"] != made["a"]
    assert made["c"][0].tokens == 310
    assert made["d"] == ()


def test_global_blocks_are_shared_where_more_than_one_session_holds_them() -> None:
    first = spelled("a", (1100, [(0, 1), (28, 2)]), (1600, [(0, 1), (28, 3)]), (1600, [(0, 1), (28, 3)]))
    second = spelled("b", (600, [(0, 1), (70, 1)]), (600, [(0, 1), (70, 1)]), (600, [(0, 1), (70, 1)]))
    one, two = scripts_from([first, second])
    assert one.turns[0].pieces == (Piece("shared:chat:0", 512), Piece("a/28", 512), Piece("a/29", 76))
    assert two.turns[0].pieces == (Piece("shared:chat:0", 512), Piece("b/70", 88))
    assert one.contexts() == (1100, 1600, 1600)
    alone, _ = scripts_from([first, second], sharing=False)
    assert alone.turns[0].pieces[0] == Piece("a/0", 512)


def test_blocks_of_one_session_alone_are_no_pieces() -> None:
    turns = [TraceTurn(prompt_tokens=100, blocks=[(1, 2)])] * 3
    local = Session(session="a", block_scope="session-tree", block_size=64, turns=turns)
    assert all(not each.pieces for each in only(local).turns)


# sub-agents and what is left out


def family() -> list[Session]:
    return [
        growing("a.sub.sub", kind="subagent", parent_session="a.sub", parent_turn=0),
        growing("a", 4),
        growing("a.sub", kind="subagent", parent_session="a", parent_turn=1, t0=5.0),
        growing("a.lost", kind="subagent", parent_session="a"),
        growing("a.late", kind="subagent", parent_session="a", parent_turn=4),
        growing("orphan", kind="subagent", parent_session="nobody", parent_turn=0),
        growing("short", 2),
        growing("short.sub", kind="subagent", parent_session="short", parent_turn=0),
        growing("empty", 0),
    ]


def test_sub_agents_are_started_by_their_parents_turn() -> None:
    left_out: Counter[str] = Counter()
    scripts = {script.program: script for script in scripts_from(family(), left_out=left_out)}
    assert list(scripts) == ["a.sub.sub", "a", "a.sub"]
    assert [each.agents for each in scripts["a"].turns] == [(), ("a.sub",), (), ()]
    assert scripts["a.sub"].turns[0].agents == ("a.sub.sub",)
    assert [root.program for root in roots(list(scripts.values()))] == ["a"]
    assert left_out == {
        "fewer than 3 calls": 2,
        "sub-agent of an unknown turn": 2,
        "sub-agent of a session that is not there": 2,
    }


def test_contexts_that_no_engine_holds_are_left_out() -> None:
    left_out: Counter[str] = Counter()
    kept = scripts_from([growing("a"), growing("b", first=900)], max_context_tokens=1_250, left_out=left_out)
    assert [script.program for script in kept] == ["b"]
    assert left_out == {"context over 1250 tokens": 1}
    assert scripts_from([growing("b", first=900)], max_context_tokens=1_249) == []


def test_names_must_be_unique() -> None:
    with pytest.raises(TraceError, match="'a' appears 2 times"):
        scripts_from([growing("a"), growing("a")])


def test_human_paced_sessions_end_at_128k_tokens_or_below() -> None:
    sized = {"fits": 127_650, "over": 127_651}
    sessions = [growing(name, first=first, source="kv-cache-tester") for name, first in sized.items()]
    assert [script.program for script in human_paced(scripts_from([*sessions, growing("x")]))] == ["fits"]


# drawing


def test_draws_repeat_by_seed_and_begin_alike() -> None:
    scripts = scripts_from([growing(name) for name in "abcdef"])
    assert draw(scripts, 20, seed=1) == draw(scripts, 30, seed=1)[:20]
    assert draw(scripts, 20, seed=1) != draw(scripts, 20, seed=2)
    assert len({script.program for script in draw(scripts, 50, seed=1)}) == 50
    with pytest.raises(TraceError, match="no program to draw"):
        draw([], 1, seed=1)


def test_drawn_parents_bring_their_own_sub_agents() -> None:
    drawn = draw(scripts_from(family()), 2, seed=1)
    assert [script.program for script in drawn[:3]] == ["p00000-a", "p00000-a.sub", "p00000-a.sub.sub"]
    assert drawn[3].turns[1].agents == ("p00001-a.sub",)
    assert len(drawn) == 6


def test_copies_share_only_what_sessions_share() -> None:
    blocks = (1024, [(0, 1), (28, 1)])
    scripts = scripts_from([spelled("a", blocks, blocks, blocks), spelled("b", *[(9, [(0, 1)])] * 3)])
    one, two = draw([scripts[0]], 2, seed=0)
    assert one.turns[0].pieces == (Piece("shared:chat:0", 512), Piece("p00000-a/28", 512))
    assert two.turns[0].pieces == (Piece("shared:chat:0", 512), Piece("p00001-a/28", 512))


# load


def test_load_finds_files_parts_of_files_and_generators(tmp_path: Path) -> None:
    path = tmp_path / "t#1.jsonl"
    sources = ("kv-cache-tester", "agentcgroup-haiku", "agentcgroup-18tasks", "new")
    write_sessions(path, [growing(source, source=source) for source in sources])

    def names(spec: str) -> list[str]:
        return [script.program for script in load(spec)]

    assert names(str(path)) == list(sources)
    path = path.rename(tmp_path / "t.jsonl")
    assert names(f"{path}#tool-paced") == ["agentcgroup-haiku", "agentcgroup-18tasks"]
    assert names(f"{path}#human-paced") == ["kv-cache-tester"]
    assert names(f"{path}#source=new,kv-cache-tester") == ["kv-cache-tester", "new"]
    assert len(load("gen:continuum-swe?programs=3")) == 3
    assert load("gen:saga-swe?programs=2", seed=5) == load("gen:saga-swe?programs=2&seed=5")
    assert all(script.prefix for script in load("gen:text2sql?programs=2"))
    assert not any(script.prefix for script in load("gen:text2sql?programs=2", sharing=False))


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("#best", "#tool-paced, #human-paced and #source="),
        ("#source=", "#source=NAME"),
        ("#tool-paced", "no session is left of the 1 that"),
        ("gen:nothing", "there are: saga-swe"),
        ("gen:saga-swe?colour=red", "no option 'colour'"),
        ("gen:saga-swe?steps=many", "steps must be of type float"),
        ("gen:saga-swe?programs", "bad query"),
        ("gen:saga-swe?programs=0", "at least 1"),
        ("gen:text2sql?candidates=0", "candidates"),
    ],
)
def test_load_says_what_is_wrong(tmp_path: Path, spec: str, complaint: str) -> None:
    write_sessions(tmp_path / "t.jsonl", [growing("a")])
    with pytest.raises(TraceError, match=complaint):
        load(spec if spec.startswith("gen:") else f"{tmp_path / 't.jsonl'}{spec}")
