"""Traces: recorded programs, and the scripts that the simulator plays from them.

``read_sessions`` reads a file as it is; ``scripts_from`` settles what the record leaves open (nulls,
compaction, shared prefixes), always in the same way, so that results on one file compare. ``load`` finds
what a command line names. The schema and every rule stand in ``docs/traces.md``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl

from agentsched.workloads.generate import generate
from agentsched.workloads.scripts import Piece, Script, Turn
from agentsched.workloads.selection import HUMAN_PACED, draw, human_paced, roots, select, tool_paced
from agentsched.workloads.sessions import (
    Session,
    TraceError,
    TraceTool,
    TraceTurn,
    read_sessions,
    write_sessions,
)

__all__ = [
    "TraceError",
    "Session",
    "TraceTurn",
    "TraceTool",
    "read_sessions",
    "write_sessions",
    "GapCap",
    "scripts_from",
    "load",
    "roots",
    "select",
    "tool_paced",
    "human_paced",
    "draw",
]

MIN_NEW_TOKENS = 32
"""What a prompt gains at least: its framing and the result of a tool that said nothing."""
FRESH_BELOW_TOKENS = 2_000
"""A prompt shorter than the context so far by more than this does not continue it."""
UNKNOWN_GAP_S = 0.5
UNKNOWN_OUTPUT_TOKENS, MIN_OUTPUT_TOKENS, CHARS_A_TOKEN = 100, 30, 4
HUMAN_GAP_CAP_S = 60.0
UNNAMED_TOOL = "unknown"
"""Stands for the tool of a call that asked for one, in a record without names."""

# what the provider reported as cached on first turns: the agent's system prompt and tools
MEASURED_PREFIX = {"agentcgroup-haiku": 11_174, "agentcgroup-18tasks": 13_796}
SIZED_PREFIX = frozenset({"kv-cache-tester"})

GapCap = float | Literal["auto"] | None


def scripts_from(
    sessions: Iterable[Session],
    *,
    sharing: bool = True,
    gap_cap_s: GapCap = "auto",
    max_context_tokens: int | None = None,
    min_calls: int = 3,
    left_out: Counter[str] | None = None,
) -> list[Script]:
    """One script a session, in the order of the file; sub-agents are named by the turn that starts them.

    ``gap_cap_s``: longest gap; "auto" caps human-paced sets at 60 s and no others. ``max_context_tokens``
    leaves out sessions whose context ever exceeds it. ``left_out`` is given the number of sessions left
    out for each reason. Raises ``TraceError`` if two sessions have one name.
    """
    listed = list(sessions)
    _check_names(listed)
    reasons: Counter[str] = Counter() if left_out is None else left_out
    common = _common_blocks(listed) if sharing else frozenset[tuple[str, int]]()
    made: dict[str, Script] = {}
    for session in listed:
        script = _script(session, common, sharing, gap_cap_s)
        if len(session.turns) < max(1, min_calls):
            reasons[f"fewer than {max(1, min_calls)} calls"] += 1
        elif script is None:
            reasons["first prompt of unknown size"] += 1
        elif max_context_tokens is not None and _peak_tokens(script) > max_context_tokens:
            reasons[f"context over {max_context_tokens} tokens"] += 1
        else:
            made[session.session] = script
    return _with_agents([session for session in listed if session.session in made], made, reasons)


def _check_names(sessions: Sequence[Session]) -> None:
    names = Counter(session.session for session in sessions)
    twice = next((name for name, times in names.items() if times > 1), None)
    if twice is not None:
        raise TraceError(f"session {twice!r} appears {names[twice]} times; names must be unique")


def _with_agents(sessions: Sequence[Session], made: dict[str, Script], reasons: Counter[str]) -> list[Script]:
    """Tie sub-agents to the turns that start them; those whose parent or turn is unknown are left out."""
    kept = {session.session for session in sessions if not session.is_agent}
    started: dict[tuple[str, int], list[str]] = {}
    waiting = [session for session in sessions if session.is_agent]
    # an agent may have agents of its own: place them from the roots down
    while placed := [session for session in waiting if session.parent_session in kept]:
        waiting = [session for session in waiting if session.parent_session not in kept]
        for session in placed:
            parent, turn = session.parent_session or "", session.parent_turn
            if turn is None or not 0 <= turn < len(made[parent].turns):
                reasons["sub-agent of an unknown turn"] += 1
            else:
                started.setdefault((parent, turn), []).append(session.session)
                kept.add(session.session)
    if waiting:
        reasons["sub-agent of a session that is not there"] += len(waiting)
    for (parent, turn), names in started.items():
        turns = list(made[parent].turns)
        turns[turn] = replace(turns[turn], agents=tuple(names))
        made[parent] = replace(made[parent], turns=tuple(turns))
    return [made[session.session] for session in sessions if session.session in kept]


def _script(
    session: Session, common: frozenset[tuple[str, int]], sharing: bool, gap_cap_s: GapCap
) -> Script | None:
    """The session alone; None if it has no first prompt to begin from."""
    first = _prompt_tokens(session, session.turns[0]) if session.turns else None
    if first is None:
        return None
    source = session.source or ""
    cap = gap_cap_s
    if cap == "auto":
        cap = HUMAN_GAP_CAP_S if source in HUMAN_PACED else None
    prefix = _prefix(session, first) if sharing else ()
    return Script(
        program=session.session,
        arrives_s=0.0 if session.is_agent else max(0.0, session.t0 or 0.0),
        turns=tuple(_turns(session, common, sum(piece.tokens for piece in prefix), cap)),
        prefix=prefix,
        tenant=session.tenant or "default",
        source=source,
    )


def _prefix(session: Session, first_prompt: int) -> tuple[Piece, ...]:
    """What its contexts share with other programs of its source. Too short a prompt shares nothing."""
    source = session.source or ""
    if source in SIZED_PREFIX and session.tool_tokens is not None and session.system_tokens is not None:
        tokens = session.tool_tokens + session.system_tokens
        key = f"shared:{source}:{session.tool_tokens}+{session.system_tokens}"
    else:
        tokens = 0 if session.is_agent else MEASURED_PREFIX.get(source, 0)
        key = f"shared:{source}:{tokens}"
    return (Piece(key, tokens),) if 0 < tokens < first_prompt else ()


def _turns(
    session: Session, common: frozenset[tuple[str, int]], prefix_tokens: int, gap_cap_s: float | None
) -> Iterator[Turn]:
    spelled = _spelled(session)
    context = 0
    for index, turn in enumerate(session.turns):
        prompt = _prompt_tokens(session, turn)
        if prompt is None:
            prompt = context + MIN_NEW_TOKENS
        fresh = context - prompt > FRESH_BELOW_TOKENS
        if fresh:
            new, context = max(prompt, prefix_tokens + MIN_NEW_TOKENS), 0
        else:
            new = max(prompt - context, MIN_NEW_TOKENS)
        output = _output_tokens(turn)
        context += new + output
        tool, command = _tool(turn)
        yield Turn(
            new_tokens=new,
            output_tokens=output,
            gap_s=_gap_s(turn, gap_cap_s) if index < len(session.turns) - 1 else 0.0,
            tool=tool,
            command=command,
            fresh=fresh,
            pieces=_pieces(session, turn, prompt, common) if spelled else (),
            cpu_s=sum(max(0.0, each.cpu_s or 0.0) for each in turn.tools or ()),
            memory_bytes=max((_memory_bytes(each) for each in turn.tools or ()), default=0),
        )


def _prompt_tokens(session: Session, turn: TraceTurn) -> int | None:
    if turn.prompt_tokens is not None:
        return turn.prompt_tokens
    if turn.blocks and session.block_size:
        return session.block_size * sum(count for _, count in turn.blocks)
    return None if turn.prompt_chars is None else turn.prompt_chars // CHARS_A_TOKEN


def _output_tokens(turn: TraceTurn) -> int:
    if turn.output_tokens is not None:
        return max(1, turn.output_tokens)
    if turn.output_chars is not None:
        return max(MIN_OUTPUT_TOKENS, turn.output_chars // CHARS_A_TOKEN)
    return UNKNOWN_OUTPUT_TOKENS


def _gap_s(turn: TraceTurn, cap_s: float | None) -> float:
    gap_s = UNKNOWN_GAP_S if turn.gap_after_s is None else max(0.0, turn.gap_after_s)
    return gap_s if cap_s is None else min(gap_s, cap_s)


def _tool(turn: TraceTurn) -> tuple[str, str]:
    """Name and command class of the slowest tool: the one that the gap waits for."""
    if turn.tools:
        slowest = max(turn.tools, key=lambda each: each.duration_s or 0.0)
        return slowest.name, slowest.command_class or ""
    asked = turn.tools is None and (turn.gap_kind == "tool" or turn.stop == "tool_use")
    return (UNNAMED_TOOL if asked else ""), ""


def _memory_bytes(tool: TraceTool) -> int:
    megabytes = tool.container_peak_rss_mb if tool.peak_rss_mb is None else tool.peak_rss_mb
    return int(max(0.0, megabytes or 0.0) * 1e6)


def _spelled(session: Session) -> bool:
    """Whether every prompt is named by blocks that mean the same in all sessions."""
    return (
        session.block_scope == "global" and bool(session.block_size) and all(t.blocks for t in session.turns)
    )


def _ids(turn: TraceTurn) -> Iterator[int]:
    for first, count in turn.blocks or ():
        yield from range(first, first + count)


def _common_blocks(sessions: Sequence[Session]) -> frozenset[tuple[str, int]]:
    """(source, id) of the global blocks that more than one session holds."""
    holders: Counter[tuple[str, int]] = Counter()
    for session in filter(_spelled, sessions):
        ids = dict.fromkeys(each for turn in session.turns for each in _ids(turn))
        holders.update((session.source or "", each) for each in ids)
    return frozenset(block for block, times in holders.items() if times > 1)


def _pieces(
    session: Session, turn: TraceTurn, prompt: int, common: frozenset[tuple[str, int]]
) -> tuple[Piece, ...]:
    """The prompt block by block; the last block may be part of one."""
    source, pieces, left = session.source or "", list[Piece](), prompt
    for each in _ids(turn):
        tokens = min(session.block_size or 0, left)
        if tokens < 1:
            break
        owner = f"shared:{source}:" if (source, each) in common else f"{session.session}/"
        pieces.append(Piece(f"{owner}{each}", tokens))
        left -= tokens
    if left > 0:
        pieces.append(Piece(f"{session.session}/beyond-{turn.t}", left))
    return tuple(pieces)


def _peak_tokens(script: Script) -> int:
    prompts = zip(script.contexts(), script.turns, strict=True)
    return max(prompt + turn.output_tokens for prompt, turn in prompts)


def load(
    spec: str,
    *,
    sharing: bool = True,
    gap_cap_s: GapCap = "auto",
    max_context_tokens: int | None = None,
    min_calls: int = 3,
    seed: int = 0,
    left_out: Counter[str] | None = None,
) -> list[Script]:
    """The scripts that a command line names.

    ``PATH`` is a trace file, ``PATH#tool-paced``, ``PATH#human-paced`` and ``PATH#source=NAME,NAME`` parts
    of one, and ``gen:NAME?option=value&...`` a generator, ``seed`` being its seed unless it is an option.
    The other parameters are those of ``scripts_from``; of these only ``sharing`` concerns generators.
    Raises ``TraceError``.
    """
    if spec.startswith("gen:"):
        return _generated(spec, sharing, seed)
    path, selector = spec, ""
    if not Path(spec).exists():
        path, _, selector = spec.partition("#")
    pick = _selector(selector)
    scripts = scripts_from(
        read_sessions(path),
        sharing=sharing,
        gap_cap_s=gap_cap_s,
        max_context_tokens=max_context_tokens,
        min_calls=min_calls,
        left_out=left_out,
    )
    picked = pick(scripts)
    if not picked:
        raise TraceError(f"{spec}: no session is left of the {len(scripts)} that can be simulated")
    return picked


def _selector(text: str) -> Callable[[Sequence[Script]], list[Script]]:
    if not text:
        return list
    if text in ("tool-paced", "human-paced"):
        return tool_paced if text == "tool-paced" else human_paced
    name, _, values = text.partition("=")
    if name != "source" or not values:
        raise TraceError(f"#{text}: there are #tool-paced, #human-paced and #source=NAME,NAME")
    wanted = values.split(",")
    return lambda scripts: select(scripts, lambda script: script.source in wanted)


def _generated(spec: str, sharing: bool, seed: int) -> list[Script]:
    name, _, query = spec.removeprefix("gen:").partition("?")
    try:
        options = dict(parse_qsl(query, strict_parsing=True, keep_blank_values=True)) if query else {}
        scripts = generate(name, {"seed": str(seed)} | options)
    except ValueError as error:
        raise TraceError(f"{spec}: {error}") from None
    if not scripts:
        raise TraceError(f"{spec}: programs must be at least 1")
    return scripts if sharing else [replace(script, prefix=()) for script in scripts]
