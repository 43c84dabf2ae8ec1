"""The options of ``agentsched run``, and the plain way to read them.

Importing click takes as long as all else that the command does before it starts the other one. So what is
written plainly (``--name value``, ``--name=value``, ``--switch``, then the command) is read here; whatever
else there is, help and mistakes among it, is left to click, which is told of the same options.
"""

from __future__ import annotations

import os
import sys
from typing import IO, Any, NamedTuple

Asked = dict[str, Any]


class Option(NamedTuple):
    """``kind``: the type of its value, ``bytes`` standing for a size; ``bool`` takes none. ``variable``: of
    the environment, where it is not said."""

    flag: str
    kind: type
    help: str
    variable: str = ""
    metavar: str = ""
    many: bool = False

    @property
    def parameter(self) -> str:
        return self.flag[2:].replace("-", "_")


OPTIONS = (
    Option("--hint", str, "As memory:high,cpu:low or time:90s.", "AGENT_RESOURCE_HINT"),
    Option("--memory", bytes, "Memory limit of the whole tree, as 512M."),
    Option("--cpu", float, "CPU limit in cores, as 0.5."),
    Option("--pids", int, "Limit of processes and threads."),
    Option("--timeout", float, "Kill the whole tree after S seconds (status 124).", metavar="S"),
    Option("--program", str, "Whose tool call.", "AGENTSCHED_PROGRAM"),
    Option("--tool-call", str, "Id of the tool call.", "AGENTSCHED_TOOL_CALL"),
    Option("--priority", int, "From 0 to 9, against others where memory is short."),
    Option("--nesting", bool, "COMMAND may make control groups and mounts of its own."),
    Option("--isolate", bool, "COMMAND's writes are kept apart, bounded, and thrown away."),
    Option("--disk", bytes, "With --isolate: how much it may write [1G]."),
    Option("--writable", str, "With --isolate: changed for real. May be repeated.", metavar="DIR", many=True),
    Option("--no-network", bool, "With --isolate: it has no network."),
    Option("--daemon", str, "Report to it.", "AGENTSCHED_URL", "URL"),
    Option("--usage", bool, "One line on stderr about what was used."),
    Option("--json", IO, "Write the result there (- is stdout).", metavar="FILE"),
    Option(
        "--feedback",
        IO,
        "Write there, as JSON, what the call used, why it was slowed or ended, and what to try.",
        "AGENTSCHED_FEEDBACK",
        "FILE",
    ),
)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size(text: str) -> int:
    """Bytes, with K, M, G or T for powers of 1024. Raises ``ValueError``."""
    plain = text.strip().upper().removesuffix("B").removesuffix("I")
    number, unit = (plain[:-1], plain[-1]) if plain[-1:] in _UNITS and plain else (plain, "")
    try:
        return int(float(number) * _UNITS[unit])
    except (ValueError, OverflowError):
        raise ValueError(f"{text!r} is not a size such as 512M or 2G") from None


def parse(words: list[str]) -> Asked | None:
    """The values of all options and the command; None for click to read."""
    flags = {option.flag: option for option in OPTIONS}
    told: dict[str, list[str]] = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word == "--":
            break
        flag, equals, value = word.partition("=")
        option = flags.get(flag)
        if option is None or (option.kind is bool and equals):
            return None
        if option.kind is not bool and not equals:
            if not rest:
                return None
            value = rest.pop(0)
        told.setdefault(flag, []).append(value)
    try:
        asked = {option.parameter: _value(option, told.get(option.flag)) for option in OPTIONS}
    except (ValueError, OSError):
        return None
    return {**asked, "command": tuple(rest)} if rest else None


def _value(option: Option, told: list[str] | None) -> Any:
    if option.kind is bool:
        return told is not None
    if option.many:
        return tuple(told or ())
    text = told[-1] if told else os.environ.get(option.variable, "") if option.variable else ""
    if not told and not text:
        return None
    if option.kind is bytes:
        return size(text)
    if option.kind is IO:
        return sys.stdout if text == "-" else open(text, "w")
    return option.kind(text)
