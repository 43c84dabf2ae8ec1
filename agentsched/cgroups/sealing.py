"""Keeps a command from the control group files: it sees them in a mount namespace where they are read-only.

So it cannot leave its leaf or change it, root or not. The rights with which root could get around that go as
well: to mount and to enter other namespaces (CAP_SYS_ADMIN), and to look into processes that have more
rights (CAP_SYS_PTRACE). All other mounts stay as they are.

A namespace belongs to a thread and what that starts. So commands are started by a thread apart that is
sealed, without a further exec. Its commands see what was mounted when it was made; another one is made when
that has changed.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import select
import struct
import threading
from collections.abc import Callable, Iterable
from typing import TypeVar

from agentsched.cgroups import hierarchy
from agentsched.cgroups.apart import Apart, Errand

_CLONE_NEWNS = 0x20000
_PR_CAPBSET_DROP = 24
_CAP_SYS_ADMIN, _CAP_SYS_PTRACE = 21, 19
_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_READ_ONLY = struct.pack("QQQQ", 1, 0, 0, 0)
"""``struct mount_attr``: MOUNT_ATTR_RDONLY is set, nothing is cleared."""

T = TypeVar("T")


@functools.cache
def possible() -> bool:
    """Whether this process may seal commands. Tried once."""
    if os.name != "posix" or os.uname().sysname != "Linux" or os.geteuid() != 0:
        return False
    try:
        in_sealed_thread(lambda: None)
    except OSError:
        return False
    return True


class _Sealed:
    """The thread that is sealed now, and the mounts as they were when that was made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._apart: Apart | None = None
        self._mounts = select.poll()
        self._mounts_fd = -1

    def send(self, act: Callable[[], T]) -> Errand[T]:
        """Raises ``OSError``."""
        with self._lock:
            if self._apart is None or self._mounts.poll(0):
                self._apart = self._renewed()
            return self._apart.send(act)

    def _renewed(self) -> Apart:
        if self._mounts_fd < 0:
            # the kernel raises an exceptional condition on it at each change since it was last asked
            self._mounts_fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
            self._mounts.register(self._mounts_fd, select.POLLPRI)
            self._mounts.poll(0)
        renewed = Apart(_seal)
        if self._apart is not None:
            self._apart.close()
        return renewed


_sealed = _Sealed() if hasattr(select, "poll") else None


def in_sealed_thread(act: Callable[[], T]) -> T:
    """Call ``act`` in a thread that is sealed, and return what it returns; processes that it starts are
    sealed. Raises what it raises, and ``OSError`` if no thread can be sealed."""
    if _sealed is None:
        raise OSError(errno.ENOSYS, "no mount namespaces on this system")
    return _sealed.send(act).wait()


def _seal() -> None:
    _check(libc().unshare(_CLONE_NEWNS), "unshare")
    for point in _places():
        attributes = ctypes.create_string_buffer(_READ_ONLY, len(_READ_ONLY))
        done = libc().syscall(
            _MOUNT_SETATTR, _AT_FDCWD, os.fsencode(point), 0, attributes, ctypes.c_size_t(len(_READ_ONLY))
        )
        _check(done, f"mount_setattr {point}")
    drop_rights((_CAP_SYS_ADMIN, _CAP_SYS_PTRACE))


def drop_rights(rights: Iterable[int]) -> None:
    """What this thread starts cannot have these capabilities, by number; unknown ones are passed over."""
    for right in rights:
        if libc().prctl(_PR_CAPBSET_DROP, right, 0, 0, 0) != 0 and ctypes.get_errno() != errno.EINVAL:
            _check(-1, "prctl")


def _check(done: int, what: str) -> None:
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


@functools.cache
def _places() -> tuple[str, ...]:
    """Where control groups are mounted; looked up once, for that costs more than the rest."""
    return tuple(hierarchy.mount_points())


@functools.cache
def libc() -> ctypes.CDLL:
    """Its functions, with errno kept."""
    return ctypes.CDLL(None, use_errno=True)
