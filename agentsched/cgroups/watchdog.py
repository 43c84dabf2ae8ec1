"""The watchdog: a small process that cleans up after a runtime that cannot do so itself.

One a runtime instance, started by ``guard``. It learns of leases through a pipe, one JSON object a
line: ``{"hold": KEY, "until": T, "writes": [[FILE, TEXT], ...], "resume": MARK}`` and
``{"drop": KEY}``, T in monotonic seconds. It undoes what is held when its time comes. When the runtime is
gone (the pipe's end, or its pidfd) it undoes all that is held, removes every leaf of the instance and ends.

It has a session of its own and ignores signals that a terminal or service manager sends to all, so
it outlives the runtime by as long as the cleaning takes. It imports the standard library and modules
of this package that do so too.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
import time
from typing import Any

from agentsched.cgroups import marked, names, tree

IGNORED = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGPIPE")
_PATIENCE_S = 60.0  # a process waiting for a device may die late


class Watchdog:
    """The leases, and whose they are."""

    def __init__(self, pipe: int, instance: str, roots: list[str], mark: str) -> None:
        self._pipe = pipe
        self._instance = instance
        self._roots = roots
        self._mark = mark
        self._leases: dict[str, dict[str, Any]] = {}
        self._unread = b""

    def watch(self) -> None:
        """Serve leases until the runtime is gone."""
        poller = select.poll()
        poller.register(self._pipe, select.POLLIN)
        runtime = _open_pidfd(int(self._instance.split("-")[0]))
        if runtime is not None:
            poller.register(runtime, select.POLLIN)
        # looked up after the pidfd was opened, so the pidfd cannot be of a later process of that pid
        while names.is_alive(self._instance):
            ready = {fd for fd, _ in poller.poll(self._pause_ms())}
            if self._pipe in ready and not self._learn():
                return
            if runtime in ready:
                return
            self._undo_due()

    def _pause_ms(self) -> float | None:
        if not self._leases:
            return None
        first = min(float(lease["until"]) for lease in self._leases.values())
        return max(0.0, (first - time.monotonic()) * 1000.0) + 1.0

    def _learn(self) -> bool:
        """Take what the pipe has; False at its end."""
        import json  # most runtimes never hold anything

        data = os.read(self._pipe, 1 << 16)
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            if "drop" in order:
                self._leases.pop(order["drop"], None)
            else:
                self._leases[order["hold"]] = order
        return bool(data)

    def _undo_due(self, now: float | None = None) -> None:
        now = time.monotonic() if now is None else now
        for key in [key for key, lease in self._leases.items() if float(lease["until"]) <= now]:
            lease = self._leases.pop(key)
            for path, text in lease["writes"]:
                try:
                    tree.write_if_there(path, text)
                except OSError as error:
                    # one setting that cannot be undone must not keep the others from it
                    print(f"agentsched watchdog: {path}: {error}", file=sys.stderr)
            if lease["resume"]:
                marked.send(lease["resume"], signal.SIGCONT)

    def clean(self) -> list[str]:
        """Undo what is held, and remove all leaves of the instance; returns what could not be removed."""
        self._undo_due(math.inf)
        left = tree.remove(self._roots, _PATIENCE_S)
        if self._mark:
            left += [str(pid) for pid in marked.kill(self._mark, _PATIENCE_S)]
        for root in self._roots:
            try:
                os.rmdir(os.path.dirname(root))
            except OSError:
                continue  # another instance uses it
        return left


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except OSError:
        return None  # gone already, or a kernel without pidfds: the pipe's end tells


def main() -> None:
    """``INSTANCE MARK ROOT...``; the pipe is stdin."""
    for name in IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    instance, mark, *roots = sys.argv[1:]
    watchdog = Watchdog(sys.stdin.fileno(), instance, roots, mark)
    try:
        watchdog.watch()
    finally:
        left = watchdog.clean()
    if left:
        print(f"agentsched watchdog: could not remove {', '.join(left)}", file=sys.stderr)
    os._exit(1 if left else 0)
