"""What a run looks like while it runs: one line a program, on a terminal or in a log file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

PLAIN_EVERY_S = 15.0
_COLOURS = {"running": "green", "tool": "cyan", "waiting": "yellow", "done": "dim", "failed": "red"}


@dataclass(frozen=True, slots=True)
class Line:
    """One program: calls done of those in its script, what it does now, tokens of KV held for it."""

    program: str
    task: str
    done: int
    total: int
    state: str
    held_tokens: int = 0


class Board:
    """Shows lines as they change. Without a terminal it prints one short line every few seconds."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self._begin_s = time.monotonic()
        self._next_plain_s = self._begin_s
        self._live = Live(console=console, refresh_per_second=4) if console.is_terminal else None

    def __enter__(self) -> Board:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, text: str) -> None:
        """Something that is about to be done."""
        if self._live is not None:
            self._live.update(Text(f"{self._title}: {text}"))
        else:
            self._console.print(f"{self._title}: {text}", highlight=False)

    def show(self, lines: Sequence[Line]) -> None:
        """The state now."""
        elapsed_s = time.monotonic() - self._begin_s
        if self._live is not None:
            self._live.update(self._table(lines, elapsed_s))
        elif time.monotonic() >= self._next_plain_s:
            self._next_plain_s = time.monotonic() + PLAIN_EVERY_S
            self._console.print(self._plain(lines, elapsed_s), highlight=False)

    def _plain(self, lines: Sequence[Line], elapsed_s: float) -> str:
        states = [line.state for line in lines]
        parts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(sorted(states)))
        calls = f"{sum(line.done for line in lines)} of {sum(line.total for line in lines)} calls"
        return f"{self._title}: {elapsed_s:4.0f} s, {calls}; {parts}"

    def _table(self, lines: Sequence[Line], elapsed_s: float) -> Table:
        table = Table(title=f"{self._title}, {elapsed_s:.0f} s", title_justify="left", box=None)
        for heading in ("program", "task", "calls", "", "now"):
            table.add_column(heading, no_wrap=True)
        table.add_column("KV held", justify="right")
        for line in lines:
            table.add_row(
                line.program,
                line.task,
                f"{line.done:>2}/{line.total}",
                ProgressBar(total=line.total, completed=line.done, width=24),
                Text(line.state, style=_COLOURS.get(line.state, "")),
                f"{line.held_tokens:,}",
            )
        return table
