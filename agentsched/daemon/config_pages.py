"""The configuration explained: a reference page, and a file to begin with."""

from __future__ import annotations

from typing import Any

from agentsched.daemon.config import Option, options, tables

REFERENCE = """# Configuration

`agentsched serve --config agentsched.toml` reads one TOML file; a flag of the command line stands above what
the file says. `agentsched config check FILE` says whether a file is right, `agentsched config show FILE` what
would hold with it, and `agentsched config new` prints a file with every key at its default. Paths are
relative to the file's folder.

`kill -HUP` (or `systemctl reload`) reads the file again. What *changes* on reload, by the tables below, holds
from then on, also for calls that are waiting; anything else is named in the log, and keeps its value until a
restart. A file that is wrong changes nothing.

This page is made from the program's own declarations (`agentsched config reference`)."""


def reference() -> str:
    """The reference page, Markdown: every key with its flag, default and meaning."""
    lines = [REFERENCE]
    for table, section in tables().items():
        lines += [f"\n## `[{table}]`\n", f"{section.__doc__}\n"]
        lines += ["| key | flag | default | on reload | meaning |", "|---|---|---|---|---|"]
        for option in (each for each in options() if each.table == table):
            reload = "changes" if option.live else "needs a restart"
            meaning = f"{option.meta.description} {_bounds(option)}".strip()
            lines.append(
                f"| `{option.key}` | `{option.flag}` | {_toml(option.default)} | {reload} | {meaning} |"
            )
    return "\n".join(lines) + "\n"


def _bounds(option: Option) -> str:
    if option.choices:
        return f"One of: {', '.join(f'`{choice}`' for choice in option.choices)}."
    meta = option.meta
    signs = ((meta.gt, "> {}"), (meta.ge, ">= {}"), (meta.lt, "< {}"), (meta.le, "<= {}"))
    said = [sign.format(f"{bound:g}") for bound, sign in signs if bound is not None]
    return f"({', '.join(said)})" if said else ""


def _toml(value: Any) -> str:
    match value:
        case None:
            return "none"
        case bool():
            return f"`{str(value).lower()}`"
        case frozenset() | tuple():
            return "`[]`"
        case str():
            return f'`"{value}"`'
        case _:
            return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def template() -> str:
    """A file with every key at its default, each with its meaning as a comment."""
    lines: list[str] = []
    for table, section in tables().items():
        lines += [f"# {section.__doc__}", f"[{table}]"]
        for option in (each for each in options() if each.table == table):
            value = _toml(option.default).strip("`")
            shown = f"{option.key} = {value}" if option.default is not None else f"# {option.key} = ..."
            lines += [f"# {option.meta.description} {_bounds(option)}".rstrip().replace("`", ""), shown]
        lines.append("")
    return "\n".join(lines)
