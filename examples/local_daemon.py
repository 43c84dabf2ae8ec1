"""Which daemon the examples speak to: the one at AGENTSCHED_URL, or, so that they run anywhere, one in this
process. That one's model is simulated: it calls the tools that the example names, and then says that it is
done. It tells what it sees."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from agentsched.core import events as ev
from agentsched.sdk.reporting import reporter
from agentsched.workloads.acting import ACTS, ActingMind
from agentsched.workloads.acting_daemon import acting_daemon

MODEL = os.environ.get("AGENTSCHED_MODEL", "simulated")


@contextmanager
def local_daemon(
    acts: dict[str, dict[str, Any]], *, delegate: tuple[str, dict[str, Any]] | None = None, turns: int = 1
) -> Iterator[str]:
    """Gives the daemon's URL, which the SDK then reports to as well.

    acts: what the simulated model calls each tool with, in one answer, for so many turns; delegate: what it
    calls before that, where it is offered.
    """
    if url := os.environ.get("AGENTSCHED_URL"):
        yield url
        return
    known = ACTS | {name: (arguments,) for name, arguments in acts.items()}
    with acting_daemon(ActingMind(turns, acts=known, delegate=delegate), watchers=[Story()]) as url:
        os.environ["AGENTSCHED_URL"] = url
        yield url
        reporter().flush()


class Story:
    """Prints what programs and tools do."""

    def observe(self, now: float, event: ev.AnyEvent, decided: Sequence[Any]) -> None:
        match event:
            case ev.ProgramOpened():
                of = f", a child of {event.parent}" if event.parent else ""
                self._say(event.program, f"begins{of}")
            case ev.CallArrived():
                self._say(event.program, "calls the model")
            case ev.ToolStarted():
                self._say(event.program, f"runs the tool {event.tool}")
            case ev.ToolFinished():
                self._say(event.program, f"its tool took {event.wall_s:.2f} s, status {event.exit_status}")
            case ev.ProgramClosed():
                self._say(event.program, "has ended")

    def _say(self, program: str, text: str) -> None:
        sys.stderr.write(f"  daemon | {program}: {text}\n")  # apart from what agents print
