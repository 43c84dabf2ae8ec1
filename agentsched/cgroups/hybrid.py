"""Hybrid: limits and memory figures from v1 controllers, all else from a v2 folder without any.

Machines of this kind mount v1 memory, cpu and pids beside an empty v2 tree. v2 without controllers
still identifies, counts CPU time exactly (so cpuacct is not needed), freezes and kills.
"""

from __future__ import annotations

import os

from agentsched.cgroups import names, tree, v2
from agentsched.cgroups.contract import Capabilities, HostRefused, Leases
from agentsched.cgroups.hierarchy import Hierarchies
from agentsched.cgroups.leaf import CgroupBackend, Writes

_PERIOD_US = 100_000
_USUAL_SHARES = 1024  # what v2 calls weight 100


class V1Knobs:
    """Control files of one leaf's v1 twins."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._memory = folders.get("memory", "")
        self._cpu = folders.get("cpu", "")
        self._pids = folders.get("pids", "")
        self._swap_limit = f"{self._memory}/memory.memsw.limit_in_bytes"
        self._has_swap_limit = os.path.exists(self._swap_limit)

    def memory(self, limit_bytes: int | None) -> Writes:
        plain = f"{self._memory}/memory.limit_in_bytes"
        if not self._has_swap_limit:
            return ((plain, str(limit_bytes or -1)),)
        lift = (self._swap_limit, "-1")
        if limit_bytes is None:
            return lift, (plain, "-1")
        # memory+swap must never be under memory: lift it, then set both
        return lift, (plain, str(limit_bytes)), (self._swap_limit, str(limit_bytes))

    def cap(self, limit_bytes: int | None, own_limit_bytes: int | None) -> Writes:
        limit, oom = f"{self._memory}/memory.limit_in_bytes", f"{self._memory}/memory.oom_control"
        if limit_bytes is None:
            return (limit, str(own_limit_bytes or -1)), (oom, "0")
        # without the OOM killer a task waits at the limit until that is raised
        return (oom, "1"), (limit, str(limit_bytes))

    def protect(self, folder: str, held_bytes: int) -> Writes:
        return ()

    def stopped(self) -> bool:
        return "under_oom 1" in tree.read_if_there(f"{self._memory}/memory.oom_control")

    def cpu(self, cores: float | None) -> Writes:
        quota = -1 if cores is None else max(1000, round(cores * _PERIOD_US))
        return (f"{self._cpu}/cpu.cfs_period_us", str(_PERIOD_US)), (
            f"{self._cpu}/cpu.cfs_quota_us",
            str(quota),
        )

    def weight(self, weight: int) -> Writes:
        return ((f"{self._cpu}/cpu.shares", str(max(2, weight * _USUAL_SHARES // 100))),)

    def pids(self, limit: int | None) -> Writes:
        return ((f"{self._pids}/pids.max", "max" if limit is None else str(limit)),)

    def memory_now(self) -> int:
        return int(tree.read_if_there(f"{self._memory}/memory.usage_in_bytes") or 0)

    def memory_peak(self) -> int:
        return int(tree.read_if_there(f"{self._memory}/memory.max_usage_in_bytes") or 0)

    def throttled_s(self) -> float:
        return tree.keyed(tree.read_if_there(f"{self._cpu}/cpu.stat"), "throttled_time") / 1e9

    def oom_kills(self) -> int:
        return tree.keyed(tree.read_if_there(f"{self._memory}/memory.oom_control"), "oom_kill")


def open_backend(found: Hierarchies, instance: str, leases: Leases) -> CgroupBackend:
    """The backend on the caller's v1 and v2 hierarchies. Raises ``HostRefused`` with the reason."""
    if found.v2 is None:
        raise HostRefused("no cgroup v2 hierarchy is mounted")
    if "memory" not in found.v1:
        raise HostRefused("no v1 memory controller is mounted")
    twins: dict[str, str] = {name: found.v1[name] for name in ("memory", "cpu", "pids") if name in found.v1}
    homes = {"v2": f"{v2.base(found.v2)}/{names.PARENT}/{instance}"}
    homes |= {name: f"{folder}/{names.PARENT}/{instance}" for name, folder in twins.items()}

    return CgroupBackend(homes, (), lambda made: _capabilities(made, twins), V1Knobs, leases)


def _capabilities(home: str, twins: dict[str, str]) -> Capabilities:
    lost = [f"no v1 {name} controller: no {name} limits" for name in ("cpu", "pids") if name not in twins]
    lost.append(
        "v1 memory: under pressure a call waits at its cap, where v2 would slow it down (memory.high), "
        "and nothing is kept from being reclaimed (memory.low)"
    )
    return Capabilities(
        backend="hybrid",
        whole_tree=True,
        memory_limit=True,
        cpu_limit="cpu" in twins,
        pids_limit="pids" in twins,
        freeze=os.path.exists(f"{home}/cgroup.freeze"),
        peak_memory=True,
        pressure=os.path.exists(f"{home}/cpu.pressure"),
        lost=tuple(lost),
    )
