"""What the daemon tells the controller of this host's tool calls."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator

import pytest

from agentsched.cgroups.control import messages as ms
from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.daemon.accounts import DEFAULT
from agentsched.daemon.tenancy import scope_of
from agentsched.daemon.tool_worth import RETRY_S, ToolWorth

if not sys.platform.startswith("linux"):
    pytest.skip(
        "the controller is found by an abstract socket, which only Linux has", allow_module_level=True
    )


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """Stands where a controller would."""
    monkeypatch.setenv("AGENTSCHED_CONTROL_NAME", f"{request.node.name}-{os.getpid()}")
    with ms.new_socket() as made:
        yield made


@pytest.fixture
def worth() -> Iterator[ToolWorth]:
    made = ToolWorth()
    yield made
    made.close()


def listen(listener: socket.socket) -> None:
    listener.bind(ms.address())
    listener.listen()


def told(connection: socket.socket) -> list[object]:
    connection.setblocking(False)
    found: list[object] = []
    while True:
        try:
            found.append(ms.to_controller.decode(connection.recv(ms.LONGEST)))
        except BlockingIOError:
            return found


def opened(program: str, tenant: str = DEFAULT) -> ev.ProgramOpened:
    return ev.ProgramOpened(program=scope_of(tenant) + program, tenant=tenant, weight=2.0, priority=1)


def retain(program: str, *, until_s: float, advice: bool = False) -> de.Retain:
    segments = (
        de.Segment(start_tokens=0, end_tokens=900, device=(de.Worth(until_s=until_s, value=1.0),)),
        de.Segment(start_tokens=900, end_tokens=1000, device=(de.Worth(until_s=until_s, value=0.0),)),
    )
    return de.Retain(
        program=program,
        engine="e",
        segments=segments,
        lease_until_s=until_s,
        cause=1,
        epoch=1,
        seq=1,
        advice=advice,
    )


def test_terms_and_kept_kv_are_told(listener: socket.socket, worth: ToolWorth) -> None:
    listen(listener)
    worth.observe(0.0, opened("p"), ())
    connection, _ = listener.accept()
    with connection:
        worth.observe(1.0, ev.Woken(), (retain("p", until_s=9.0),))
        worth.observe(1.0, ev.Woken(), (retain("q", until_s=9.0), retain("p", until_s=99.0, advice=True)))
        worth.observe(2.0, ev.Woken(), (de.Release(program="p", engine="e", cause=2, epoch=1, seq=2),))
        assert told(connection) == [
            ms.Valued(program="p", weight=2.0, priority=1),
            ms.Valued(program="p", weight=2.0, priority=1, kv_tokens=900),
            ms.Valued(program="p", weight=2.0, priority=1, kv_tokens=0),
        ]


def test_sandboxes_know_programs_by_the_names_of_their_tenants(
    listener: socket.socket, worth: ToolWorth
) -> None:
    listen(listener)
    ours, theirs = scope_of("ours") + "p", scope_of("theirs") + "p"
    worth.observe(0.0, opened("p", "ours"), ())
    connection, _ = listener.accept()
    with connection:
        worth.observe(0.0, opened("p", "theirs"), ())
        worth.observe(1.0, ev.Woken(), (retain(theirs, until_s=9.0), retain(ours, until_s=9.0)))
        worth.observe(2.0, ev.ProgramClosed(program=theirs), ())
        worth.observe(3.0, ev.Woken(), (de.Release(program=ours, engine="e", cause=2, epoch=1, seq=2),))
        worth.observe(4.0, ev.ProgramClosed(program=ours), ())
        worth.observe(5.0, opened("p", "theirs"), ())
        said = [valued for valued in told(connection) if isinstance(valued, ms.Valued)]
    assert {valued.program for valued in said} == {"p"}
    assert [valued.kv_tokens for valued in said] == [None, 900, 0, None]


def test_a_controller_that_comes_later_is_told_all(listener: socket.socket, worth: ToolWorth) -> None:
    worth.observe(0.0, opened("p"), ())
    worth.observe(0.0, opened("gone"), ())
    worth.observe(1.0, ev.ProgramClosed(program="gone"), ())
    listen(listener)
    worth.observe(2.0, opened("q"), ())
    worth.observe(RETRY_S + 1.0, ev.Woken(), ())
    connection, _ = listener.accept()
    with connection:
        said = told(connection)
    assert [valued.program for valued in said if isinstance(valued, ms.Valued)] == ["p", "q"]


def test_one_that_goes_away_is_looked_for_again(listener: socket.socket, worth: ToolWorth) -> None:
    listen(listener)
    worth.observe(0.0, opened("p"), ())
    listener.accept()[0].close()
    worth.observe(1.0, opened("q"), ())
    worth.observe(RETRY_S + 2.0, opened("r"), ())
    connection, _ = listener.accept()
    with connection:
        assert len(told(connection)) == 3
