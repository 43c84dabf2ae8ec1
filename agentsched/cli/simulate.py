"""``agentsched simulate``: traces through policies, in virtual time."""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec

from agentsched import __version__
from agentsched.core import POLICY_NAMES
from agentsched.core.log import Entry, Header, encode

if TYPE_CHECKING:
    from agentsched.workloads.simulate import Options
    from agentsched.workloads.summary import Summary

TELL_EVERY_S = 1.0

# \b keeps click from rewrapping the paragraph that follows
EPILOG = """\b
TRACE is a file, a part of one, or a generator (docs/traces.md):
  sessions.jsonl.gz           all of it
  FILE#tool-paced             sessions whose gaps are tools alone
  FILE#source=A,B             sessions of these sources
  gen:saga-swe?programs=200   made from published figures, seeded

\b
Examples:
  # closed loop: 24 programs at once, every program of the trace once, two policies
  agentsched simulate gen:saga-swe --policy fcfs-lru,agentsched \\
    --kv-tokens 450000 --concurrency 24
  # open loop: 200 programs an hour for 2 hours in bursts; summaries as JSON
  agentsched simulate gen:continuum-swe --kv-tokens 450000 \\
    --rate 200 --hours 2 --arrivals gamma:3 --json summaries.json
  # 64 engines, 2,000 programs, and a log that 'agentsched graph' reads
  agentsched simulate gen:saga-web --kv-tokens 450000 --engines 64 \\
    --concurrency 640 --programs 2000 --log run.jsonl

docs/simulate.md tells what is simulated and what the figures mean.
"""


@click.command(epilog=EPILOG)
@click.argument("traces", metavar="TRACE...", nargs=-1, required=True)
@click.option(
    "--policy",
    "policies",
    metavar="NAME[,NAME]",
    default="fcfs-lru,agentsched",
    show_default=True,
    help=f"Policies to play, on the same programs, of {', '.join(POLICY_NAMES)}, clairvoyant.",
)
@click.option(
    "--profile",
    default="llama-3.1-8b-h100",
    show_default=True,
    help="What computing costs: model and device by name, or a file that `agentsched fit` wrote.",
)
@click.option("--kv-tokens", type=int, required=True, help="KV capacity of each engine.")
@click.option("--host-tokens", type=int, default=0, show_default=True, help="Host tier of each engine.")
@click.option("--engines", type=int, default=1, show_default=True, help="Engines, all alike.")
@click.option("--concurrency", type=int, help="Closed loop: so many programs at once, on all engines.")
@click.option("--rate", type=float, help="Open loop: so many programs arrive an hour.")
@click.option(
    "--arrivals",
    metavar="KIND",
    default="poisson",
    show_default=True,
    help="With --rate: poisson, gamma:CV (bursts if CV is above 1), day (office hours from midnight on).",
)
@click.option("--hours", type=float, help="Virtual time in which programs start.")
@click.option("--programs", type=int, help="Draw so many, with replacement.  [default: each once]")
@click.option("--sharing/--no-sharing", default=True, show_default=True, help="Programs share prompt heads.")
@click.option("--deadline-factor", type=float, help="Each program should end within F times its time alone.")
@click.option("--tool-hosts", type=int, default=1, show_default=True, help="Hosts on which tools run.")
@click.option("--tool-cores", type=float, help="Cores of each of these hosts.  [default: enough]")
@click.option("--tool-memory-gb", type=float, help="Memory of each of these hosts, GB.  [default: enough]")
@click.option("--control-delay-ms", type=float, default=0.0, help="Delay of orders and reports.")
@click.option("--lost-orders", type=float, default=0.0, help="Share of orders that never arrive.")
@click.option("--told-progress", type=float, default=0.0, help="Share of tools that tell of their progress.")
@click.option(
    "--chunk-tokens", type=int, default=2048, show_default=True, help="Prefilled at most in a step."
)
@click.option("--max-running", type=int, default=256, show_default=True, help="Calls in a batch at most.")
@click.option("--bounds", is_flag=True, help="Compare with the bounds on recomputation and packing (slower).")
@click.option("--seed", type=int, default=0, show_default=True, help="Of draws, arrivals and lost orders.")
@click.option("--json", "json_to", metavar="FILE|-", help="Write the summaries as a list.")
@click.option(
    "--log",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the event log; with several policies, one for each: FILE-POLICY.",
)
def simulate(
    traces: tuple[str, ...], policies: str, json_to: str | None, log: Path | None, **options: Any
) -> None:
    """Play TRACEs of agent programs through policies, in virtual time.

    The core is the one that serves; engines are simulated from what computing costs them. Either
    --concurrency (programs at once) or --rate (programs an hour) says how programs come.
    """
    from agentsched.workloads.sessions import TraceError
    from agentsched.workloads.simulate import OptionError, Options, check_policies, workload_of
    from agentsched.workloads.summary import SummaryError

    names = list(dict.fromkeys(name.strip() for name in policies.split(",") if name.strip()))
    try:
        chosen = Options(traces=traces, **options)
        check_policies(names)
        _tell_left_out(workload_of(chosen).left_out)
        summaries = [_play(chosen, name, _log_of(log, name, len(names) > 1)) for name in names]
    except OptionError as error:
        raise click.UsageError(str(error)) from None
    except (TraceError, SummaryError, OSError) as error:
        raise click.ClickException(str(error)) from None
    _write(json_to, summaries)
    if json_to != "-":
        _print_table(summaries)


def _tell_left_out(left_out: Counter[str]) -> None:
    for reason, count in left_out.items():
        click.echo(f"{count} programs left out: {reason}", err=True)


def _play(options: Options, policy: str, log: Path | None) -> Summary:
    from agentsched.workloads.simulate import simulate as play

    began_s = time.monotonic()
    with _progress(policy) as progress, _logging(log, options, policy) as write:
        summary = play(options, policy, log=write, progress=progress)
    took_s = time.monotonic() - began_s
    unfinished = f", {summary.unfinished:,} unfinished" if summary.unfinished else ""
    span_h = (summary.span_s or 0.0) / 3600
    click.echo(
        f"{policy}: {summary.programs:,} programs{unfinished}, {span_h:,.1f} virtual hours in {took_s:.1f} s",
        err=True,
    )
    return summary


@contextlib.contextmanager
def _progress(policy: str) -> Iterator[Callable[[float, int], None]]:
    """A line that changes in a terminal, and none elsewhere."""
    shown_s, width = time.monotonic(), 0

    def tell(now: float, ended: int) -> None:
        nonlocal shown_s, width
        if sys.stderr.isatty() and time.monotonic() - shown_s >= TELL_EVERY_S:
            shown_s = time.monotonic()
            text = f"{policy}: {ended:,} programs ended after {now / 3600:,.1f} virtual hours"
            click.echo("\r" + text.ljust(width), nl=False, err=True)
            width = len(text)

    try:
        yield tell
    finally:
        if width:
            click.echo("\r" + " " * width + "\r", nl=False, err=True)


def _log_of(log: Path | None, policy: str, several: bool) -> Path | None:
    return log.with_name(f"{log.stem}-{policy}{log.suffix}") if log and several else log


def _logging(
    log: Path | None, options: Options, policy: str
) -> AbstractContextManager[Callable[[Entry], None] | None]:
    return contextlib.nullcontext() if log is None else _log_file(log, options, policy)


@contextlib.contextmanager
def _log_file(log: Path, options: Options, policy: str) -> Iterator[Callable[[Entry], None]]:
    run: dict[str, str | int | float] = {"engine": options.profile, "seed": options.seed, "simulated": 1}
    header = Header(agentsched=__version__, policy=policy, epoch=1, started_unix_s=time.time(), run=run)
    with log.open("wb") as file:
        file.write(encode(header) + b"\n")
        yield lambda entry: file.writelines((encode(entry), b"\n"))


def _write(json_to: str | None, summaries: list[Summary]) -> None:
    if json_to is None:
        return
    text = msgspec.json.format(msgspec.json.encode(summaries), indent=1).decode()
    if json_to == "-":
        click.echo(text)
        return
    try:
        Path(json_to).write_text(text + "\n")
    except OSError as error:
        raise click.ClickException(f"--json {json_to}: {error.strerror}") from None


def _print_table(summaries: list[Summary]) -> None:
    from rich.console import Console
    from rich.table import Table

    from agentsched.workloads.figures import figures

    table = Table("measure")
    for summary in summaries:
        table.add_column(summary.policy, justify="right")
    for name, cells in figures(summaries):
        table.add_row(name, *cells)
    Console().print(table)
