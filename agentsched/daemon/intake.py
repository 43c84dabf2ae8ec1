"""Events that agents and sandboxes post: checked all together before any of them counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentsched import __version__
from agentsched.core import events as ev
from agentsched.core.events import (
    HostAttached,
    HostLost,
    ProgramClosed,
    ProgramOpened,
    ToolFinished,
    ToolProgressed,
    ToolStarted,
)
from agentsched.daemon.apis.reading import check_program, convert, decode_object
from agentsched.daemon.calls import Calls
from agentsched.daemon.errors import ApiError, bad_field
from agentsched.daemon.host import Host

OfProgram = ProgramOpened | ProgramClosed | ToolStarted | ToolProgressed | ToolFinished
OfHost = HostAttached | HostLost
Posted = OfProgram | OfHost
_OF_PROGRAM = {
    kind.__name__: kind for kind in (ProgramOpened, ProgramClosed, ToolStarted, ToolProgressed, ToolFinished)
}
_OF_HOST = {kind.__name__: kind for kind in (HostAttached, HostLost)}


def check_protocol(told: str | None) -> None:
    """Raises ``ApiError`` (400) if an SDK speaks another protocol; who does not say speaks ours."""
    if told is not None and told != str(ev.PROTOCOL):
        raise ApiError(
            400,
            f"{ev.PROTOCOL_HEADER}: these events are of protocol {told}, this daemon is of agentsched "
            f"{__version__} and speaks {ev.PROTOCOL}; install the same version on both sides",
            code="protocol_differs",
        )


def parse_events(data: bytes, owner: Callable[[str], str | None]) -> list[Posted]:
    """The events of ``{"events": [...]}``. ``owner`` gives the program of a tool call whose id we
    minted: such an event needs no ``program``, and ours counts if it names another one.

    Raises ``ApiError`` (400) naming index and field; nothing has been posted then.
    """
    events = decode_object(data).get("events")
    if not isinstance(events, list):
        raise bad_field("events", "must be a list of events")
    return [_event(raw, f"events[{index}]", owner) for index, raw in enumerate(events)]


def _event(raw: Any, where: str, owner: Callable[[str], str | None]) -> Posted:
    if not isinstance(raw, dict):
        raise bad_field(where, "must be an object")
    name = raw["event"] if isinstance(raw.get("event"), str) else ""
    if name in _OF_HOST:
        of_host: OfHost = convert(raw, _OF_HOST[name], where)
        return of_host
    kind = _OF_PROGRAM.get(name)
    if kind is None:
        names = ", ".join((*_OF_PROGRAM, *_OF_HOST))
        raise bad_field(f"{where}.event", f"must be one of {names}, got {raw.get('event')!r}")
    tool_call = raw.get("tool_call")
    if isinstance(tool_call, str) and (program := owner(tool_call)) is not None:
        raw = raw | {"program": program}
    elif "program" not in raw:
        raise bad_field(f"{where}.program", "is needed: the tool call's id was not given out here")
    event: OfProgram = convert(raw, kind, where)
    check_program(event.program, f"{where}.program")
    return event


def take(events: list[Posted], calls: Calls, host: Host) -> int:
    """Post checked events in order; how many were ignored, being repeated or of a program that ended."""
    ignored = 0
    for event in events:
        match event:
            case ProgramClosed():
                taken = calls.close_program(event.program)
            case ToolStarted():
                calls.open_program(event.program)
                taken = host.post(event)
            case _:
                taken = host.post(event)
        ignored += not taken
    return ignored
