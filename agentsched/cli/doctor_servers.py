"""Servers that the daemon is to schedule for: what ``agentsched doctor --upstream URL`` says of each."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator

from agentsched.cli.check import Check
from agentsched.cli.serving import API_KEY_VARIABLE
from agentsched.engines.upstream.declared import apart
from agentsched.engines.upstream.dialect import dialect_of
from agentsched.engines.upstream.pool import Address, Pool
from agentsched.engines.upstream.probe import Told, is_up, probe
from agentsched.engines.upstream.wire import Header, UpstreamFault

LOOK_S = 10.0


def servers(urls: tuple[str, ...]) -> Iterator[Check]:
    """A row for each server, and one for each thing that is not had of it."""
    for url in urls:
        yield from _server(url)


def _server(url: str) -> Iterator[Check]:
    lost = "its calls cannot be scheduled"
    try:
        bare, declared = apart(url)
        address = Address.parse(bare)
        told = asyncio.run(_told(address))
    except ValueError as error:
        yield Check(url, "missing", str(error), lost, "write http://HOST:PORT")
        return
    except UpstreamFault as fault:
        yield Check(url, "missing", str(fault), lost, "start it, or give its URL as the daemon sees it")
        return
    plugin = bool(told.plugin_port)
    service = dialect_of(told, declared, plugin=plugin, fields=True).service
    does = "; ".join(service.does) or "calls are let in and placed"
    kind = f"{told.kind} {told.version}".rstrip()
    found = f"{kind}, {told.capacity_tokens:,} tokens of KV, service: {service.level} ({does})"
    yield Check(address.name, "ok", found)
    if plugin:
        yield Check("its channel", "partial", "not tried", "a daemon may be using it", "see the daemon's log")
    if not told.capacity_tokens:
        remedy = "say it with --upstream-kv-tokens"
        yield Check("its KV", "missing", "it does not tell", "the daemon cannot start", remedy)
    for lack in service.lacks:
        yield Check("not had of it", "missing", lack.what, lack.what, lack.remedy)


async def _told(address: Address) -> Told:
    pool = Pool(address, silence_s=LOOK_S)
    headers: list[Header] = [(b"Accept", b"*/*")]
    if key := os.environ.get(API_KEY_VARIABLE):
        headers.append((b"Authorization", b"Bearer " + key.encode()))
    try:
        await is_up(pool, headers, LOOK_S)
        return await probe(pool, headers)
    finally:
        pool.close()
