"""What can be asked of a replay (``_replay.Plan``) on the command line."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import click

from agentsched.workloads.bench._replay import Plan

Command = Callable[..., Any]


def plan_options(plan: Plan) -> Callable[[Command], Command]:
    """Adds the options, which come by the names of the plan's fields; its values are the defaults."""
    options = [
        click.option(
            "--trace", default=plan.trace, show_default=True, help="As `agentsched simulate` takes it."
        ),
        click.option("--programs", type=click.IntRange(1), default=plan.programs, show_default=True),
        click.option(
            "--concurrency",
            type=click.IntRange(1),
            default=plan.concurrency,
            show_default=True,
            help="Live at once.",
        ),
        click.option(
            "--pressure",
            type=click.FloatRange(0.1),
            default=plan.pressure,
            show_default=True,
            help="Sets the KV.",
        ),
        click.option(
            "--token-divisor",
            type=click.FloatRange(1e-3),
            default=plan.token_divisor,
            show_default=True,
            help="The trace's tokens are divided by it.",
        ),
        click.option(
            "--gap-divisor",
            type=click.FloatRange(1e-3),
            default=plan.gap_divisor,
            show_default=True,
            help="And its gaps.",
        ),
        click.option("--repeats", type=click.IntRange(1), default=plan.repeats, show_default=True),
    ]
    return lambda command: reduce(lambda made, option: option(made), reversed(options), command)
