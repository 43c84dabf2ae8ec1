"""Where the plugin's socket is: found by the server's port, and safe from other users."""

from __future__ import annotations

import os
import socket
import stat
import struct
import tempfile
from pathlib import Path

FOLDER_VARIABLE = "AGENTSCHED_SGLANG_SOCKETS"


class UnsafePlace(Exception):
    """Somebody else could be on the other end."""


def socket_path(port: int) -> Path:
    """The socket of the server whose HTTP port that is. Server and daemon run on one machine as one user;
    where their folders for temporary files differ, the environment's AGENTSCHED_SGLANG_SOCKETS names one
    folder to both."""
    stated = os.environ.get(FOLDER_VARIABLE)
    folder = Path(stated) if stated else Path(tempfile.gettempdir()) / f"agentsched-{os.getuid()}"
    return folder / f"sglang-{port}.sock"


def make_folder(folder: Path) -> None:
    """The socket's folder, for this user alone. Raises ``UnsafePlace`` if it is not that, and ``OSError``."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise UnsafePlace(
            f"{folder} must be a folder of this user that nobody else may enter (mode 700); "
            f"mend it, or name another by {FOLDER_VARIABLE}"
        )


def check_peer(link: socket.socket) -> None:
    """Raises ``UnsafePlace`` unless who is on the other end is this user, or root: the kernel says so."""
    size = struct.calcsize("3i")
    _, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    if uid not in (os.getuid(), 0):
        raise UnsafePlace(f"the other end of the socket is user {uid}, not {os.getuid()}")
