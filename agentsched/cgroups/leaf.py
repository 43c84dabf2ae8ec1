"""A leaf and a backend on cgroup folders: what full v2 and hybrid have in common.

Both have one v2 folder a tool call: it identifies, counts CPU time, freezes, kills and tells
pressure. They differ in where limits and memory figures are: the ``Knobs``.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Protocol

from agentsched.cgroups import names, tree
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

Writes = tuple[tuple[str, str], ...]


class Knobs(Protocol):
    """Limits and memory figures of one leaf, as control files."""

    def memory(self, limit_bytes: int | None) -> Writes: ...

    def cap(self, limit_bytes: int | None, own_limit_bytes: int | None) -> Writes:
        """At the cap tasks wait or are slowed, and are not killed; None: only the leaf's own limit counts."""
        ...

    def protect(self, folder: str, held_bytes: int) -> Writes:
        """Reclaim so much of what is under ``folder`` last; nothing where that cannot be had."""
        ...

    def stopped(self) -> bool:
        """Whether a task waits at the cap, as far as the kernel tells: now, or since this was asked last."""
        ...

    def cpu(self, cores: float | None) -> Writes: ...
    def weight(self, weight: int) -> Writes: ...
    def pids(self, limit: int | None) -> Writes: ...
    def memory_now(self) -> int: ...
    def memory_peak(self) -> int: ...
    def throttled_s(self) -> float: ...
    def oom_kills(self) -> int: ...


class CgroupLeaf:
    """See ``contract.Leaf``. ``folders``: the v2 one, and those of v1 controllers by their names."""

    def __init__(self, folders: dict[str, str], knobs: Knobs, can: Capabilities, leases: Leases) -> None:
        self._twins = dict(folders)
        self.folder = self._twins.pop("v2")
        self._knobs = knobs
        self._can = can
        self._leases = leases
        self._lock = threading.Lock()
        self._standing: dict[str, Writes] = {}
        self._held: set[str] = set()
        self._born = time.monotonic()
        self._removed = False

    @property
    def folders(self) -> dict[str, str]:
        """Its folders by hierarchy, the v2 one as ``v2``."""
        return {"v2": self.folder, **self._twins}

    @property
    def cgroup_id(self) -> int | None:
        return os.stat(self.folder).st_ino

    def limit_memory(self, limit_bytes: int | None, lease_s: float | None = None) -> None:
        self._require(self._can.memory_limit, "a memory limit")
        self._set("memory", self._knobs.memory(limit_bytes), self._knobs.memory(None), lease_s)

    def limit_cpu(self, cores: float | None, lease_s: float | None = None) -> None:
        self._require(self._can.cpu_limit, "a CPU limit")
        self._set("cpu", self._knobs.cpu(cores), self._knobs.cpu(None), lease_s)

    def limit_pids(self, limit: int | None) -> None:
        self._require(self._can.pids_limit, "a limit of processes")
        self._set("pids", self._knobs.pids(limit), self._knobs.pids(None), None)

    def weigh_cpu(self, weight: int, lease_s: float | None = None) -> None:
        self._require(self._can.cpu_limit, "a CPU weight")
        if not 1 <= weight <= 10_000:
            raise ValueError(f"a CPU weight is from 1 to 10000, got {weight}")
        self._set("weight", self._knobs.weight(weight), self._knobs.weight(100), lease_s)

    def freeze(self, lease_s: float) -> None:
        self._require(self._can.freeze, "freezing")
        file = f"{self.folder}/cgroup.freeze"
        self._set("freeze", ((file, "1"),), ((file, "0"),), lease_s)

    def thaw(self) -> None:
        self._require(self._can.freeze, "freezing")
        self._set("freeze", ((f"{self.folder}/cgroup.freeze", "0"),), (), None)

    def _require(self, able: bool, what: str) -> None:
        if not able:
            raise Unsupported(f"the {self._can.backend} backend has no {what} on this machine")

    def _set(self, kind: str, writes: Writes, default: Writes, lease_s: float | None) -> None:
        key = f"{self.folder}#{kind}"
        with self._lock:
            if self._removed:
                return
            if lease_s is None:
                self._standing[kind] = writes
                self._forget(key)
            else:
                # the lease is on record before the setting is made, so no crash can leave it behind
                self._leases.hold(key, lease_s, Undo(writes=self._standing.get(kind, default)))
                self._held.add(key)
            for path, text in writes:
                _write(path, text)

    def _forget(self, key: str) -> None:
        if key in self._held:
            self._held.discard(key)
            self._leases.drop(key)

    def kill(self) -> None:
        try:
            tree.kill(self.folder)
        except OSError as error:
            raise HostRefused(f"cannot kill {self.folder}: {error}") from error

    def pids(self) -> list[int]:
        return tree.pids(self.folder)

    def usage(self) -> Usage:
        peak = self._knobs.memory_peak() if self._can.peak_memory else 0
        now = self._knobs.memory_now()
        return Usage(
            cpu_s=tree.keyed(tree.read_if_there(f"{self.folder}/cpu.stat"), "usage_usec") / 1e6,
            peak_memory_bytes=max(peak, now),
            memory_bytes=now,
            wall_s=time.monotonic() - self._born,
            throttled_s=self._knobs.throttled_s() if self._can.cpu_limit else 0.0,
        )

    def pressure(self) -> Pressure:
        self._require(self._can.pressure, "pressure information")
        return Pressure(
            cpu_s=self._stalled("cpu"), memory_s=self._stalled("memory"), io_s=self._stalled("io")
        )

    def _stalled(self, resource: str) -> float:
        text = tree.read_if_there(f"{self.folder}/{resource}.pressure")
        some = next((line for line in text.splitlines() if line.startswith("some ")), "")
        return int(some.rpartition("total=")[2] or 0) / 1e6

    def oom_kills(self) -> int:
        return self._knobs.oom_kills()

    def entries(self) -> list[str]:
        return [f"{folder}/cgroup.procs" for folder in (*self._twins.values(), self.folder)]

    def marks(self) -> dict[str, str]:
        return {}

    def started(self, pid: int) -> None:
        """Nothing to learn: the kernel knows who is inside."""

    def ended(self, cpu_s: float, peak_memory_bytes: int) -> None:
        """Nothing to learn: the kernel counts better."""

    def remove(self) -> None:
        with self._lock:
            self._removed = True
            for key in sorted(self._held):
                self._forget(key)
        _remove([self.folder, *self._twins.values()])


class CgroupBackend:
    """See ``contract.Backend``. ``homes``: this instance's folder in each hierarchy, v2 first.
    ``controllers`` are those that every v2 folder above a leaf must pass on; ``can`` tells the
    capabilities from the files in a fresh v2 folder. Raises ``HostRefused``."""

    def __init__(
        self,
        homes: dict[str, str],
        controllers: tuple[str, ...],
        can: Callable[[str], Capabilities],
        knobs: Callable[[dict[str, str]], Knobs],
        leases: Leases,
    ) -> None:
        self._homes = homes
        self._controllers = controllers
        self._knobs = knobs
        self._leases = leases
        self._number = 0
        self._closed = False
        self._lock = threading.Lock()
        try:
            for home in homes.values():
                self._make(home, leaf=False)
        except HostRefused:
            self.close()
            raise
        self.capabilities = can(homes["v2"])

    def roots(self) -> list[str]:
        return list(self._homes.values())

    def create(self, program: str, tool_call: str) -> Leaf:
        place = names.folder_name(program)
        with self._lock:
            if self._closed:
                raise HostRefused("the runtime of this sandbox was closed")
            # a number of its own: the same id may come again while its first leaf is half removed
            self._number += 1
            name = f"{names.folder_name(tool_call)}={self._number}"
            folders = {kind: f"{home}/{place}/{name}" for kind, home in self._homes.items()}
            try:
                for folder in folders.values():
                    self._make(folder, leaf=True)
            except HostRefused:
                tree.remove(list(folders.values()), patience_s=1.0)
                raise
        return CgroupLeaf(folders, self._knobs(folders), self.capabilities, self._leases)

    def _make(self, folder: str, *, leaf: bool) -> None:
        """Make one folder, if it is not there, and what is missing above it."""
        for _ in range(8):  # another instance may remove the empty parent just now
            try:
                os.mkdir(folder)
                break
            except FileExistsError:
                break  # a parent that others use too
            except FileNotFoundError:
                self._make(os.path.dirname(folder), leaf=False)
            except OSError as error:
                raise HostRefused(f"cannot make {folder}: {error.strerror}") from error
        else:
            raise HostRefused(f"cannot make {folder}: its parent vanishes again and again")
        if not leaf and self._controllers and folder.startswith(_parent(self._homes["v2"])):
            _write(f"{folder}/cgroup.subtree_control", " ".join(f"+{name}" for name in self._controllers))

    def close_program(self, program: str) -> None:
        with self._lock:
            for home in self._homes.values():
                remove_empty(f"{home}/{names.folder_name(program)}")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            _remove(self.roots())
            for home in self._homes.values():
                remove_empty(_parent(home))


def _parent(home: str) -> str:
    return os.path.dirname(home)


def remove_empty(folder: str) -> None:
    """Remove a folder unless something is in it."""
    try:
        os.rmdir(folder)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EBUSY, errno.ENOTEMPTY):
            raise HostRefused(f"cannot remove {folder}: {error.strerror}") from error


def _write(path: str, text: str) -> None:
    try:
        tree.write_if_there(path, text)
    except OSError as error:
        raise HostRefused(f"cannot write {text!r} to {path}: {error.strerror}") from error


def _remove(folders: list[str]) -> None:
    try:
        left = tree.remove(folders, patience_s=10.0)
    except OSError as error:
        raise HostRefused(f"cannot remove {error.filename}: {error.strerror}") from error
    if left:
        raise HostRefused(f"processes in {', '.join(left)} do not die (waiting for a device?)")
