"""The socket that the daemon listens on: a port, or a Unix socket that only some may connect to."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentsched.daemon.settings import Settings

BACKLOG = 1024


@contextmanager
def listen(settings: Settings) -> Iterator[socket.socket]:
    """The listening socket; a Unix socket's file is gone afterwards. Raises ``OSError``."""
    if settings.socket is not None:
        with _unix(settings.socket, int(settings.socket_mode, 8)) as listening:
            yield listening
        return
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.create_server((settings.host, settings.port), family=family, backlog=BACKLOG) as listening:
        yield listening


def url_of(listening: socket.socket) -> str:
    """Where clients find it; ``unix:PATH`` for a Unix socket."""
    if listening.family == socket.AF_UNIX:
        return f"unix:{listening.getsockname()}"
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _unix(path: Path, mode: int) -> Iterator[socket.socket]:
    _clear(path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        # Made for its owner alone: nobody else connects before its mode is set.
        masked = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(masked)
        made = path.stat()
        path.chmod(mode)
        listening.listen(BACKLOG)
        try:
            yield listening
        finally:
            if path.exists() and os.path.samestat(path.stat(), made):
                path.unlink()


def _clear(path: Path) -> None:
    """Remove what a daemon that was killed has left. Raises ``OSError`` if one is there still."""
    try:
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise FileExistsError(f"{path} is there already, and is no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise FileExistsError(f"another process listens on {path}")
