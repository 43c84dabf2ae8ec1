"""Full cgroup v2: every controller, freeze, kill and pressure in one folder a leaf.

The kernel's rules (cgroup-v2.rst) shape this: a folder other than the real root that passes
controllers on to its children must hold no process itself. If this process is alone in its folder
it moves into a child of it, ``agentsched-supervisor``; processes that it starts later are there as
well, and one that finds itself there builds beside it, not below. If others are in the folder it is
not ours to rearrange, and the reason says how to get one of one's own.
"""

from __future__ import annotations

import errno
import math
import os
import time

from agentsched.cgroups import names, tree
from agentsched.cgroups.contract import Capabilities, HostRefused, Leases
from agentsched.cgroups.hierarchy import Hierarchies
from agentsched.cgroups.leaf import CgroupBackend, Writes

WANTED = ("cpu", "memory", "pids")
_PERIOD_US = 100_000
_STALLED_SHARE = 0.5
"""Of the time since the last look: one that holds what it needs at its cap does not wait."""

_LOOK_S = 0.05  # what passed in less says little

_ADVICE = "start under `systemd-run --user --scope -p Delegate=yes`, or delegate a cgroup of its own"


class V2Knobs:
    """Control files of one v2 folder with controllers."""

    def __init__(self, folders: dict[str, str]) -> None:
        self._folder = folders["v2"]
        self._has_swap_limit = os.path.exists(f"{self._folder}/memory.swap.max")
        self._stalled = -math.inf, 0.0
        self._stopped = False

    def memory(self, limit_bytes: int | None) -> Writes:
        limit = (f"{self._folder}/memory.max", "max" if limit_bytes is None else str(limit_bytes))
        if not self._has_swap_limit:
            return (limit,)
        # a limit that may be exceeded into swap is none
        return (f"{self._folder}/memory.swap.max", "max" if limit_bytes is None else "0"), limit

    def cap(self, limit_bytes: int | None, own_limit_bytes: int | None) -> Writes:
        # memory.max, the leaf's own limit, stays as it is
        return ((f"{self._folder}/memory.high", "max" if limit_bytes is None else str(limit_bytes)),)

    def protect(self, folder: str, held_bytes: int) -> Writes:
        return ((f"{folder}/memory.low", str(held_bytes)),)

    def stopped(self) -> bool:
        # over memory.high tasks are slowed more and more: to a stop, for all that matters
        cap = tree.read_if_there(f"{self._folder}/memory.high").strip()
        if not cap.isdigit() or self.memory_now() < int(cap) - int(cap) // 64:
            return False
        some = tree.read_if_there(f"{self._folder}/memory.pressure").partition("total=")[2]
        if not some:
            return True  # a kernel without PSI
        now_s, stalled_s = time.monotonic(), int(some.split()[0]) / 1e6
        since_s, stalled_before_s = self._stalled
        if now_s - since_s >= _LOOK_S:
            self._stalled = now_s, stalled_s
            self._stopped = stalled_s - stalled_before_s >= _STALLED_SHARE * (now_s - since_s)
        return self._stopped

    def cpu(self, cores: float | None) -> Writes:
        quota = "max" if cores is None else str(max(1000, round(cores * _PERIOD_US)))
        return ((f"{self._folder}/cpu.max", f"{quota} {_PERIOD_US}"),)

    def weight(self, weight: int) -> Writes:
        return ((f"{self._folder}/cpu.weight", str(weight)),)

    def pids(self, limit: int | None) -> Writes:
        return ((f"{self._folder}/pids.max", "max" if limit is None else str(limit)),)

    def memory_now(self) -> int:
        return int(tree.read_if_there(f"{self._folder}/memory.current") or 0)

    def memory_peak(self) -> int:
        return int(tree.read_if_there(f"{self._folder}/memory.peak") or 0)

    def throttled_s(self) -> float:
        return tree.keyed(tree.read_if_there(f"{self._folder}/cpu.stat"), "throttled_usec") / 1e6

    def oom_kills(self) -> int:
        return tree.keyed(tree.read_if_there(f"{self._folder}/memory.events"), "oom_kill")


def base(own: str) -> str:
    """The folder under which leaves are made, for a caller in folder ``own``."""
    return os.path.dirname(own) if os.path.basename(own) == names.SUPERVISOR else own


def available(folder: str) -> tuple[str, ...]:
    """Which of the wanted controllers the folder could pass on."""
    offered = tree.read_if_there(f"{folder}/cgroup.controllers").split()
    return tuple(name for name in WANTED if name in offered)


def pass_on(folder: str, controllers: tuple[str, ...]) -> None:
    """Let children of ``folder`` have the controllers, leaving the folder if it must be empty.
    Raises ``HostRefused``."""
    file = f"{folder}/cgroup.subtree_control"
    text = " ".join(f"+{name}" for name in controllers)
    try:
        try:
            tree.write(file, text)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            _step_aside(folder)
            tree.write(file, text)
    except OSError as error:
        raise HostRefused(f"cannot write {text!r} to {file}: {error.strerror}; {_ADVICE}") from error


def _step_aside(folder: str) -> None:
    others = {int(pid) for pid in tree.read(f"{folder}/cgroup.procs").split()} - {os.getpid()}
    if others:
        raise HostRefused(f"{len(others)} other processes are in {folder}, which must be empty; {_ADVICE}")
    aside = f"{folder}/{names.SUPERVISOR}"
    os.makedirs(aside, exist_ok=True)
    tree.write(f"{aside}/cgroup.procs", str(os.getpid()))


def open_backend(
    found: Hierarchies, instance: str, leases: Leases, *, partial: bool = False
) -> CgroupBackend:
    """The backend on the caller's v2 hierarchy; ``partial``: also with controllers missing.
    Raises ``HostRefused`` with the reason why not."""
    if found.v2 is None:
        raise HostRefused("no cgroup v2 hierarchy is mounted")
    folder = base(found.v2)
    controllers = available(folder)
    missing = [name for name in WANTED if name not in controllers]
    if missing and not partial:
        raise HostRefused(f"{folder} has no {', '.join(missing)} controller")
    try:
        if controllers:
            pass_on(folder, controllers)
    except HostRefused:
        if not partial:
            raise
        controllers = ()  # folders without any may be made beside other processes
    home = f"{folder}/{names.PARENT}/{instance}"
    return CgroupBackend(
        {"v2": home}, controllers, lambda made: _capabilities(made, controllers), V2Knobs, leases
    )


def _capabilities(home: str, controllers: tuple[str, ...]) -> Capabilities:
    def has(file: str) -> bool:
        return os.path.exists(f"{home}/{file}")

    lost = []
    if "memory" not in controllers:
        lost.append("no memory controller: no memory limits, memory use is not known")
    elif not has("memory.peak"):
        lost.append("no memory.peak (Linux 5.19): peak memory is what was in use at the end")
    lost += [f"no {name} controller: no {name} limits" for name in ("cpu", "pids") if name not in controllers]
    if not has("cgroup.kill"):
        lost.append("no cgroup.kill (Linux 5.14): a fork bomb may outrun the killer for a while")
    return Capabilities(
        backend="v2",
        whole_tree=True,
        memory_limit="memory" in controllers,
        cpu_limit="cpu" in controllers,
        pids_limit="pids" in controllers,
        freeze=has("cgroup.freeze"),
        peak_memory="memory" in controllers and has("memory.peak"),
        pressure=has("cpu.pressure"),
        lost=tuple(lost),
    )
