"""Carries a controller's actions out on leaves that belong to other processes.

Whatever holds a call back is a lease: the controller's own watchdog takes it back ``LEASE_S`` after the last
renewal, and all of it at once when the controller is gone.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from typing import NamedTuple

from agentsched.cgroups import tree
from agentsched.cgroups.contract import Leases, Undo
from agentsched.cgroups.hybrid import V1Knobs
from agentsched.cgroups.leaf import Knobs, Writes
from agentsched.cgroups.v2 import V2Knobs

_log = logging.getLogger(__name__)

LEASE_S = 3.0
RENEW_S = 1.0
_MARGINS = (0, 4 << 20, 16 << 20, 64 << 20, 256 << 20)


class Place(NamedTuple):
    """Where a call runs. ``limit_bytes``: its own hard limit, which caps fall back to."""

    leaf: str
    folders: dict[str, str]
    backend: str
    limit_bytes: int | None

    @property
    def memory(self) -> str:
        """Its folder of the memory hierarchy."""
        return self.folders.get("memory", self.leaf)

    @property
    def cpu(self) -> str:
        """Its folder where CPU weights are."""
        return self.folders.get("cpu", self.leaf)

    @property
    def v1(self) -> bool:
        return self.backend == "hybrid"

    def above(self, folder: str) -> Place:
        """The same of a folder of the memory hierarchy above it."""
        return Place(folder, {"memory": folder} if self.v1 else {"v2": folder}, self.backend, None)

    def knobs(self) -> Knobs:
        """Its control files."""
        return V1Knobs(self.folders) if self.v1 else V2Knobs(self.folders)


class _Held(NamedTuple):
    until_s: float
    undo: Undo


class Hands:
    """Thread-unsafe. ``leases``: who takes back what is held."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._held: dict[str, _Held] = {}

    def cap(self, place: Place, limit_bytes: int | None) -> None:
        """Let the call hold no more; None: as much as its own limit allows. A cap under what it holds by
        now is put just above that."""
        knobs, key = place.knobs(), f"{place.leaf}#cap"
        lift = knobs.cap(None, place.limit_bytes)
        if limit_bytes is None or (place.limit_bytes is not None and limit_bytes >= place.limit_bytes):
            self._take_back(key, lift)
            return
        self._hold(key, lift)
        for margin in _MARGINS:
            # v1 refuses a cap under that; v2 would take from the call what it needs, and stop it for it
            wanted = max(limit_bytes, knobs.memory_now() + margin)
            try:
                for path, text in knobs.cap(wanted, place.limit_bytes):
                    tree.write_if_there(path, text)
                return
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
        _log.warning("%s grows too fast for a cap", place.leaf)

    def protect(self, place: Place, held_bytes: int) -> None:
        """Keep so much of what the call holds from being reclaimed. Does nothing on v1, which cannot."""
        key = f"{place.leaf}#protect"
        folders = [place.leaf, *_above(place.leaf)]
        off = sum((place.knobs().protect(folder, 0) for folder in folders), ())
        if not off:
            return
        if not held_bytes:
            self._take_back(key, off)
            return
        self._hold(key, off)
        # protection counts only as far as every folder above gives it
        for folder in reversed(folders):
            self._write(place.knobs().protect(folder, held_bytes))

    def freeze(self, place: Place) -> None:
        """Stop the call."""
        file = f"{place.leaf}/cgroup.freeze"
        self._hold(f"{place.leaf}#freeze", ((file, "0"),))
        self._write(((file, "1"),))

    def thaw(self, place: Place) -> None:
        """Let it go on."""
        self._take_back(f"{place.leaf}#freeze", ((f"{place.leaf}/cgroup.freeze", "0"),))

    def kill(self, place: Place) -> None:
        """SIGKILL everything in the leaf."""
        tree.kill(place.leaf)

    def weigh(self, folder: str, weight: int, *, v1: bool) -> None:
        """Share of CPU time of all that is under ``folder``, a program's or an instance's."""
        knobs = V1Knobs({"cpu": folder}) if v1 else V2Knobs({"v2": folder})
        key, usual = f"{folder}#weight", knobs.weight(100)
        if weight == 100:
            self._take_back(key, usual)
        else:
            self._hold(key, usual)
            self._write(knobs.weight(weight))

    def alarm(self, folder: str, limit_bytes: int | None) -> None:
        """Let the kernel slow down all that is under a v2 ``folder`` when it crosses this, and tell; until
        somebody looks."""
        key, off = f"{folder}#alarm", ((f"{folder}/memory.high", "max"),)
        if limit_bytes is None:
            self._take_back(key, off)
        else:
            self._hold(key, off)
            self._write(((f"{folder}/memory.high", str(limit_bytes)),))

    def reset(self, place: Place) -> None:
        """Undo what another controller may have left on a call that is new to this one."""
        self._write(place.knobs().cap(None, place.limit_bytes))
        self._write(((f"{place.leaf}/cgroup.freeze", "0"),))

    def release(self, place: Place) -> None:
        """Take everything back that holds the call."""
        for key in [key for key in self._held if key.startswith(f"{place.leaf}#")]:
            self._take_back(key, self._held[key].undo.writes)

    def renew(self) -> None:
        """Go on holding what is held. To be called every ``RENEW_S`` or so."""
        now = time.monotonic()
        for key, held in list(self._held.items()):
            if not any(os.path.exists(path) for path, _ in held.undo.writes):
                self._drop(key)  # the folder is gone
            elif held.until_s - now < LEASE_S - RENEW_S / 2:
                self._hold(key, held.undo.writes)

    def _hold(self, key: str, undo: Writes) -> None:
        # on record before the setting is made: no crash can leave it behind
        self._held[key] = _Held(time.monotonic() + LEASE_S, Undo(writes=undo))
        self._leases.hold(key, LEASE_S, self._held[key].undo)

    def _take_back(self, key: str, writes: Writes) -> None:
        if key in self._held:
            self._write(writes)
            self._drop(key)

    def _drop(self, key: str) -> None:
        self._held.pop(key, None)
        self._leases.drop(key)

    @staticmethod
    def _write(writes: Writes) -> None:
        for path, text in writes:
            try:
                tree.write_if_there(path, text)
            except OSError as error:
                # one setting that cannot be made must not keep the others from it
                _log.warning("cannot write %r to %s: %s", text, path, error)


def _above(leaf: str) -> list[str]:
    """The folders of program, instance and runtime above a leaf."""
    program = os.path.dirname(leaf)
    instance = os.path.dirname(program)
    return [program, instance, os.path.dirname(instance)]
