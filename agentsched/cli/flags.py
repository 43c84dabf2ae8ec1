"""Flags of ``agentsched serve``, made from the keys of the configuration file."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

import click
from click.core import ParameterSource

from agentsched.daemon.config import Option, Tables, options

F = TypeVar("F", bound=Callable[..., Any])

GIVEN = (ParameterSource.COMMANDLINE, ParameterSource.ENVIRONMENT)


def config_flags(command: F) -> F:
    """Decorate a command with a flag for each key; they arrive as keyword arguments, by ``parameter``."""
    for option in reversed(list(options())):
        command = click.option(
            _switch(option.flag) if option.type is bool else option.flag,
            parameter(option),
            type=_type(option),
            default=None,
            multiple=_many(option),
            help=_help(option),
        )(command)
    return command


def parameter(option: Option) -> str:
    return option.name.replace(".", "_")


def given(ctx: click.Context) -> Tables:
    """What the command line says, by table and key."""
    values: dict[str, dict[str, Any]] = {}
    for option in options():
        if ctx.get_parameter_source(parameter(option)) in GIVEN:
            value = ctx.params[parameter(option)]
            values.setdefault(option.table, {})[option.key] = (
                Path.cwd() / value if isinstance(value, Path) else value
            )
    return values


def _switch(flag: str) -> str:
    return flag if "/" in flag else f"{flag}/--no-{flag[2:]}"


def _many(option: Option) -> bool:
    return get_origin(option.type) in (frozenset, tuple, list)


def _type(option: Option) -> click.ParamType[Any] | type | None:
    meta, kind = option.meta, option.type
    if option.choices:
        return click.Choice(option.choices)
    if get_origin(kind) is UnionType:
        kind = get_args(kind)[0]
    low, open_below = (meta.gt, True) if meta.gt is not None else (meta.ge, False)
    if kind is bool:
        return None
    if kind is Path:
        return click.Path(path_type=Path)
    if kind is int:
        return click.IntRange(_whole(low), _whole(meta.le), min_open=open_below)
    if kind is float:
        return click.FloatRange(low, meta.le, min_open=open_below)
    return str


def _whole(bound: float | None) -> int | None:
    return None if bound is None else int(bound)


def _help(option: Option) -> str:
    default = option.default
    if default is None or (isinstance(default, bool | Collection) and not default):
        return f"{option.meta.description}" + ("  May be repeated." if _many(option) else "")
    return (
        f"{option.meta.description}  [default: {default:g}]"
        if isinstance(default, float)
        else (f"{option.meta.description}  [default: {default}]")
    )
