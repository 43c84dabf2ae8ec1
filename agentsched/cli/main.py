"""The entry of the command ``agentsched``: turns what went wrong into one line and an exit status.

Exit statuses: 0 well, 1 failed, 2 wrong usage, 130 interrupted. A subcommand that returns an integer
sets the status itself (``agentsched run`` passes on that of the command that it ran).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agentsched.cli.run_options import Asked

EXTRAS = {
    "jinja2": "engine",
    "numpy": "engine",
    "safetensors": "engine",
    "tokenizers": "engine",
    "torch": "engine",
    "transformers": "engine",
    "minisweagent": "demo",
    "plotly": "demo",
    "opentelemetry": "otel",
    "matplotlib": "bench",
    "scipy": "bench",
}


def missing_package(error: ModuleNotFoundError, args: Sequence[str]) -> str | None:
    """How to install the optional package that ``error`` misses; None if it is not one of ours."""
    package = (error.name or "").split(".")[0]
    if package == "bcc":
        return "this needs bcc: install the package python3-bpfcc of Debian or Ubuntu (not from PyPI)"
    if package not in EXTRAS:
        return None
    # the extra "demo" brings "engine" as well: naming the smaller one would take two attempts
    extra = {"demo": "demo"}.get(args[0] if args else "", EXTRAS[package])
    return f"this needs the package '{package}': pip install 'agentsched[{extra}]'"


def main(args: list[str] | None = None) -> None:
    """Run the command line ``args`` (default: the process's own) and exit with its status."""
    words = sys.argv[1:] if args is None else args
    if words[:1] == ["run"]:
        from agentsched.cli import run_options

        asked = run_options.parse(words[1:])
        status = _run_plainly(asked) if asked is not None else None
        if status is not None:
            sys.exit(status)
    _main_of_click(words)


def _run_plainly(asked: Asked) -> int | None:
    """``agentsched run`` without click, which would be half of its time; None: click is to say why not."""
    from agentsched.cgroups import SpecRefused
    from agentsched.cli.run_call import run_call

    try:
        return run_call(**asked)
    except SpecRefused:
        return None
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


def _main_of_click(words: list[str]) -> None:
    """Everything else; exits."""
    import click

    from agentsched.cli.commands import cli

    try:
        result = cli.main(args=words, prog_name="agentsched", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except ModuleNotFoundError as error:
        hint = missing_package(error, words)
        if hint is None:
            raise
        click.echo(f"Error: {hint}", err=True)
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)
