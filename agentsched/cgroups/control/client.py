"""A runtime's end of the controller: tells it of calls, starts it where there is none, hears what it did.

Nothing here makes a call wait: messages that do not fit the socket are lost with the connection, which a
thread makes anew, telling of all calls that run. Without a controller calls run as they always did.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time

import msgspec

from agentsched.cgroups.control import messages as ms

SWITCH = "AGENTSCHED_CONTROL"
"""``off``: this process's calls are not controlled."""

ANSWER_S = 0.5
"""A call that was held back waits so long at its end to hear why."""

_BOOT = "import sys; sys.path[:] = {path!r}; from agentsched.cgroups.control.process import main; main()"
_BOOT_S = 10.0
_RETRY_S = 0.02
_REST_S = 30.0


def switched_on() -> bool:
    """Whether calls of this process are to be controlled."""
    return os.environ.get(SWITCH, "on").lower() not in ("off", "0", "no")


class Client:
    """Thread-safe. Starts with its first call; ``close`` comes last."""

    def __init__(self) -> None:
        self._live: dict[str, ms.Began] = {}
        self._done: dict[str, ms.Done] = {}
        self._touched: set[str] = set()
        self._changed = threading.Condition()
        self._connection: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        """Whether a controller hears this runtime now."""
        return self._connection is not None

    def began(self, began: ms.Began) -> None:
        """A call is about to run."""
        with self._changed:
            if self._closed:
                return
            self._live[began.leaf] = began
            if self._connection is not None:
                self._send(began)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="agentsched-control", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def ended(
        self, leaf: str, peak_bytes: int = 0, *, by_itself: bool = False, killed: bool = False
    ) -> ms.Done:
        """The call is over, ``killed`` or not; what the controller did to it. Idempotent."""
        with self._changed:
            if self._live.pop(leaf, None) is None or self._connection is None:
                self._touched.discard(leaf)
                return self._done.pop(leaf, ms.Done(leaf=leaf))
            asks = killed or leaf in self._touched
            self._send(ms.Ended(leaf=leaf, peak_bytes=peak_bytes, by_itself=by_itself, asks=asks))
            if asks:
                self._changed.wait_for(lambda: leaf in self._done or self._connection is None, ANSWER_S)
            self._touched.discard(leaf)
            return self._done.pop(leaf, ms.Done(leaf=leaf))

    def close(self) -> None:
        """No more calls. Idempotent."""
        with self._changed:
            self._closed = True
            self._live.clear()
            if self._connection is not None:
                self._connection.shutdown(socket.SHUT_RDWR)
            self._changed.notify_all()
        for process in _started:
            if process.poll() is None:
                process.returncode = 0  # it outlives this process, whose parent then inherits it

    def forsake(self) -> None:
        """In a forked child: the connection is the parent's."""
        if self._connection is not None:
            self._connection.close()

    def _send(self, message: ms.ToController) -> None:
        if self._connection is None:
            return
        try:
            self._connection.send(ms.encode(message), socket.MSG_DONTWAIT)
        except OSError:
            self._connection.shutdown(socket.SHUT_RDWR)  # the thread sees that, and connects anew

    def _serve(self) -> None:
        """The thread: connected as long as there are calls or the connection holds."""
        again = False
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._live or self._closed)
                if self._closed:
                    return
            connection = _connect()
            if connection is None:
                import logging

                logging.getLogger(__name__).warning(
                    "tool calls are not controlled: %s.process cannot be started", __package__
                )
                time.sleep(_REST_S)
                continue
            with self._changed:
                self._connection = connection
                for began in self._live.values():
                    self._send(msgspec.structs.replace(began, again=again))
            again = True
            self._listen(connection)
            with self._changed:
                self._connection = None
                self._changed.notify_all()
            connection.close()

    def _listen(self, connection: socket.socket) -> None:
        while True:
            try:
                packet = connection.recv(ms.LONGEST)
            except OSError:
                packet = b""
            if not packet:
                return
            message = ms.to_runtime.decode(packet)
            with self._changed:
                if isinstance(message, ms.Touched):
                    if message.leaf in self._live:
                        self._touched.add(message.leaf)
                else:
                    self._done[message.leaf] = message
                self._changed.notify_all()


def connect_once() -> socket.socket | None:
    """To the controller that is there."""
    try:
        connection = ms.new_socket()
    except OSError:
        return None  # a system without such sockets
    try:
        connection.connect(ms.address())
        if ms.is_ours(connection):
            return connection
    except OSError:
        pass
    connection.close()
    return None


def _connect() -> socket.socket | None:
    """To the controller, which is started if there is none; None if that fails."""
    connection = connect_once()
    if connection is not None or not sys.executable:
        return connection
    process = _start()
    deadline_s = time.monotonic() + _BOOT_S
    while time.monotonic() < deadline_s:
        if (connection := connect_once()) is not None:
            return connection
        if process.poll() not in (None, 0):
            return None
        time.sleep(_RETRY_S)
    return None


def _start() -> subprocess.Popen[bytes]:
    path = [os.path.abspath(folder) for folder in sys.path if folder and os.path.exists(folder)]
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _BOOT.format(path=path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
    )
    _started.append(process)
    return process


_started: list[subprocess.Popen[bytes]] = []
"""Those that this process started."""
