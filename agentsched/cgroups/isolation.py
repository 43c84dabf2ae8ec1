"""A program's own view of the disk: the host's files under an overlay whose upper side is bounded.

Built once a program, by bubblewrap, and held by one idle process; each tool call is started inside. So calls
see what earlier ones wrote, and pay for entering the namespaces, not for making them.

The upper side is a tmpfs of a fixed size: what fills it gets ENOSPC there and nobody else does, on any file
system and kernel, without quotas. Its pages are charged to the calls that write them, and to their program
when those have ended. Two runs of ``bwrap`` build it: the first gives a mount namespace to build overlays in
(those of its own need version 0.11), the second one the root, the process tree and the network from that.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from agentsched.cgroups import hierarchy, sealing
from agentsched.cgroups.apart import Apart
from agentsched.cgroups.contract import DiskUse, HostRefused, Isolation

REMEDY = "install bubblewrap (apt-get install bubblewrap, dnf install bubblewrap) and run as root"
_READY_S = 20.0
_READY = b"ready\n"
_CLONE_FS, _CLONE_NEWNS = 0x200, 0x20000
_CLONE_NEWIPC, _CLONE_NEWPID, _CLONE_NEWNET = 1 << 27, 1 << 29, 1 << 30
_PLAIN = re.compile(r"[^:,\\\n]+")
"""Paths that need no escaping in an overlay's options."""
_BYTES_AN_INODE = 4096
_LEAST_INODES = 1 << 14

# linux/capability.h: what tools of root need in their own files and processes (chown to net_bind_service,
# net_raw, sys_chroot, audit_write, setfcap). The others reach the host.
_KEPT_RIGHTS = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 29, 31})
_MOST_RIGHTS = 64

T = TypeVar("T")

_OVERLAY = """
overlay() {
    mkdir -p "$S/$1/work" && mkdir -m "$2" "$S/$1/upper" && chown "$3" "$S/$1/upper" &&
    mount -t overlay agentsched -o "$O,lowerdir=$4,upperdir=$S/$1/upper,workdir=$S/$1/work" "$S/root$4"
}
only_read() {
    mount --bind "$1" "$S/root$1" && mount -o remount,bind,ro "$S/root$1"
}
"""


def missing() -> str:
    """Why programs cannot be isolated here; empty if they can. Tries it, for some 30 ms."""
    try:
        Isolated(Isolation(disk_bytes=1 << 20)).close()
    except HostRefused as error:
        return str(error)
    return ""


class Isolated:
    """The place of one program. Thread-safe. Raises ``HostRefused`` where it cannot be built, and says what
    would have to be there."""

    def __init__(self, isolation: Isolation) -> None:
        self._isolation = isolation
        scratch = tempfile.mkdtemp(prefix="agentsched-")
        try:
            self._holder = _hold(isolation, scratch)
            try:
                self.init = _await_ready(self._holder)
                """The first process inside, which ends last."""
                self._pidfd = os.pidfd_open(self.init)
                self._apart = Apart(self._enter)
            except (OSError, HostRefused):
                _stop(self._holder, None)
                raise
        finally:
            os.rmdir(scratch)  # to the host it was never more than an empty folder
        self._lock = threading.Lock()
        self._closed = False

    def inside(self, act: Callable[[], T]) -> T:
        """Call ``act`` in a thread that is inside; processes that it starts are as well. Its folder is the
        root. Raises what it raises, and ``HostRefused`` if the place is gone."""
        with self._lock:
            if self._closed or select.select([self._pidfd], [], [], 0)[0]:
                raise HostRefused("the isolated place of the program is gone")
            errand = self._apart.send(act)
        return errand.wait()

    def _enter(self) -> None:
        libc = sealing.libc()
        kinds = _CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWIPC
        if not self._isolation.network:
            kinds |= _CLONE_NEWNET
        if libc.unshare(_CLONE_FS) or libc.setns(self._pidfd, kinds):
            raise HostRefused(f"the isolated place cannot be entered: {os.strerror(ctypes.get_errno())}")
        sealing.drop_rights(right for right in range(_MOST_RIGHTS) if right not in _KEPT_RIGHTS)

    def disk(self) -> DiskUse:
        """What is written by now."""
        limit = self._isolation.disk_bytes
        try:
            seen = os.statvfs(f"/proc/{self.init}/root/")
        except OSError:
            return DiskUse(used_bytes=0, limit_bytes=limit)
        return DiskUse(
            used_bytes=(seen.f_blocks - seen.f_bfree) * seen.f_frsize,
            limit_bytes=limit,
            full=seen.f_bavail == 0 or seen.f_ffree == 0,
        )

    def close(self) -> None:
        """End what runs inside, and give back what was written. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._apart.close()
            _stop(self._holder, self._pidfd)
            os.close(self._pidfd)


def _hold(isolation: Isolation, scratch: str) -> subprocess.Popen[bytes]:
    bwrap = shutil.which("bwrap")
    if bwrap is None:
        raise HostRefused(f"tools cannot be isolated: no bwrap in PATH; {REMEDY}")
    if not sealing.possible():
        raise HostRefused(f"tools cannot be isolated: that needs CAP_SYS_ADMIN and Linux 5.12; {REMEDY}")
    script = "\n".join(_script(bwrap, scratch, isolation))
    try:
        return subprocess.Popen(
            [bwrap, "--dev-bind", "/", "/", "--cap-add", "ALL", "--", "/bin/sh", "-ec", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            cwd="/",
            bufsize=0,
        )
    except OSError as error:
        raise HostRefused(f"cannot start {bwrap}: {error.strerror}") from error


def _script(bwrap: str, scratch: str, isolation: Isolation) -> Iterator[str]:
    """What builds the place in ``scratch``, in a mount namespace where that does nobody harm, and holds it
    until the end of its stdin."""
    inodes = max(_LEAST_INODES, isolation.disk_bytes // _BYTES_AN_INODE)
    yield f"S={shlex.quote(scratch)}"
    yield "O=nodev,redirect_dir=on,metacopy=on"
    yield _OVERLAY
    yield f'mount -t tmpfs -o size={isolation.disk_bytes},nr_inodes={inodes},mode=0755 agentsched "$S"'
    yield 'mkdir -m 755 "$S/root"; mkdir -m 1777 "$S/shm"'
    yield "overlay 0 755 0:0 /"
    for number, mount in enumerate(hierarchy.disk_mounts(), 1):
        point = shlex.quote(mount.point)
        look = f"only_read {point}"
        if mount.is_writable and _PLAIN.fullmatch(mount.point) and os.path.isdir(mount.point):
            seen = os.stat(mount.point)
            look = f"overlay {number} {seen.st_mode & 0o7777:o} {seen.st_uid}:{seen.st_gid} {point} || {look}"
        yield f'[ ! -e "$S/root"{point} ] || {{ {look}; }} 2>/dev/null || :'
    for folder in isolation.writable:
        real = shlex.quote(os.path.realpath(folder))
        yield f'mount --bind {real} "$S/root"{real}'
    network = "" if isolation.network else "--unshare-net"
    yield (
        f'exec {shlex.quote(bwrap)} --bind "$S/root" /'
        " --proc /proc --ro-bind /proc/sys /proc/sys --ro-bind /sys /sys"
        f' --dev /dev --bind "$S/shm" /dev/shm --remount-ro /dev --unshare-pid --unshare-ipc {network}'
        ' --die-with-parent --chdir / --info-fd 3 -- /bin/sh -c "echo ready; exec cat >/dev/null" 3>&1'
    )


def _await_ready(holder: subprocess.Popen[bytes]) -> int:
    """The id of the first process inside, once all is in place."""
    assert holder.stdout is not None
    assert holder.stderr is not None
    told, deadline = b"", time.monotonic() + _READY_S
    while not told.endswith(_READY):
        if not select.select([holder.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise HostRefused(f"bwrap was not ready within {_READY_S:g} s")
        chunk = holder.stdout.read(1 << 12)
        if not chunk:
            why = holder.stderr.read(1 << 12).decode("utf-8", "replace").strip()
            raise HostRefused(f"the isolated place could not be built: {why}")
        told += chunk
    return int(json.loads(told.removesuffix(_READY))["child-pid"])


def _stop(holder: subprocess.Popen[bytes], init: int | None) -> None:
    """The end of the first process inside is that of all; who waits for it, and so on up to ``holder``, ends
    in turn."""
    try:
        if init is not None:
            signal.pidfd_send_signal(init, signal.SIGKILL)
        else:
            os.killpg(holder.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    holder.communicate()
