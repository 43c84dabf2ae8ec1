"""What a foreign process prints, where that is a file: read beside it, without its notice.

Claude Code has its commands write to a file. Pipes and terminals cannot be read without taking from who they
are for.
"""

from __future__ import annotations

import os
import stat

_MOST_BYTES = 1 << 18
"""Of one look; what is beyond that is left out."""


class Written:
    """The standard output of one process, from now on."""

    def __init__(self, pid: int) -> None:
        self._fd, self._at = -1, 0
        path = f"/proc/{pid}/fd/1"
        try:
            if stat.S_ISREG(os.stat(path).st_mode):
                self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                self._at = os.fstat(self._fd).st_size
        except OSError:
            return  # it is gone, or not to be seen

    def more(self) -> bytes:
        """What came since the last look."""
        if self._fd < 0:
            return b""
        size = os.fstat(self._fd).st_size
        begin = max(min(self._at, size), size - _MOST_BYTES)
        self._at = size
        return os.pread(self._fd, size - begin, begin)

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
