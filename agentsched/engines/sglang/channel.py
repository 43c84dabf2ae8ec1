"""The plugin's end of the channel: a Unix socket that never makes SGLang's scheduler wait.

Frames are those of our engine processes (``wire.py``): the engine says ``Hello`` and then reports, the daemon
sends ``Orders``. One daemon at a time, the latest that connected. What it does not read in time costs it the
connection, and nothing else.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
from collections.abc import Sequence
from pathlib import Path

from agentsched.core.decisions import EngineOrder
from agentsched.core.events import StepReport
from agentsched.engines import wire
from agentsched.engines.sglang.place import UnsafePlace, check_peer, make_folder
from agentsched.engines.wire import WireError

_log = logging.getLogger(__name__)

_READ_BYTES = 1 << 18
MOST_UNREAD_BYTES = 8 * 1024 * 1024


class Channel:
    """Listens at ``path``. Making it raises ``OSError``, and ``UnsafePlace`` for a folder of others."""

    def __init__(self, path: Path, hello: wire.Hello) -> None:
        make_folder(path.parent)
        # Whoever made it is gone: this server has its port now.
        path.unlink(missing_ok=True)
        self._hello = hello
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        path.chmod(0o600)
        self._listener.listen(4)
        self._listener.setblocking(False)
        self._poller = select.poll()
        self._poller.register(self._listener, select.POLLIN)
        self._link: socket.socket | None = None
        self._frames = wire.Frames()
        self._unsent = bytearray()
        self._greeted = False

    @property
    def linked(self) -> bool:
        """Whether a daemon is there."""
        return self._link is not None

    def poll(self) -> list[EngineOrder]:
        """What daemons have sent by now. One that connected is ``new`` until it is greeted."""
        happened = dict(self._poller.poll(0))
        if not happened:
            return []
        orders: list[EngineOrder] = []
        if self._link is not None and (flags := happened.get(self._link.fileno())):
            if flags & ~select.POLLOUT:
                orders = self._receive()
            self._flush()
        # After what the last one had to say.
        if self._listener.fileno() in happened:
            self._accept()
        return orders

    @property
    def new(self) -> bool:
        """Whether a daemon is there that has not been greeted."""
        return self._link is not None and not self._greeted

    def greet(self, snapshot: StepReport) -> None:
        """Say hello to a new daemon, and what is held."""
        self._greeted = True
        self._send([self._hello, snapshot])

    def report(self, report: StepReport) -> None:
        """To the daemon, if there is one."""
        if self._link is not None:
            self._send([report])

    def close(self) -> None:
        self._drop()
        self._listener.close()

    def _accept(self) -> None:
        try:
            link, _ = self._listener.accept()
        except OSError as error:  # gone before it was let in
            _log.info("a daemon's connection came to nothing: %s", error)
            return
        try:
            check_peer(link)
        except UnsafePlace as error:
            _log.warning("refused a connection: %s", error)
            link.close()
            return
        self._drop()
        link.setblocking(False)
        self._link, self._frames, self._greeted = link, wire.Frames(), False
        self._poller.register(link, select.POLLIN)
        _log.info("a daemon is connected: KV is kept by its orders")

    def _receive(self) -> list[EngineOrder]:
        assert self._link is not None
        try:
            data = self._link.recv(_READ_BYTES)
        except BlockingIOError:
            return []
        except OSError as error:
            return self._lose(str(error))
        if not data:
            return self._lose("it closed the connection")
        try:
            messages = self._frames.for_engine(data)
        except WireError as error:
            return self._lose(str(error))
        orders: list[EngineOrder] = []
        for message in messages:
            if not isinstance(message, wire.Orders):
                return self._lose(f"it sent {type(message).__name__}, which is not for servers")
            orders += message.orders
        return orders

    def _lose(self, why: str) -> list[EngineOrder]:
        _log.warning("the daemon is gone (%s): what it ordered ends by itself", why)
        self._drop()
        return []

    def _drop(self) -> None:
        if self._link is not None:
            self._poller.unregister(self._link)
            self._link.close()
        self._link = None
        self._unsent.clear()

    def _send(self, messages: Sequence[wire.Hello | StepReport]) -> None:
        self._unsent += wire.encode(messages)
        self._flush()

    def _flush(self) -> None:
        if self._link is None:
            return
        try:
            with contextlib.suppress(BlockingIOError):
                while self._unsent:
                    del self._unsent[: self._link.send(self._unsent)]
        except OSError as error:
            self._lose(str(error))
            return
        if len(self._unsent) > MOST_UNREAD_BYTES:
            self._lose("it does not read")
            return
        waiting = select.POLLOUT if self._unsent else 0
        self._poller.modify(self._link, select.POLLIN | waiting)
