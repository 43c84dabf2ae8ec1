"""No cgroups: a plain process, in a session of its own, marked in its environment.

The last resort, and all that systems other than Linux get. Limits are not enforced, and what a
daemonised child uses is not known after its end.
"""

from __future__ import annotations

import os
import signal
import threading
import time

from agentsched.cgroups import marked, names
from agentsched.cgroups.contract import (
    Capabilities,
    HostRefused,
    Leaf,
    Leases,
    Pressure,
    Undo,
    Unsupported,
    Usage,
)

CAPABILITIES = Capabilities(
    backend="none",
    whole_tree=False,
    memory_limit=False,
    cpu_limit=False,
    pids_limit=False,
    freeze=os.path.exists("/proc/self/environ"),
    peak_memory=False,
    pressure=False,
    lost=(
        "memory, CPU and process limits are not enforced, and weights have no effect",
        "peak memory is that of the largest single process, not of the whole tree",
        "CPU time of children that nobody waits for is not counted",
        "a child that clears its environment and leaves its session escapes a kill",
        "no pressure figures",
    ),
)


class PlainLeaf:
    """See ``contract.Leaf``."""

    def __init__(self, mark: str, leases: Leases) -> None:
        self._mark = mark
        self._leases = leases
        self._born = time.monotonic()
        self._group: int | None = None
        self._cpu_s = 0.0
        self._peak = 0

    @property
    def cgroup_id(self) -> int | None:
        return None

    def limit_memory(self, limit_bytes: int | None, lease_s: float | None = None) -> None:
        raise Unsupported("the none backend has no memory limits")

    def limit_cpu(self, cores: float | None, lease_s: float | None = None) -> None:
        raise Unsupported("the none backend has no CPU limits")

    def limit_pids(self, limit: int | None) -> None:
        raise Unsupported("the none backend has no limit of processes")

    def weigh_cpu(self, weight: int, lease_s: float | None = None) -> None:
        raise Unsupported("the none backend has no CPU weights")

    def freeze(self, lease_s: float) -> None:
        if not CAPABILITIES.freeze:
            raise Unsupported("the none backend cannot freeze on this system")
        self._leases.hold(self._mark, lease_s, Undo(resume=self._mark))
        marked.send(self._mark, signal.SIGSTOP)

    def thaw(self) -> None:
        self._leases.drop(self._mark)
        marked.send(self._mark, signal.SIGCONT)

    def kill(self) -> None:
        if self._group is not None:
            try:
                os.killpg(self._group, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                # macOS answers EPERM for a group that only has a zombie left
                self._group = None
        marked.send(self._mark, signal.SIGKILL)

    def pids(self) -> list[int]:
        return marked.find(self._mark)

    def usage(self) -> Usage:
        running = [_used(pid) for pid in self.pids()]
        now = sum(memory for _, memory in running)
        self._peak = max(self._peak, now)
        return Usage(
            cpu_s=max(self._cpu_s, sum(cpu for cpu, _ in running)),
            peak_memory_bytes=self._peak,
            memory_bytes=now,
            wall_s=time.monotonic() - self._born,
        )

    def pressure(self) -> Pressure:
        raise Unsupported("the none backend has no pressure information")

    def oom_kills(self) -> int:
        return 0

    def entries(self) -> list[str]:
        return []

    def marks(self) -> dict[str, str]:
        outer = os.environ.get(marked.VARIABLE, "")
        return {marked.VARIABLE: outer + self._mark}

    def started(self, pid: int) -> None:
        self._group = pid if hasattr(os, "killpg") else None

    def ended(self, cpu_s: float, peak_memory_bytes: int) -> None:
        # the pid is free for others now; what is left of the group is found by its mark
        self._cpu_s, self._peak, self._group = cpu_s, max(self._peak, peak_memory_bytes), None

    def remove(self) -> None:
        self._leases.drop(self._mark)
        self.kill()
        if left := marked.kill(self._mark, patience_s=10.0):
            raise HostRefused(f"processes {left} do not die (waiting for a device?)")


class PlainBackend:
    """See ``contract.Backend``."""

    capabilities = CAPABILITIES

    def __init__(self, instance: str, leases: Leases) -> None:
        self.mark = f"{instance}/"
        self._leases = leases
        self._number = 0
        self._lock = threading.Lock()

    def roots(self) -> list[str]:
        return []

    def create(self, program: str, tool_call: str) -> Leaf:
        with self._lock:
            self._number += 1
            mark = f"{self.mark}{names.folder_name(program)}/{names.folder_name(tool_call)}/{self._number};"
        return PlainLeaf(mark, self._leases)

    def close_program(self, program: str) -> None:
        """Nothing is kept a program."""

    def close(self) -> None:
        if left := marked.kill(self.mark, patience_s=10.0):
            raise HostRefused(f"processes {left} do not die (waiting for a device?)")


def _used(pid: int) -> tuple[float, int]:
    """CPU seconds and resident bytes of one process."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0, 0
    ticks = sum(int(field) for field in fields[11:15])
    return ticks / os.sysconf("SC_CLK_TCK"), int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
