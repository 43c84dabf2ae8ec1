"""Where a call's output goes, and how it is looked at on its way."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING

from agentsched.cgroups.contract import ToolSpec
from agentsched.cgroups.pump import Capture
from agentsched.cgroups.relay import Pipes, Relay, Tap

if TYPE_CHECKING:
    from agentsched.cgroups.watching import Watch

OnOutput = Callable[[bytes], None]


class Outputs:
    """Of one call. ``argv`` is what to execute, with a tap where the command hides its output.
    ``start`` comes once it runs, ``finish`` last, whatever happened."""

    def __init__(
        self, spec: ToolSpec, argv: list[str], watch: Watch | None, on_output: OnOutput | None
    ) -> None:
        self.argv = argv
        self.pass_fds: tuple[int, ...] = ()
        self.stdout: int | None = None if spec.passthrough else subprocess.PIPE
        self.stderr: int | None = None if spec.passthrough else subprocess.STDOUT
        self._pipes: list[Pipes] = []
        look = watch.output if watch is not None else None
        if watch is not None and watch.heard and spec.tap and self._tap(watch):
            look = None  # what comes at the end would be read twice
        if spec.passthrough and watch is not None:
            relay = Relay(look)
            self._pipes.append(relay)
            self.stdout, self.stderr = relay.targets
        self.capture = Capture(spec.max_output_bytes, _both(look, on_output))

    def _tap(self, watch: Watch) -> bool:
        from agentsched.cgroups.progress.registry import is_known
        from agentsched.cgroups.tapping import tapped

        if tapped(self.argv, 0, is_known) is None:
            return False
        tap = Tap(watch.output)
        self._pipes.append(tap)
        self.argv = tapped(self.argv, tap.fd, is_known) or self.argv
        self.pass_fds = (tap.fd,)
        return True

    def start(self) -> None:
        """The command runs."""
        for pipes in self._pipes:
            pipes.start()

    def finish(self) -> None:
        """The command has ended, or never began; what is left of its output is passed on."""
        for pipes in self._pipes:
            pipes.finish()


def _both(look: OnOutput | None, on_output: OnOutput | None) -> OnOutput | None:
    if look is None or on_output is None:
        return look or on_output
    first, second = look, on_output

    def take(chunk: bytes) -> None:
        first(chunk)
        second(chunk)

    return take
