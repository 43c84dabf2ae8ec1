"""Sends what agents and tools do to the daemon, without making them wait.

Events go to ``POST {AGENTSCHED_URL}/agentsched/v1/events`` from one background thread, in order, in small
batches. The queue is bounded: when the daemon is away or slow, the newest events are dropped and that is
said once. One that cannot be reached is left alone for a second, and what is reported meanwhile is dropped.
With no daemon configured nothing is sent, no thread is started, and that is said once too: an
agent must run as well without the daemon as with it. A daemon that has API keys is told the one in
``AGENTSCHED_API_KEY``, the same that the agent's calls are made with.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import threading
import time
import urllib.error
import urllib.request
from typing import Final

import msgspec

from agentsched.core.events import PROTOCOL, AnyEvent

QUEUE_LIMIT: Final = 10_000
BATCH_LIMIT: Final = 256
SEND_TIMEOUT_S: Final = 5.0
CLOSE_TIMEOUT_S: Final = 2.0
AWAY_S: Final = 1.0
KEY_VARIABLE: Final = "AGENTSCHED_API_KEY"

_log = logging.getLogger("agentsched.sdk")
# The daemon is a neighbour: a proxy that is set for the outside world would only lose the events.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Mark(threading.Event):
    """In the queue: set when everything before it was sent or given up."""


class Reporter:
    """Reports events to one daemon. Thread-safe; ``report`` never blocks and never raises."""

    def __init__(self, url: str | None, key: str | None = None) -> None:
        """``url``: the daemon's base address, or None to report nothing; ``key``: the tenant's API key."""
        self.url = url.rstrip("/") if url else None
        self._headers = {"Content-Type": "application/json"}
        if key:
            self._headers["Authorization"] = f"Bearer {key}"
        self._queue: queue.Queue[AnyEvent | Mark] = queue.Queue(QUEUE_LIMIT)
        self._start = threading.Lock()
        self._thread: threading.Thread | None = None
        self._away_until_s = 0.0
        self._warned: set[str] = set()

    def heard(self) -> bool:
        """Whether there is anybody to report to; says once that there is not."""
        if self.url is None:
            self._warn_once("no daemon: AGENTSCHED_URL is not set, so agents and tools are not reported")
            return False
        return True

    def report(self, event: AnyEvent) -> None:
        """Hand an event over for sending."""
        if self.heard():
            self._put(event)

    def mark(self) -> Mark | None:
        """What tells that all that was reported so far is sent or given up; None: it never will."""
        mark = Mark()
        return mark if self.heard() and self._put(mark) else None

    def _put(self, item: AnyEvent | Mark) -> bool:
        if self._thread is None:
            self._start_thread()
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self._warn_once(f"{self.url} takes no events; what does not fit the queue is dropped")
            return False
        return True

    def flush(self, timeout_s: float = CLOSE_TIMEOUT_S) -> bool:
        """Wait until what was reported so far is sent or given up; False if the time ran out."""
        if self._thread is None:
            return True
        deadline = time.monotonic() + timeout_s
        mark = Mark()
        try:
            self._queue.put(mark, timeout=timeout_s)
        except queue.Full:
            return False
        return mark.wait(max(0.0, deadline - time.monotonic()))

    def _start_thread(self) -> None:
        with self._start:
            if self._thread is None:
                thread = threading.Thread(target=self._send_forever, name="agentsched-reporter", daemon=True)
                thread.start()
                self._thread = thread
                atexit.register(self.flush)

    def _send_forever(self) -> None:
        while True:
            batch: list[AnyEvent] = []
            item: AnyEvent | Mark | None = self._queue.get()
            while item is not None:
                if isinstance(item, Mark):
                    self._send(batch)
                    batch = []
                    item.set()
                else:
                    batch.append(item)
                item = self._next_now() if len(batch) < BATCH_LIMIT else None
            self._send(batch)

    def _next_now(self) -> AnyEvent | Mark | None:
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def _send(self, batch: list[AnyEvent]) -> None:
        if not batch or time.monotonic() < self._away_until_s:
            return
        request = urllib.request.Request(
            f"{self.url}/agentsched/v1/events",
            data=msgspec.json.encode({"events": batch, "protocol": PROTOCOL}),
            headers=self._headers,
        )
        try:
            with _opener.open(request, timeout=SEND_TIMEOUT_S) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            self._warn_once(f"{self.url} refused events: {error.code} {error.read(300)!r}")
            error.close()
        except OSError as error:
            self._away_until_s = time.monotonic() + AWAY_S
            self._warn_once(f"events do not reach the daemon at {self.url}: {error}")

    def _warn_once(self, text: str) -> None:
        kind = text.split(":", 1)[0]
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("%s", text)


_reporter: Reporter | None = None
_reporter_pid = 0


def reporter() -> Reporter:
    """This process's reporter, by ``AGENTSCHED_URL``; a forked child gets one of its own."""
    global _reporter, _reporter_pid
    if _reporter is None or _reporter_pid != os.getpid():
        url, key = os.environ.get("AGENTSCHED_URL") or None, os.environ.get(KEY_VARIABLE)
        _reporter, _reporter_pid = Reporter(url, key), os.getpid()
    return _reporter


def use_reporter(replacement: Reporter | None) -> None:
    """Report through ``replacement`` from now on; None returns to ``AGENTSCHED_URL``."""
    global _reporter, _reporter_pid
    _reporter, _reporter_pid = replacement, os.getpid()
