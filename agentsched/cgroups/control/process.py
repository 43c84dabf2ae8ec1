"""The controller as a process: ``main`` is what a runtime starts (``client``)."""

from __future__ import annotations

import logging
import os
import signal
import sys

import msgspec

from agentsched.cgroups import names
from agentsched.cgroups.control import messages as ms
from agentsched.cgroups.control.hands import Hands
from agentsched.cgroups.control.server import LINGER_S, Server
from agentsched.cgroups.control.sources import open_source
from agentsched.cgroups.guard import Guard
from agentsched.core.tool_control import Terms

_log = logging.getLogger("agentsched.control")

_IGNORED = ("SIGINT", "SIGHUP", "SIGQUIT", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGPIPE")
_NICENESS = -10
_OOM_SCORE = "-900"


def main() -> None:
    """Be the controller, unless there is one. Settings come from the environment of the runtime that was
    first: see docs/sandbox.md."""
    for name in _IGNORED:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    environment = dict(os.environ)
    if log := environment.get("AGENTSCHED_CONTROL_LOG"):
        logging.basicConfig(filename=log, level=logging.INFO, format="%(created).6f %(message)s")
    listener = ms.new_socket()
    try:
        listener.bind(ms.address())
    except OSError:
        return  # another one was faster
    listener.listen(128)
    listener.setblocking(False)
    _come_first()
    guard = Guard(names.new_instance())
    guard.watch([])
    sources = [open_source(environment.get("AGENTSCHED_CONTROL_SOURCE", ""))]
    server = Server(listener, Hands(guard), sources, terms_of(environment))
    try:
        server.serve(float(environment.get("AGENTSCHED_CONTROL_LINGER_S", LINGER_S)))
    finally:
        server.close()
        guard.close(wait=False)


def terms_of(environment: dict[str, str]) -> Terms:
    """The terms with what ``AGENTSCHED_CONTROL_TERMS`` changes, as JSON. Raises ``ValueError``."""
    text = environment.get("AGENTSCHED_CONTROL_TERMS")
    try:
        return msgspec.json.decode(text, type=Terms) if text else Terms()
    except msgspec.DecodeError as error:
        raise ValueError(f"AGENTSCHED_CONTROL_TERMS: {error}") from error


def _come_first() -> None:
    """Ask for CPU time at once, and to be killed last: it is needed when the machine is short of both."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write(_OOM_SCORE)
    except OSError as error:
        _log.info("no precedence over other processes: %s", error)  # needs rights that not everybody has
