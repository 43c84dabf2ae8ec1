"""What a tenant may see: its own programs, under the names that it gave them.

Reasons, engines and prices tell how much others use. So a tenant is told what was decided about its programs
and not why, and nothing of engines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from agentsched.daemon.dashboard import words
from agentsched.daemon.dashboard.rows import Delta, HostRow, Item, ProgramRow, View

SCOPED = "Only your own programs are shown. Why something was decided, and how full engines are, admins see."


def view_of(view: View, tenant: str, outside: Callable[[str], str]) -> View:
    """The tenant's part of it. ``outside``: a program's name as the tenant knows it."""
    return msgspec.structs.replace(
        view,
        programs=_programs(view.programs, tenant, outside),
        items=_items(view.items, tenant, outside),
        engines=[],
        hosts=_hosts(view.hosts, outside),
        scope=tenant,
        notes=[*view.notes, SCOPED],
    )


def delta_of(delta: Delta, tenant: str, outside: Callable[[str], str]) -> Delta:
    """The same of what changed."""
    return msgspec.structs.replace(
        delta,
        programs=_programs(delta.programs, tenant, outside),
        gone=[outside(name) for name in delta.gone if outside(name) != name],
        items=_items(delta.items, tenant, outside),
        engines=[],
        hosts=_hosts(delta.hosts, outside),
    )


def _programs(rows: Iterable[ProgramRow], tenant: str, outside: Callable[[str], str]) -> list[ProgramRow]:
    return [
        msgspec.structs.replace(
            row,
            program=outside(row.program),
            parent=outside(row.parent),
            host=outside(row.host),
            seat=None if row.seat is None else "engine",
            home=None if row.home is None else "engine",
            why="",
            waits="its turn has not come" if row.waits else "",
        )
        for row in rows
        if row.tenant == tenant
    ]


def _items(items: Iterable[Item], tenant: str, outside: Callable[[str], str]) -> list[Item]:
    return [
        msgspec.structs.replace(
            item,
            program=outside(item.program),
            engine="",
            text=words.WITHOUT_REASON.get(item.kind, item.text.partition(":")[0]),
        )
        for item in items
        if item.tenant == tenant and item.program
    ]


def _hosts(hosts: Iterable[HostRow], outside: Callable[[str], str]) -> list[HostRow]:
    """A tenant names its hosts itself."""
    return [
        HostRow(host=outside(host.host), memory_bytes=host.memory_bytes)
        for host in hosts
        if outside(host.host) != host.host
    ]
