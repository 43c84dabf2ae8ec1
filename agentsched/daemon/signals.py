"""What a request says about whose it is: ids in headers, body and path, the strongest first.

Pure reading: nothing is remembered here, and nothing is looked at but the request. What is no usable id (too
long, not printable, not of its type) says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

PROGRAM_HEADER = "x-agentsched-program"
KINDS = (
    "stated",
    "client",
    "session header",
    "engine field",
    "trace",
    "path",
    "tool call",
    "conversation",
)
"""All signals, the strongest first. The last two are read from the conversation (``identity.py``)."""

MOST_CHARS = 256
RESERVED = "//"
"""No name that a client states begins so: the daemon tells tenants apart by it (``tenancy.py``)."""

_SESSION = re.compile(r"(?:x-)?(?:(.+?)-)?session-id")
_AGENT = re.compile(r"(?:x-)?(?:.+-)?agent-id")
_PARENT = re.compile(r"(?:x-)?(?:.+-)?parent-(?:(.+)-)?id")
_TRACE = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")
_OLD_CLAUDE_USER = re.compile(r"user_.*_session_([0-9a-f-]{36})")


@dataclass(slots=True, kw_only=True)
class Origin:
    """Where a request came from, as far as it says. ``headers`` by name in lower case; ``path`` is what
    stands for a program in its URL. None of it changes."""

    headers: Mapping[str, str] = field(default_factory=dict)
    body: Mapping[str, Any] = field(default_factory=dict)
    path: str | None = None
    _signals: tuple[Signal, ...] | None = field(default=None, init=False, repr=False, compare=False)

    def signals(self) -> tuple[Signal, ...]:
        """All of them, the strongest first. Read once: requests with equal heads share their origin."""
        if self._signals is None:
            self._signals = tuple(_read(self))
        return self._signals


@dataclass(frozen=True, slots=True)
class Signal:
    """One id. ``program`` is named by it, as is ``parent``. A ``scope`` may hold several programs that the
    id does not tell apart: a run with its sub-agents."""

    kind: str
    program: str
    parent: str | None = None
    scope: bool = False


def read(origin: Origin, kinds: Collection[str] = KINDS, scope: str = "") -> Iterator[Signal]:
    """The signals of a request that are among ``kinds``, the strongest first. ``scope`` is put before the
    names of programs."""
    for signal in origin.signals():
        if signal.kind not in kinds:
            continue
        if scope:
            parent = None if signal.parent is None else scope + signal.parent
            yield replace(signal, program=scope + signal.program, parent=parent)
        else:
            yield signal


def _read(origin: Origin) -> Iterator[Signal]:
    for reader in (_stated, _claude_code, _codex, _session_header, _dynamo_field, _sglang_field):
        if (signal := reader(origin)) is not None:
            yield signal
    trace = _TRACE.fullmatch(origin.headers.get("traceparent", ""))
    if trace is not None and trace.group(1).strip("0"):
        yield Signal("trace", f"trace:{trace.group(1)}", scope=True)
    if (path := _id(origin.path)) is not None:
        yield Signal("path", path, scope=True)


def usable(name: str) -> bool:
    """Whether a program may be called so: names travel in headers, labels and logs."""
    return 0 < len(name) <= MOST_CHARS and name.isprintable() and not name.startswith(RESERVED)


def _id(value: Any) -> str | None:
    return value if isinstance(value, str) and usable(value) else None


def _named(family: str, *ids: str | None) -> str:
    return f"{family}:{'/'.join(i for i in ids if i is not None)}"


def _inside(value: Any, *path: str) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _stated(origin: Origin) -> Signal | None:
    program = _id(origin.headers.get(PROGRAM_HEADER)) or _id(origin.body.get("program_id"))
    return None if program is None else Signal("stated", program)


def _claude_code(origin: Origin) -> Signal | None:
    headers = origin.headers
    session = _id(headers.get("x-claude-code-session-id")) or _claude_user(origin.body)
    if session is None:
        return None
    family, agent = "claude-code", _id(headers.get("x-claude-code-agent-id"))
    if agent is None:
        return Signal("client", _named(family, session))
    parent = _id(headers.get("x-claude-code-parent-agent-id"))  # none: the main agent
    return Signal("client", _named(family, session, agent), _named(family, session, parent))


def _claude_user(body: Mapping[str, Any]) -> str | None:
    """The session in ``metadata.user_id``: a JSON document in a string, or parts joined by underscores."""
    user = _inside(body, "metadata", "user_id")
    if not isinstance(user, str):
        return None
    if old := _OLD_CLAUDE_USER.fullmatch(user):
        return old.group(1)
    try:
        return _id(_inside(msgspec.json.decode(user), "session_id"))
    except (msgspec.DecodeError, RecursionError):
        return None


def _codex(origin: Origin) -> Signal | None:
    """A thread is a program; a session has the threads of all its agents."""
    headers = origin.headers
    thread = _id(headers.get("thread-id"))
    if thread is None or not any(name.startswith("x-codex-") for name in headers):
        return None
    parent = _id(headers.get("x-codex-parent-thread-id"))
    return Signal("client", _named("codex", thread), None if parent is None else _named("codex", parent))


def _session_header(origin: Origin) -> Signal | None:
    """By convention: ``*-session-id``, with ``*-agent-id`` for who it is in there, and ``*-parent-*-id``."""
    headers = origin.headers
    names = [name for name in headers if name.endswith("session-id")]
    names.sort(key=lambda name: name != "x-dynamo-session-id")  # which asks to go before all
    for name in names:
        found = _SESSION.fullmatch(name)
        session = _id(headers[name])
        if found is None or session is None or "parent" in name:
            continue
        family = found.group(1) or "session"
        agents = (n for n in headers if n.endswith("agent-id") and "parent" not in n and _AGENT.fullmatch(n))
        own = next((_id(headers[n]) for n in agents), None)
        return Signal("session header", _named(family, session, own), _parent(headers, family, session))
    return None


def _parent(headers: Mapping[str, str], family: str, session: str) -> str | None:
    for name in headers:
        if "parent-" not in name:
            continue
        found, value = _PARENT.fullmatch(name), _id(headers[name])
        if found is not None and value is not None:
            inside = found.group(1) == "agent"
            return _named(family, session, value) if inside else _named(family, value)
    return None


def _dynamo_field(origin: Origin) -> Signal | None:
    context = _inside(origin.body, "nvext", "agent_context")
    for own, parent in (("trajectory_id", "parent_trajectory_id"), ("session_id", "parent_session_id")):
        if (found := _id(_inside(context, own))) is not None:
            above = _id(_inside(context, parent))
            name = None if above is None else _named("dynamo", above)
            return Signal("engine field", _named("dynamo", found), name)
    return None


def _sglang_field(origin: Origin) -> Signal | None:
    found = (
        _id(origin.body.get("session_id"))
        or _id(_inside(origin.body, "session_params", "id"))
        or _id(origin.headers.get("x-smg-routing-key"))
    )
    return None if found is None else Signal("engine field", _named("sglang", found))
