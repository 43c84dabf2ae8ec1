"""What ``agentsched serve`` serves, and the event loop that it does so on."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import NamedTuple

import click

from agentsched.daemon.accounts import Declared
from agentsched.daemon.host import Watcher
from agentsched.daemon.server import Daemon
from agentsched.daemon.settings import Config

API_KEY_VARIABLE = "AGENTSCHED_UPSTREAM_API_KEY"


class Loaded(NamedTuple):
    """The configuration, and what stands in the tenants' file that it names."""

    config: Config
    declared: Declared


class Serving(NamedTuple):
    """How to make the daemon, the model's name, and what is said of the engine when it starts."""

    daemon: Callable[[Declared, Sequence[Watcher]], Daemon]
    model: str
    line: str


def before_upstreams(config: Config) -> Serving:
    """A daemon in front of servers that are there already. Raises ``click.UsageError`` for a URL that is
    none."""
    # Imported here: daemons with an engine of their own need none of it.
    from agentsched.daemon.upstream.server import UpstreamDaemon
    from agentsched.engines.upstream.declared import apart
    from agentsched.engines.upstream.engine import UpstreamSettings
    from agentsched.engines.upstream.pool import Address

    api_key = os.environ.get(API_KEY_VARIABLE) or None
    told = config.upstream
    try:
        names = [Address.parse(apart(url)[0]).name for url in told.urls]
    except ValueError as error:
        raise click.UsageError(f"--upstream: {error}") from None
    if len(set(names)) < len(names):
        raise click.UsageError(f"--upstream: the same server is named twice: {', '.join(names)}")
    upstreams = [
        UpstreamSettings(
            url=url,
            kv_tokens=told.kv_tokens,
            api_key=api_key,
            fields=told.fields,
            silence_s=told.silence_s,
        )
        for url in told.urls
    ]

    def daemon(declared: Declared, watchers: Sequence[Watcher]) -> Daemon:
        run = {"engine": "upstream", "upstreams": " ".join(told.urls)}
        return UpstreamDaemon(
            upstreams, config.daemon, api_key=api_key, declared=declared, run=run, watchers=watchers
        )

    # What service each server gets is found when it is attached, and said without -v, too.
    logging.getLogger("agentsched.engines.upstream.engine").setLevel(logging.INFO)
    return Serving(daemon, "upstream", f"in front of {', '.join(names)}")


def run_fast(main: Coroutine[None, None, None]) -> None:
    """Run on uvloop where it is installed (the extra ``fast``), else on asyncio's own loop."""
    # What is remembered of programs is large and has no cycles: looking it through again and again costs
    # calls 4 % of their time, and some of them a pause.
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
