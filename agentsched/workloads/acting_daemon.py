"""A daemon in a thread of this process, with a simulated model that plays along: for examples, and for
measuring what real clients say, where there is no model."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from agentsched.daemon.host import Watcher
from agentsched.daemon.identity import Identities
from agentsched.daemon.server import Daemon
from agentsched.daemon.settings import Settings
from agentsched.engines.byte_frontend import VOCABULARY, ByteFrontend, Mind
from agentsched.engines.cost import CostProfile
from agentsched.engines.inprocess import InProcessEngine
from agentsched.engines.simulated import simulated

KV_TOKENS = 4_000_000
START_S = 30.0
NOTHING_COSTS = CostProfile(step_s=0.0, prefill_token_s=0.0, decode_row_s=0.0, attention_s=0.0)


@contextmanager
def acting_daemon(
    mind: Mind,
    *,
    make_identities: Callable[[str], Identities] = Identities,
    watchers: Sequence[Watcher] = (),
    log: Path | None = None,
) -> Iterator[str]:
    """Serve on a free port of this machine; gives the URL. ``mind`` says what the model answers; ``log`` is
    the daemon's event log. Raises ``RuntimeError`` if it does not start."""
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    ready, urls = threading.Event(), list[str]()

    async def serve() -> None:
        engine = simulated(NOTHING_COSTS, KV_TOKENS, vocabulary=VOCABULARY, max_running=256)
        async with Daemon(
            lambda: InProcessEngine(engine, name="simulated"),
            ByteFrontend(KV_TOKENS, mind),
            Settings(port=0, log=log),
            make_identities,
            watchers=watchers,
        ) as daemon:
            urls.append(daemon.url)
            ready.set()
            await stop.wait()

    def work() -> None:
        try:
            loop.run_until_complete(serve())
        finally:
            ready.set()

    thread = threading.Thread(target=work, name="daemon", daemon=True)
    thread.start()
    try:
        if not ready.wait(START_S) or not urls:
            raise RuntimeError("the daemon did not start; its thread has said why")
        yield urls[0]
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()
