"""How a process ended that is no child of ours.

A pidfd tells it after whoever waited for the process has had the status (``PIDFD_GET_INFO`` with
``PIDFD_INFO_EXIT``, Linux 6.15; include/uapi/linux/pidfd.h).
"""

from __future__ import annotations

import os
import struct

_SIZE = 64  # struct pidfd_info as it first was: mask, cgroup id, eleven ids, and the status at its end
_GET_INFO = 3 << 30 | _SIZE << 16 | 0xFF << 8 | 11
_EXIT = 1 << 3


class Ending:
    """Of one process; made while it lives."""

    def __init__(self, pid: int) -> None:
        try:
            self._fd = os.pidfd_open(pid)
        except (OSError, AttributeError):
            self._fd = -1

    def status(self) -> int | None:
        """0 to 255, or 128 + the signal's number; None while nobody has waited for it, and where the kernel
        does not tell."""
        if self._fd < 0:
            return None
        import fcntl

        info = bytearray(_SIZE)
        struct.pack_into("<Q", info, 0, _EXIT)
        try:
            fcntl.ioctl(self._fd, _GET_INFO, info)
        except OSError:
            return None
        mask, code = struct.unpack_from("<Q", info)[0], struct.unpack_from("<i", info, 60)[0]
        if not mask & _EXIT:
            return None
        return os.waitstatus_to_exitcode(code) % 256 if os.WIFEXITED(code) else 128 + os.WTERMSIG(code)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
