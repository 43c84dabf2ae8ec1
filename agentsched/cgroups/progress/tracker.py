"""The share done of one tool call, from its output as it passes.

A command of several programs that are known (``pip install . && pytest``) has a stage for each, and
each stage the same share of the whole; a stage is over when its tool says so, or the next one tells. The
share never falls within a call. Readers that fail are said once in the log and not asked again.

Tools begin with what they do not count (imports, collection), so a share of work is no share of time: where
the begin of the work is seen, the share of time is told, which is what forecasts extrapolate.

Reading has a budget of bytes, so that it costs next to nothing beside any tool: ``FREE_BYTES`` at
once and ``BYTES_PER_S`` more. Of what exceeds it whole windows are left out, and with them results
that would have been counted: the share is then too small until the tool says a percentage again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from agentsched.cgroups.commands import Words
from agentsched.cgroups.progress.reading import Lines, Reader, plain
from agentsched.cgroups.progress.registry import readers_for, unknown

FREE_BYTES = 256 << 10
BYTES_PER_S = 128 << 10
LINE_BYTES = 200
"""What a line costs of the budget beside its length."""

WINDOW_BYTES = 32 << 10
"""Once the budget is used up, reading goes on when there is so much of it again."""

PACE_KNOWN = 0.25
"""Share of the time that work must have taken for its pace to be believed."""

_log = logging.getLogger(__name__)


class Told(NamedTuple):
    """The share of the call's time that has passed, by what its output says, and what that was."""

    done_fraction: float
    source: str


class Tracker:
    """Reads one call's output. ``known``: what the same command counted before, by reader's name."""

    def __init__(self, programs: Sequence[Words], known: Mapping[str, int] | None = None) -> None:
        expected = (known or {}).get

        def number(name: str) -> int:
            return expected(name, 0)

        self._stages = [found for words in programs if (found := readers_for(words, number))]
        self._known_command = bool(self._stages)
        if not self._stages:
            self._stages = [unknown(number)]
        self._stage = 0
        self._chosen: Reader | None = None
        self._lines = Lines()
        self._told: Told | None = None
        self._spent = 0
        self._skipping = False
        self._zero_s: float | None = None
        self._work_began: float | None = None

    @property
    def environment(self) -> dict[str, str]:
        """Variables by which the tools of a known command do not hold their output back."""
        readers = [reader for stage in self._stages for reader in stage] if self._known_command else []
        return {name: value for reader in readers for name, value in reader.environment.items()}

    @property
    def full(self) -> bool:
        """No output is read for now: the budget is used up."""
        return self._skipping

    def feed(self, chunk: bytes, elapsed_s: float) -> None:
        """Output that came ``elapsed_s`` seconds after the start."""
        left = FREE_BYTES + int(BYTES_PER_S * elapsed_s) - self._spent
        if self._skipping:
            if left < WINDOW_BYTES:
                return
            # what stands before the first line's end is the rest of one whose beginning is lost
            _, end, chunk = chunk.partition(b"\n")
            if not end:
                return
            self._skipping = False
        if len(chunk) > left:
            chunk, self._skipping = chunk[: max(0, left)], True
        before = self._spent
        for line, whole in self._lines.feed(chunk):
            self._spent += len(line) + LINE_BYTES
            if self._spent - before > left:
                self._skipping = True
                break
            self._give(plain(line), whole)
        if self._skipping:
            self._lines.drop()
        elif self._work_began is None:
            self._look_for_begin(elapsed_s)

    def _look_for_begin(self, elapsed_s: float) -> None:
        """Work begins when the last was said before the first unit was done."""
        found = self._ask(self._stages[0], plain(self._lines.unfinished), elapsed_s)
        if found is not None and found[1] <= 0:
            self._zero_s = elapsed_s
        elif found is not None:
            self._work_began = self._zero_s if self._zero_s is not None else -1.0

    def _give(self, line: bytes, whole: bool) -> None:
        for reader in self._readers():
            self._safely(reader, line, whole)
        current = self._chosen or self._stages[self._stage][0]
        if current.over and self._stage + 1 < len(self._stages):
            self._stage, self._chosen = self._stage + 1, None

    def _readers(self) -> Iterator[Reader]:
        """Those of the present stage, and of the next one, if it reads otherwise."""
        yield from self._stages[self._stage]
        if (after := self._next()) is not None:
            yield from after

    def _next(self) -> list[Reader] | None:
        """The next stage's readers, unless the present ones would take its lines for their own."""
        if self._stage + 1 >= len(self._stages):
            return None
        now, after = self._stages[self._stage], self._stages[self._stage + 1]
        return None if {type(reader) for reader in now} & {type(reader) for reader in after} else after

    def _safely(self, reader: Reader, line: bytes, whole: bool) -> None:
        try:
            (reader.line if whole else reader.piece)(line)
        except Exception:
            self._dismiss(reader)

    def _dismiss(self, reader: Reader) -> None:
        _log.exception("the progress reader %s failed and is not asked again", type(reader).__name__)
        for stage in self._stages:
            if reader in stage:
                stage[stage.index(reader)] = Reader()
        if self._chosen is reader:
            self._chosen = None

    def told(self, elapsed_s: float) -> Told | None:
        """The share done by now; None while there is no evidence."""
        unfinished = plain(self._lines.unfinished)
        if (after := self._next()) is not None and self._ask(after, unfinished, elapsed_s) is not None:
            self._stage, self._chosen = self._stage + 1, None
        found = self._ask(self._stages[self._stage], unfinished, elapsed_s)
        if found is None or found[1] <= 0:
            if found is not None and self._work_began is None:
                self._zero_s = elapsed_s
            return self._stage_began() if self._stage else self._told
        self._chosen, fraction = found
        if len(self._stages) == 1:
            fraction = self._of_time(fraction, elapsed_s)
        return self._raise_to((self._stage + fraction) / len(self._stages), self._chosen.source)

    def _of_time(self, fraction: float, elapsed_s: float) -> float:
        """The share of the time, where the work was seen to begin: the rest of it goes on as it went since
        then, and what came before (imports, collection) does not come again. While the work is young
        beside what came before, its pace says little, and the rest is taken to last as long as all did."""
        began_s = self._work_began
        if began_s is None or began_s <= 0 or elapsed_s <= began_s:
            return fraction
        worked_s = elapsed_s - began_s
        known = min(1.0, worked_s / (PACE_KNOWN * elapsed_s))
        rest_s = known * worked_s * (1 - fraction) / fraction + (1 - known) * elapsed_s
        return elapsed_s / (elapsed_s + rest_s) if fraction < 1 else 1.0

    def _stage_began(self) -> Told:
        return self._raise_to(self._stage / len(self._stages), "earlier programs of the command ended")

    def _raise_to(self, fraction: float, source: str) -> Told:
        if self._told is None or fraction > self._told.done_fraction:
            self._told = Told(fraction, source)
        return self._told

    def _ask(
        self, readers: Sequence[Reader], unfinished: bytes, elapsed_s: float
    ) -> tuple[Reader, float] | None:
        ordered = [self._chosen] if self._chosen is not None and self._chosen in readers else list(readers)
        for reader in ordered:
            try:
                fraction = reader.fraction(unfinished, elapsed_s)
            except Exception:
                self._dismiss(reader)
                continue
            if fraction is not None and 0 <= fraction <= 1:
                return reader, fraction
        return None

    def counted(self) -> dict[str, int]:
        """What the readers counted to the end, by name: ``known`` of the next run of this command."""
        return {
            reader.name: reader.counted for stage in self._stages for reader in stage if reader.counted > 0
        }
