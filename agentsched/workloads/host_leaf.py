"""A control group with little memory that plays a host: agents run in it, and so do their tool calls.

For benchmarks and tests of what happens when a host runs short. When its limit is reached the kernel kills
one of its processes, as it does on a machine.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from types import TracebackType

from agentsched.cgroups import hierarchy, names, tree, v2
from agentsched.cgroups.contract import HostRefused

_ENTER = 'echo 0 >"$1/cgroup.procs" && shift && exec "$@"'


class HostLeaf:
    """One. A context manager: at its end all that is in it is killed. Raises ``HostRefused`` where there is
    no memory controller to be had."""

    def __init__(self, name: str, memory_bytes: int) -> None:
        found = hierarchy.here()
        self.v1 = "memory" in found.v1
        if not self.v1 and (found.v2 is None or "memory" not in v2.available(v2.base(found.v2))):
            raise HostRefused("no memory controller that a host could be made of")
        above = found.v1["memory"] if self.v1 else v2.base(found.v2 or "")
        if not self.v1:
            v2.pass_on(above, v2.available(above))
        self.folder = f"{above}/{name}-{os.getpid()}"
        self.memory_bytes = memory_bytes
        os.mkdir(self.folder)
        for file, text in self._limits():
            tree.write(f"{self.folder}/{file}", text)
        self._agents = self.folder
        if not self.v1:
            # v2 wants nobody beside folders that are limited: agents begin where runtimes step aside to
            v2.pass_on(self.folder, v2.available(self.folder))
            self._agents = f"{self.folder}/{names.SUPERVISOR}"
            os.mkdir(self._agents)

    def _limits(self) -> list[tuple[str, str]]:
        limit = str(self.memory_bytes)
        if not self.v1:
            return [("memory.max", limit)]
        swap = os.path.exists(f"{self.folder}/memory.memsw.limit_in_bytes")
        return [("memory.limit_in_bytes", limit), *([("memory.memsw.limit_in_bytes", limit)] if swap else [])]

    def start(
        self, argv: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Run a process in it, its output in a pipe."""
        return subprocess.Popen(
            ["/bin/sh", "-c", _ENTER, "host", self._agents, *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ) | dict(environment or {}),
            start_new_session=True,
        )

    @property
    def used_bytes(self) -> int:
        """What is in use now, page cache included."""
        file = "memory.usage_in_bytes" if self.v1 else "memory.current"
        return int(tree.read_if_there(f"{self.folder}/{file}") or 0)

    @property
    def held_bytes(self) -> int:
        """The same without page cache."""
        stat = tree.read_if_there(f"{self.folder}/memory.stat")
        return tree.keyed(stat, "total_rss" if self.v1 else "anon")

    @property
    def oom_kills(self) -> int:
        """Processes that the kernel killed in it, in all folders of it that are still there."""
        file = "memory.oom_control" if self.v1 else "memory.events"
        return sum(
            tree.keyed(tree.read_if_there(f"{folder}/{file}"), "oom_kill")
            for folder in tree.folders(self.folder)
        )

    def __enter__(self) -> HostLeaf:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # watchdogs in it clean up first, where they have something to clean
        deadline_s = time.monotonic() + 2.0
        while tree.pids(self.folder) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        tree.remove([self.folder], patience_s=10.0)
