"""Shells that announce themselves: for machines where commands are only seen by looking now and then.

A folder of stand-ins for shells goes before all others in the agent's PATH, and one of them is its SHELL. A
stand-in tells a socket what it is about to run, waits until it is in a leaf of its own, and becomes the real
shell. A shell within a command (whose processes carry a mark) becomes the real one at once. Should nobody
answer, it does so all the same. Shells that are started by their full path are not caught.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import socket
import struct
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping

SHELLS = ("sh", "bash", "dash", "zsh")
MARK = "AGENTSCHED_IN_COMMAND"

_WAIT_S = 5.0
_MOST_BYTES = 1 << 22

_STAND_IN = """#!/bin/sh
[ -z "${{{mark}:-}}" ] || exec {shell} "$@"
exec {python} -I -S -c {script} {place} {shell} "$@"
"""

# what does not answer, and what cannot be sent, must not keep the command from running
_ANNOUNCE = """
import json, os, socket, sys
place, shell, *words = sys.argv[1:]
try:
    with socket.socket(socket.AF_UNIX) as wire:
        wire.settimeout({wait_s})
        wire.connect(place)
        wire.sendall(json.dumps([shell, *words]).encode() + b"\\n")
        wire.recv(1)
except OSError:
    pass
os.environ[{mark!r}] = "1"
os.execv(shell, [os.path.basename(shell), *words])
"""


class Shims:
    """The folder and the socket. ``claimed`` is called with each announced process and its words, from a
    thread for each; the shell goes on when it returns."""

    def __init__(self, claimed: Callable[[int, tuple[str, ...]], None]) -> None:
        self._claimed = claimed
        self._folder = tempfile.mkdtemp(prefix="agentsched-shells-")
        self._shells = os.path.join(self._folder, "bin")
        os.mkdir(self._shells)
        place = os.path.join(self._folder, "socket")
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(place)
        self._server.listen(64)
        self.names = [name for name in SHELLS if self._make(name, place)]
        threading.Thread(target=self._serve, name="shells", daemon=True).start()

    def _make(self, name: str, place: str) -> bool:
        real = shutil.which(name)
        if real is None:
            return False
        stand_in = _STAND_IN.format(
            mark=MARK,
            shell=shlex.quote(os.path.realpath(real) if name != "sh" else real),
            python=shlex.quote(sys.executable),
            script=shlex.quote(_ANNOUNCE.format(wait_s=_WAIT_S, mark=MARK)),
            place=shlex.quote(place),
        )
        path = os.path.join(self._shells, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(stand_in)
        os.chmod(path, 0o755)
        return True

    def environment(self, variables: Mapping[str, str]) -> dict[str, str]:
        """The agent's, with the stand-ins first."""
        path = f"{self._shells}{os.pathsep}{variables.get('PATH', os.defpath)}"
        changed = {name: value for name, value in variables.items() if name != MARK} | {"PATH": path}
        own = os.path.basename(variables.get("SHELL", "")) or "bash"
        if own in self.names:
            changed["SHELL"] = os.path.join(self._shells, own)
        return changed

    def close(self) -> None:
        """Shells that come later run as they are."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self) -> None:
        while True:
            try:
                wire, _ = self._server.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._answer, args=(wire,), name="shell", daemon=True).start()

    def _answer(self, wire: socket.socket) -> None:
        with wire:
            wire.settimeout(_WAIT_S)
            try:
                with wire.makefile("rb") as file:
                    words = json.loads(file.readline(_MOST_BYTES))
                peer = wire.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
                self._claimed(struct.unpack("3i", peer)[0], tuple(str(word) for word in words))
                wire.sendall(b"\n")
            except (OSError, ValueError):
                return  # the shell waits no longer, and goes on
