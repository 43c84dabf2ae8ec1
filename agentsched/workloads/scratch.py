"""Scratch folders of runs: gone when the run ends, and swept by the next one if it was killed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agentsched.cgroups import names

_PREFIX = "agentsched-run-"


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """A new temporary folder, removed at the end. Also removes those of processes that were killed."""
    for left in abandoned():
        shutil.rmtree(left, ignore_errors=True)
    # The name says whose it is in the words that sandboxes use: safe against pids used again.
    prefix = f"{_PREFIX}{names.new_instance()}-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as place:
        yield Path(place)


def abandoned() -> list[Path]:
    """This user's scratch folders whose process is dead."""
    found = []
    for place in sorted(Path(tempfile.gettempdir()).glob(f"{_PREFIX}*")):
        instance = place.name.removeprefix(_PREFIX).rpartition("-")[0]
        with contextlib.suppress(FileNotFoundError):
            ours = place.lstat().st_uid == os.getuid()
            if ours and names.is_instance(instance) and names.is_alive(instance) is False:
                found.append(place)
    return found
