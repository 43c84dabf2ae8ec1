"""What the dashboard, ``agentsched top`` and ``agentsched report`` show, as values that JSON carries.

A ``View`` is everything, a ``Delta`` what has changed since: its programs and engines carry all their facts,
and of their lists what is new. A list grows at its end; an element with the time (or the name) of one that is
there takes its place. ``web/src/types.ts`` mirrors this file.

Times are seconds of the host's monotonic clock, sizes bytes, KV tokens. None: nobody told the daemon.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

FORMAT = 2
"""Of ``View`` and ``Delta``; pages of another one load themselves anew."""

Doing = Literal["gateway", "queue", "prefill", "decode", "tool", "agent", "ended"]
"""What a program does: its call waits for a place, or in the engine; its prompt is read; its answer is
written; a tool runs; the agent itself is busy."""


class Span(NamedTuple):
    """From ``start_s`` on, until the next one begins."""

    start_s: float
    doing: Doing


class Kept(NamedTuple):
    """Where a program's KV is from ``at_s`` on: the rest of its context is nowhere."""

    at_s: float
    device_tokens: int
    host_tokens: int
    context_tokens: int


class CallRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One LLM call. ``asks``: the tool calls that its answer asked for."""

    call: str
    arrived_s: float
    prompt_tokens: int
    sent_s: float | None = None
    started_s: float | None = None
    first_token_s: float | None = None
    ended_s: float | None = None
    cached_tokens: int = 0
    output_tokens: int = 0
    recomputed_tokens: int = 0
    failed: str = ""
    asks: tuple[str, ...] = ()


class ToolRow(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One tool call. ``told``: something reports on it; else all that is known is when it was asked for and
    when its result came. ``cores``: CPU used lately, ``done_fraction``: of its time."""

    tool_call: str
    tool: str
    began_s: float
    told: bool = False
    command: str = ""
    ended_s: float | None = None
    exit_status: int | None = None
    cpu_s: float | None = None
    cores: float | None = None
    memory_bytes: int | None = None
    expected_bytes: int = 0
    done_fraction: float | None = None
    heard_s: float = 0.0


class ProgramRow(msgspec.Struct, kw_only=True):
    """One program. ``seat``: the engine that should hold its KV; None: it has no place. ``why`` is what was
    last decided of its place, ``waits`` why it has none although it has a call."""

    program: str
    tenant: str
    opened_s: float
    parent: str = ""
    host: str = ""
    ended_s: float | None = None
    due_s: float | None = None
    seat: str | None = None
    home: str | None = None
    calls_done: int = 0
    expected_calls: int = 0
    why: str = ""
    waits: str = ""
    spans: list[Span] = []
    kept: list[Kept] = []
    calls: list[CallRow] = []
    tools: list[ToolRow] = []


class Item(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of what was decided, or of what an engine did by itself. ``advice``: the policy only
    watches."""

    number: int
    at_s: float
    kind: str
    text: str
    program: str = ""
    tenant: str = ""
    engine: str = ""
    advice: bool = False


class Gauge(NamedTuple):
    """One engine at ``at_s``; ``need`` and after it as the core expects, None while nobody asked it.
    ``prefilled``, ``recomputed`` and ``evicted`` are sums since it was attached."""

    at_s: float
    used_tokens: int
    running: int
    queued: int
    prefilled_tokens: int
    recomputed_tokens: int
    evicted_tokens: int
    need_tokens: int | None = None
    peak_tokens: int | None = None
    bound_tokens: int | None = None


class EngineRow(msgspec.Struct, kw_only=True):
    """One engine; ``peak_calls``: after how many calls of each program the predicted peak is reached."""

    engine: str
    capacity_tokens: int
    host_capacity_tokens: int = 0
    attached: bool = True
    room_tokens: int | None = None
    peak_calls: float | None = None
    price: float | None = None
    gauges: list[Gauge] = []


class HostRow(msgspec.Struct, kw_only=True):
    """A host of tools, and the memory that they may use there."""

    host: str
    memory_bytes: int


class Keep(msgspec.Struct, frozen=True, kw_only=True):
    """How much is kept, the latest, by the daemon and by the page alike. None: all of it.

    ``past_s``: nothing of before can be travelled to, so what a program did and held then is not kept, nor
    who had ended. ``spans`` to ``tools`` are of each program, ``gauges`` of each engine, ``items`` of all.
    """

    past_s: float | None = None
    spans: int | None = None
    kept: int | None = None
    calls: int | None = None
    tools: int | None = None
    gauges: int | None = None
    items: int | None = None


class Delta(msgspec.Struct, kw_only=True):
    """What changed up to ``at_s``. ``gone``: programs that are shown no more. ``pace_s``: seconds from call
    to call of a program, as it was lately."""

    at_s: float
    engaged: bool
    pace_s: float | None
    programs: list[ProgramRow]
    gone: list[str]
    items: list[Item]
    engines: list[EngineRow]
    hosts: list[HostRow]


class View(msgspec.Struct, kw_only=True):
    """Everything from ``since_s`` to ``at_s``, which is ``unix_s`` on the wall clock. ``scope``: the tenant
    whose it is; None: all. ``notes``: what a reader should know of it. ``logged``: there is an event log that
    has what was before."""

    agentsched: str
    policy: str
    at_s: float
    unix_s: float
    since_s: float
    engaged: bool
    pace_s: float | None
    programs: list[ProgramRow]
    items: list[Item]
    engines: list[EngineRow]
    hosts: list[HostRow]
    keep: Keep
    scope: str | None = None
    notes: list[str] = []
    logged: bool = False
    format: int = FORMAT
