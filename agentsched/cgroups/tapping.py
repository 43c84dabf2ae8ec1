"""Output that a command hides from its own end: ``pytest 2>&1 | tail -8`` prints nothing until it is over.

Agents write that more often than not. So the text of a shell command gets a ``tee`` between a program
whose progress can be read and the filter behind it, which copies what passes into a pipe of the sandbox.
What the command prints and its exit status stay as they are. Text that could tell the difference
(``PIPESTATUS``), or that this reading of shell text is not sure about, is left alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentsched.cgroups.commands import Words, is_script, pipes

FILTERS = frozenset(
    {"tail", "head", "grep", "egrep", "fgrep", "sed", "awk", "cut", "sort", "uniq", "wc", "cat"}
)
_DOUBTFUL = ("PIPESTATUS", "pipefail", "`", "case ", "((", "[[")


def tapped(argv: Sequence[str], fd: int, readable: Callable[[Words], bool]) -> list[str] | None:
    """A shell's script with a tap into descriptor ``fd`` behind its last readable program that a filter
    hides; None if there is none, or its text is doubtful. ``readable``: of a program's words."""
    if not argv or not is_script(argv) or any(mark in argv[2] for mark in _DOUBTFUL):
        return None
    script = argv[2]
    for at, before, after in reversed(pipes(script)):
        if after in FILTERS and before and readable(before):
            script = f"{script[:at]}| tee /dev/fd/{fd} 2>/dev/null {script[at:]}"
            return [*argv[:2], script, *argv[3:]]
    return None
