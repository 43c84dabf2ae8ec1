"""Events that agents and sandboxes post: checked all together before any of them counts.

They are those of the core's vocabulary, less what follows from the sender's key. So the types here are made
from the core's: a field that is there is a field here.
"""

from __future__ import annotations

import functools
import operator
from typing import Annotated, Any, get_args

import msgspec

from agentsched import __version__
from agentsched.core import events as ev
from agentsched.daemon.accounts import Seconds
from agentsched.daemon.apis.reading import (
    WHOLE_FLOATS_ARE_INTEGERS,
    check_program,
    convert,
    decode_object,
)
from agentsched.daemon.calls import Calls
from agentsched.daemon.errors import ApiError, bad_field
from agentsched.daemon.host import Host
from agentsched.daemon.signals import MOST_CHARS, RESERVED
from agentsched.daemon.tenancy import Tenancy

_OF_TENANT = frozenset({"tenant", "weight", "priority"})
_OF_DAEMON = frozenset({"expired"})

StatedName = Annotated[
    str,
    msgspec.Meta(
        min_length=1,
        max_length=MOST_CHARS,
        # What check_program says, in the words of JSON Schema, which Python's expressions lack.
        extra_json_schema={"pattern": rf"^(?!{RESERVED})(?:[^\p{{C}}\p{{Z}}]| )+$"},
    ),
]
"""Of a program or a host of tools."""

_NAMES = ("program", "parent", "host")
_AMOUNT, _COUNT = Annotated[float, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_LIMITS: dict[Any, Any] = {
    float: _AMOUNT,
    int: _COUNT,
    float | None: _AMOUNT | None,
    int | None: _COUNT | None,
}
_LIMITS_BY_NAME: dict[str, Any] = {
    **dict.fromkeys(_NAMES, StatedName),
    "tool_call": Annotated[str, msgspec.Meta(min_length=1)],
    "deadline_s": Seconds | None,
    "HostAttached.memory_bytes": Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)],
}

Posted = (
    ev.ProgramOpened
    | ev.ProgramAnnotated
    | ev.ProgramClosed
    | ev.ToolStarted
    | ev.ToolProgressed
    | ev.ToolFinished
    | ev.HostAttached
    | ev.HostLost
)


def _posted(kind: type[ev.Event]) -> type[msgspec.Struct]:
    """The event as it is posted. One of a tool call whose id we minted needs no program."""
    required: list[Any] = []
    optional: list[Any] = []
    tool = "tool_call" in kind.__struct_fields__
    for each in msgspec.structs.fields(kind):
        if each.name in _OF_TENANT | _OF_DAEMON:
            continue
        by_name = _LIMITS_BY_NAME.get(f"{kind.__name__}.{each.name}") or _LIMITS_BY_NAME.get(each.name)
        limited = by_name or _LIMITS.get(each.type, each.type)
        if each.name == "program" and tool:
            optional.append((each.name, limited, ""))
        elif each.required:
            required.append((each.name, limited))
        else:
            optional.append((each.name, limited, each.default))
    return msgspec.defstruct(
        kind.__name__,
        [*required, *optional],
        module=__name__,
        kw_only=True,
        forbid_unknown_fields=True,
        tag_field="event",
        tag=kind.__name__,
        namespace={"__doc__": kind.__doc__},
    )


_KINDS: dict[str, type[ev.Event]] = {kind.__name__: kind for kind in get_args(Posted)}
_POSTED = {name: _posted(kind) for name, kind in _KINDS.items()}


_ANY_POSTED: Any = functools.reduce(operator.or_, _POSTED.values())

Events = msgspec.defstruct(
    "Events",
    [("events", list[_ANY_POSTED]), ("protocol", int, ev.PROTOCOL)],
    namespace={
        "__doc__": "Events, in the order in which they were. ``protocol``: of the SDK that sends them, if it "
        "may be of another installation."
    },
)


class Taken(msgspec.Struct, kw_only=True):
    """How many events counted. Ignored are those that are repeated, or of a program that has ended."""

    accepted: int
    ignored: int


def parse_events(data: bytes, tenancy: Tenancy) -> list[Posted]:
    """The events of ``{"events": [...]}``, with the names that the daemon has for programs and hosts. An
    event of a tool call whose id we minted is of the program that asked for it, also if it names another
    one.

    Raises ``ApiError`` (400) naming index and field; nothing has been posted then.
    """
    raw = decode_object(data, WHOLE_FLOATS_ARE_INTEGERS)
    events = raw.get("events")
    _check_protocol(raw.get("protocol", ev.PROTOCOL))
    if unknown := raw.keys() - {"events", "protocol"}:
        raise bad_field(min(unknown), "is not known")
    if not isinstance(events, list):
        raise bad_field("events", "must be a list of events")
    return [_event(each, f"events[{index}]", tenancy) for index, each in enumerate(events)]


def _check_protocol(told: Any) -> None:
    if told != ev.PROTOCOL:
        raise ApiError(
            400,
            f"protocol: these events are of protocol {told!r}, this daemon is of agentsched {__version__} "
            f"and speaks {ev.PROTOCOL}; install the same version on both sides",
            param="protocol",
            code="protocol_differs",
        )


def _event(raw: Any, where: str, tenancy: Tenancy) -> Posted:
    if not isinstance(raw, dict):
        raise bad_field(where, "must be an object")
    name = raw["event"] if isinstance(raw.get("event"), str) else ""
    if name not in _POSTED:
        raise bad_field(f"{where}.event", f"must be one of {', '.join(_POSTED)}, got {raw.get('event')!r}")
    for known in _OF_TENANT & raw.keys():
        raise bad_field(f"{where}.{known}", "follows from the API key: leave it out")
    convert(raw, _POSTED[name], where)
    named = {field: tenancy.inside(raw[field]) for field in ("host", "parent") if raw.get(field)}
    event: Posted = convert(raw | named | _program(raw, where, tenancy), _KINDS[name], where)
    return event


def _program(raw: dict[str, Any], where: str, tenancy: Tenancy) -> dict[str, str]:
    minted = tenancy.identities.minted(raw["tool_call"]) if "tool_call" in raw else None
    if minted is not None:
        return {"program": minted.program}
    for field in _NAMES:
        if field in raw:
            check_program(raw[field], f"{where}.{field}")
    if "program" in raw:
        return {"program": tenancy.inside(raw["program"])}
    if "tool_call" in raw:
        raise bad_field(f"{where}.program", "is needed: the tool call's id was not given out here")
    return {}


def take(events: list[Posted], tenancy: Tenancy, calls: Calls, host: Host) -> Taken:
    """Post checked events in order."""
    ignored = 0
    for event in events:
        match event:
            case ev.ProgramOpened():
                taken = calls.open_program(
                    tenancy,
                    event.program,
                    deadline_s=event.deadline_s,
                    parent=event.parent,
                    expected_calls=event.expected_calls,
                    host=event.host,
                )
            case ev.ProgramClosed():
                taken = calls.close_program(event.program)
            case ev.ToolStarted():
                calls.open_program(tenancy, event.program)
                taken = host.post(event)
            case _:
                taken = host.post(event)
        ignored += not taken
    return Taken(accepted=len(events) - ignored, ignored=ignored)
