"""What can be had of a server that was not started here, and in which words it is asked for it.

A ``Dialect`` is found by what the server tells (``probe.py``) and what its operator says (``declared.py``).
It says what is added to a request so that the server knows whose it is, its order and its tenant, how the
server's metrics are read, and what of the core's decisions comes of it: the service level.

* ``order``: calls are let in, placed and, where the server heeds priorities, ordered. What KV it keeps, it
  decides itself.
* ``soft``: also, KV of programs that will be back is kept before all other, by sessions that are on or off.
* ``retention``: our plugin carries out values, leases and tails.

Nothing is added where a name says nothing to the API in question. What is added are headers, or fields at the
top of the body; the latter only if bodies may be changed at all (``fields``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import quote, unquote

from agentsched.engines.contract import Lack, Service
from agentsched.engines.upstream.declared import Declared
from agentsched.engines.upstream.paths import CHAT, COMPLETIONS, PATHS, RESPONSES
from agentsched.engines.upstream.probe import EventsAt, Told, ranked
from agentsched.engines.upstream.readings import Reading, read_sglang, read_vllm

MOST_PRIORITY = 1 << 53
"""Ranks beyond that are equal: whole numbers up to here pass every JSON parser."""

_OPENAI = frozenset({CHAT, COMPLETIONS, RESPONSES})


class Added(NamedTuple):
    """What a request gets: headers in place of the client's of these names, and fields at the top of its body
    in place of the client's. ``session``: the program in whose session it is, where these keep KV; else
    ""."""

    headers: dict[bytes, bytes]
    fields: dict[str, str | int]
    session: str = ""


NOTHING = Added({}, {})


class Word(NamedTuple):
    """How a request says one thing: as a field in the APIs of ``paths``, as a header in all others."""

    field: str = ""
    paths: frozenset[str] = frozenset()
    header: bytes = b""


class Words(NamedTuple):
    """Of one kind of server; ``lowest_first``: its lower priorities go first."""

    session: Word
    priority: Word
    salt: Word
    read: Callable[[bytes, int], Reading | None]


SALT = "cache_salt"
_SALT = Word(SALT, _OPENAI)
_SGLANG = Words(Word("session_id", _OPENAI), Word("priority", _OPENAI), _SALT, read_sglang)
# The plugin reads the routing key, which SGLang does not hand on in the responses API.
_PLUGIN = _SGLANG._replace(session=Word("session_id", frozenset({RESPONSES}), b"x-smg-routing-key"))
_VLLM = Words(
    Word(header=b"x-session-id"),
    Word("priority", _OPENAI, b"x-vllm-priority"),
    Word(SALT, frozenset(PATHS)),
    read_vllm,
)


PLAIN = Service(level="order")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """``ranks``: order by priority; ``pins``: sessions keep KV; ``names``: requests say whose they are;
    ``salts``: they can say whose KV they may find."""

    service: Service = PLAIN
    ranks: bool = False
    pins: bool = False
    names: bool = False
    salts: bool = False
    events: EventsAt | None = None
    read: Callable[[bytes], Reading | None] | None = None
    _words: Words | None = None
    _sign: int = 1
    _fields: bool = True

    def added(
        self, path: str, *, program: str | None, rank: float | None, salt: str, own_session: bool = False
    ) -> Added:
        """To a call at ``path``. ``program``: whose it is, None if that is not to be said; so with ``rank``,
        of which lower goes first. ``salt``: "" for none. ``own_session``: the client has opened a session
        (``session_params``), beside which SGLang takes no other."""
        words = self._words
        if words is None:
            return NOTHING
        added = Added({}, {})
        session = ""
        if own_session and path in words.session.paths:
            program = None
        if self.names and program is not None and self._put(words.session, path, session_of(program), added):
            session = program if self.pins else ""
        if self.ranks and rank is not None:
            priority = round(min(max(rank, -MOST_PRIORITY), MOST_PRIORITY)) * self._sign
            self._put(words.priority, path, priority, added)
        if self.salts and salt:
            self._put(words.salt, path, salt, added)
        return added._replace(session=session)

    def _put(self, word: Word, path: str, value: str | int, added: Added) -> bool:
        """Whether it can be said there."""
        if path in word.paths:
            if self._fields:
                added.fields[word.field] = value
            return self._fields
        if word.header:
            added.headers[word.header] = str(value).encode()
        return bool(word.header)


def session_of(program: str) -> str:
    """The name of its session: of characters that a header may have."""
    return quote(program, safe="")


def program_of(session: str) -> str:
    """Whose session it is."""
    return unquote(session)


def dialect_of(told: Told, declared: Declared, *, plugin: bool, fields: bool) -> Dialect:
    """``plugin``: there is a channel to our plugin; ``fields``: bodies may be changed."""
    if told.kind not in ("sglang", "vllm"):
        return Dialect(service=Service(level="order", lacks=(_UNKNOWN,)))
    sglang = told.kind == "sglang"
    words = (_PLUGIN if plugin else _SGLANG) if sglang else _VLLM
    first = told.first or ("low" if declared.priority and not sglang else None)
    wanted = _events(told, declared)
    events = wanted if not plugin and _can_listen() else None
    pins = sglang and told.sessions and fields and not plugin
    ranks = first is not None and fields and not plugin
    # Where sessions pin, a name does more than name; else it tells whose blocks events are about.
    names = plugin or pins or (events is not None and (fields or not sglang))
    read = _reader(words, told.capacity_tokens) if told.metrics and not plugin else None
    level: Literal["order", "soft", "retention"] = "retention" if plugin else "soft" if pins else "order"
    return Dialect(
        service=Service(
            level=level,
            does=_does(told, ranks=ranks, pins=pins, plugin=plugin, events=events, read=read is not None),
            lacks=tuple(_lacks(told, first, wanted, plugin=plugin, fields=fields)),
        ),
        ranks=ranks,
        pins=pins,
        names=names,
        salts=fields,
        events=events,
        read=read,
        _words=words,
        _sign=-1 if first == "high" else 1,
        _fields=fields,
    )


def _reader(words: Words, capacity_tokens: int) -> Callable[[bytes], Reading | None]:
    return lambda text: words.read(text, capacity_tokens)


def _events(told: Told, declared: Declared) -> EventsAt | None:
    if not declared.events:
        return told.events
    return EventsAt(
        endpoints=ranked(declared.events, 1), replays=ranked(declared.replay, 1) if declared.replay else ()
    )


def _can_listen() -> bool:
    return importlib.util.find_spec("zmq") is not None


def _does(
    told: Told, *, ranks: bool, pins: bool, plugin: bool, events: EventsAt | None, read: bool
) -> tuple[str, ...]:
    order = "order by priority, which preempts" if told.preempts else "order by priority"
    said = {
        "values, leases and tails by agentsched's plugin": plugin,
        "pins by session, on or off": pins,
        order: ranks,
        "what is held, by KV events": events is not None,
        "what is free, by metrics": read,
        "cached tokens of calls": told.cache_report is True,
        "outputs as requests say": told.recorded,
    }
    return tuple(name for name, does in said.items() if does)


_UNKNOWN = Lack("all but admission and placement", "a server that tells what it is: SGLang, vLLM")
_OFF = "let fields be added to requests (upstream.fields)"


def _lacks(
    told: Told, first: str | None, events: EventsAt | None, *, plugin: bool, fields: bool
) -> list[Lack]:
    """What is not had of it, and how it would be."""
    sglang = told.kind == "sglang"
    lacks: list[Lack] = []
    if not fields:
        lacks.append(Lack("fields in bodies: no session, priority or salt of a tenant there", _OFF))
    if plugin:
        return lacks
    if sglang and not told.sessions:
        lacks.append(Lack("pins", "start it with --enable-session-radix-cache, or with agentsched's plugin"))
    elif sglang:
        lacks.append(Lack("values over time, tails first, hard pins", "start it with agentsched's plugin"))
    else:
        lacks.append(Lack("pins", "vLLM has none over HTTP"))
    if first is None:
        lacks.append(Lack("order", _SGLANG_ORDER if sglang else _VLLM_ORDER))
    if sglang and not told.metrics:
        lacks.append(Lack("what is free", "start it with --enable-metrics"))
    if not told.cache_report:
        flag = "--enable-cache-report" if sglang else "--enable-prompt-tokens-details"
        unsaid = "" if sglang else ", unless it was; it does not tell"
        lacks.append(Lack("cached tokens of calls", f"start it with {flag}{unsaid}"))
    if sglang:
        lacks.append(Lack("all of this for /v1/messages", "SGLang takes none of it there"))
    if events is None:
        how = _SGLANG_EVENTS if sglang else _VLLM_EVENTS
        lacks.append(Lack("what is held for whom", how))
    elif not _can_listen():
        lacks.append(Lack("what is held for whom", "pip install 'agentsched[kv-events]'"))
    return lacks


_SGLANG_ORDER = (
    "start it with --enable-priority-scheduling --disable-priority-preemption --default-priority-value 0"
)
_VLLM_ORDER = "start it with --scheduling-policy priority, and say so: put #priority behind its URL"
_SGLANG_EVENTS = """start it with --kv-events-config '{"publisher": "zmq", "endpoint": "tcp://*:5557"}'"""
_VLLM_EVENTS = (
    'start it with --kv-events-config \'{"enable_kv_cache_events": true, "endpoint": "tcp://*:5557"}\', '
    "and put #events=tcp://HOST:5557 behind its URL"
)
