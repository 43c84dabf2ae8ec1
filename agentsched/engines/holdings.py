"""What KV each program holds, counted as blocks come and go."""

from __future__ import annotations

from agentsched.core.events import Held
from agentsched.engines.prefix import Block


class Holdings:
    """Blocks by program, on the device and in host memory; a shared block counts for each owner.

    ``latest`` is where the context of a program's last call ended; forgotten when nothing is held.
    """

    def __init__(self, block_tokens: int) -> None:
        self.device: dict[str, int] = {}
        self.host: dict[str, int] = {}
        self.latest: dict[str, Block] = {}
        self._block_tokens = block_tokens
        self._changed: dict[str, None] = {}

    def count(self, program: str, *, device: int = 0, host: int = 0) -> None:
        for books, blocks in ((self.device, device), (self.host, host)):
            if not blocks:
                continue
            self._changed[program] = None
            held = books.get(program, 0) + blocks
            assert held >= 0, f"{program} gives back more than it has"
            if held:
                books[program] = held
            else:
                del books[program]
        if program not in self.device and program not in self.host:
            self.latest.pop(program, None)

    def all(self) -> tuple[Held, ...]:
        """What every program holds, in whole blocks."""
        return tuple(self._of(program) for program in sorted({*self.device, *self.host}))

    def take_changes(self) -> tuple[Held, ...]:
        """The same for programs whose holding changed since this was asked last."""
        changed = tuple(self._of(program) for program in sorted(self._changed))
        self._changed.clear()
        return changed

    def _of(self, program: str) -> Held:
        return Held(
            program=program,
            device_tokens=self.device.get(program, 0) * self._block_tokens,
            host_tokens=self.host.get(program, 0) * self._block_tokens,
        )
