"""The configuration: one TOML file, flags above it, checked as a whole, and read again while the daemon runs.

Paths in the file are relative to its folder. A file that is wrong changes nothing: the error names the
file, the table, the key and what would be right.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import msgspec

from agentsched.daemon.settings import Config, Section

Tables = Mapping[str, Mapping[str, Any]]
"""Values by table and key."""


class ConfigError(ValueError):
    """The configuration cannot be used; the message says where and why."""


class Option(NamedTuple):
    """One key of the file. ``type`` is without its ``Meta``."""

    table: str
    key: str
    type: Any
    meta: msgspec.Meta
    default: Any

    @property
    def name(self) -> str:
        return f"{self.table}.{self.key}"

    @property
    def flag(self) -> str:
        named = (self.meta.extra or {}).get("flag")
        return named or "--" + re.sub("_s$", "", self.key).replace("_", "-")

    @property
    def live(self) -> bool:
        """Whether a reload changes it in the running daemon."""
        return bool((self.meta.extra or {}).get("live"))

    @property
    def choices(self) -> tuple[str, ...]:
        """The values that there are; empty where bounds say all."""
        listed: tuple[str, ...] = (self.meta.extra or {}).get("choices", ())
        return listed or tuple(value for value in get_args(self.type) if isinstance(value, str))


def options() -> Iterator[Option]:
    """Every key, in the order of the file."""
    for table, section in tables().items():
        hints = get_type_hints(section, include_extras=True)
        for field in msgspec.structs.fields(section):
            hint = hints[field.name]
            assert get_origin(hint) is Annotated, f"{table}.{field.name} is not described"
            kind, meta = get_args(hint)
            default = field.default
            yield Option(table, field.name, kind, meta, default)


def tables() -> dict[str, type[Section]]:
    """Each table's type, by name."""
    return {field.name: field.type for field in msgspec.structs.fields(Config)}


def load_config(path: Path | None, flags: Tables | None = None) -> Config:
    """What the file says (no file: the defaults), and above it what ``flags`` say. Raises ``ConfigError``."""
    values: dict[str, dict[str, Any]] = {}
    if path is not None:
        values = _read(path)
        _convert(values, path.resolve().parent, str(path))
    for table, own in (flags or {}).items():
        values[table] = {**values.get(table, {}), **own}
    return _convert(values, Path.cwd() if path is None else path.resolve().parent, "flags")


def restart_needed(old: Config, new: Config) -> list[str]:
    """Keys that differ and that a running daemon cannot change."""
    return [
        option.name
        for option in options()
        if not option.live
        and getattr(getattr(old, option.table), option.key) != getattr(getattr(new, option.table), option.key)
    ]


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for name, table in values.items():
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: {name} stands outside any table; tables are: {', '.join(tables())}")
    return values


def _convert(values: Mapping[str, Any], folder: Path, where: str) -> Config:
    def path_of(kind: type, value: Any) -> Any:
        if kind is Path and isinstance(value, str | Path):
            return folder / Path(value).expanduser()
        raise ValueError(f"{value!r} is not a {kind.__name__}")

    try:
        return msgspec.convert(values, Config, dec_hook=path_of)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {_plain(str(error))}") from error


def _plain(error: str) -> str:
    """A message of msgspec, with the key in front as it stands in the file."""
    text, _, at = error.partition(" - at `$.")
    place = at.rstrip("`")
    found = re.search("unknown field `(.*)`", text)
    if found is None:
        choices = next((o.choices for o in options() if o.name == place), ())
        listed = f"; there are: {', '.join(choices)}" if choices else ""
        return f"{place}: {text[:1].lower()}{text[1:]}{listed}" if place else text
    unknown = found.group(1)
    known = [o.key for o in options() if o.table == place] if place else list(tables())
    near = difflib.get_close_matches(unknown, known, 1)
    hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(known)}"
    return f"{place}.{unknown} is not known; {hint}" if place else f"[{unknown}] is no table; {hint}"
