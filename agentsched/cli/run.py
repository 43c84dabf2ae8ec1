"""``agentsched run`` as click reads it: its help, its mistakes, and what ``run_options`` does not take."""

from __future__ import annotations

from typing import IO, Any

import click

from agentsched.cgroups import SpecRefused
from agentsched.cli import run_options
from agentsched.cli.run_call import run_call


class Size(click.ParamType[int]):
    """Bytes, with K, M, G or T for powers of 1024."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            return run_options.size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _declared(option: run_options.Option) -> click.Option:
    types: dict[Any, Any] = {bytes: Size(), IO: click.File("w", lazy=False), bool: None}
    return click.Option(
        [option.flag, option.parameter],
        type=types.get(option.kind, option.kind),
        is_flag=True if option.kind is bool else None,
        multiple=option.many,
        envvar=option.variable or None,
        show_envvar=bool(option.variable),
        metavar=option.metavar or None,
        help=option.help,
    )


def _run(**asked: Any) -> int:
    """Run COMMAND in a control group of its own, with this process's stdin, stdout and stderr.

    The exit status is the command's (128 + number if a signal killed it), 124 if it timed out, 125 if
    the sandbox failed, 126 or 127 if the command cannot be executed or found. When the command ends,
    or this process is killed, everything that the command started is killed too.
    """
    try:
        return run_call(**asked)
    except SpecRefused as error:
        raise click.UsageError(str(error)) from error


run = click.Command(
    "run",
    callback=_run,
    help=_run.__doc__,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    params=[
        *map(_declared, run_options.OPTIONS),
        click.Argument(["command"], nargs=-1, required=True, type=click.UNPROCESSED),
    ],
)
