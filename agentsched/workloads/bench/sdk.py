"""What the SDK costs an agent: seconds a call of a decorated function, beside the bare one.

The baseline is the same function without the decorator, in the same run; each figure is the median over
repeats of the mean over many calls, less the baseline's of that repeat. Measured

* with no daemon (``AGENTSCHED_URL`` not set), which is to cost below 50 microseconds a call;
* with one that does not answer: its address refuses connections;
* with one that takes the events: a server in a process of its own, since it is not the agent that pays for
it.

An isolated tool is measured beside them: a process each time, so it costs milliseconds.
"""

from __future__ import annotations

import logging
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from agentsched.sdk import agent, headers, program, tool, tool_run
from agentsched.sdk.reporting import Reporter, use_reporter
from agentsched.workloads.bench import _found

RESULT = Path("out/bench/sdk.json")
GOAL_US = 50.0
SINK = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Sink(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *args): pass
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers();
        self.wfile.write(b"{}")
server = ThreadingHTTPServer(("127.0.0.1", 0), Sink)
print(server.server_address[1], flush=True)
server.serve_forever()
"""


def bare(value: int) -> int:
    return value + 1


@tool(isolated=True)
def isolated(value: int) -> int:
    return value + 1


plain_tool = tool(bare)
plain_agent = agent(bare)


def block(value: int) -> int:
    with tool_run("block"):
        return bare(value)


def stamped(value: int) -> int:
    headers()
    return bare(value)


CALLS: dict[str, Callable[[int], int]] = {
    "@tool": plain_tool,
    "@agent": plain_agent,
    "with tool_run": block,
    "headers of a request": stamped,
}


@contextmanager
def reporting_to(url: str | None) -> Iterator[None]:
    reporter = Reporter(url)
    use_reporter(reporter)
    try:
        yield
    finally:
        reporter.flush()
        use_reporter(None)


@contextmanager
def sink() -> Iterator[str]:
    with subprocess.Popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
        finally:
            server.terminate()


def refusing() -> str:
    """An address of this machine on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def mean_us(function: Callable[[int], int], calls: int) -> float:
    began_s = time.perf_counter()
    for number in range(calls):
        function(number)
    return (time.perf_counter() - began_s) / calls * 1e6


def measure(url: str | None, repeats: int, calls: int) -> dict[str, list[float]]:
    """Of each kind of call what it costs beyond the bare one, microseconds, for each repeat."""
    found: dict[str, list[float]] = {name: [] for name in CALLS}
    with reporting_to(url), program("bench"):
        for _ in range(repeats):
            for name, function in CALLS.items():
                before_us = mean_us(bare, calls)
                found[name].append(mean_us(function, calls) - before_us)
    return found


def measure_isolated(repeats: int) -> list[float]:
    """Milliseconds a call."""
    with reporting_to(None), program("bench"):
        isolated(0)  # starts what all later ones share
        return [mean_us(isolated, 1) / 1e3 for _ in range(repeats)]


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "greatest": max(values)}


@click.command()
@click.option("--repeats", default=15, show_default=True, help="Of each measurement.")
@click.option("--calls", default=2_000, show_default=True, help="Calls in each repeat.")
@click.option("--quick", is_flag=True, help="A look: 3 repeats of 300 calls.")
@click.option(
    "--json", "path", type=click.Path(path_type=Path, dir_okay=False), default=RESULT, show_default=True
)
def main(repeats: int, calls: int, quick: bool, path: Path) -> None:
    """Measure what a call of a decorated function costs beyond the bare one."""
    logging.getLogger("agentsched.sdk").setLevel(logging.ERROR)
    console = Console(width=110)
    repeats, calls = (3, 300) if quick else (repeats, calls)
    shown = Table("microseconds beyond the bare call", *CALLS, title="median (least to greatest)")
    figures: dict[str, Any] = {}
    with sink() as url:
        for name, where in (("no daemon", None), ("does not answer", refusing()), ("takes them", url)):
            console.print(f"measuring: {name} ...")
            figures[name] = {call: spread(us) for call, us in measure(where, repeats, calls).items()}
            row = (
                f"{s['median']:.1f} ({s['least']:.1f} to {s['greatest']:.1f})" for s in figures[name].values()
            )
            shown.add_row(name, *row)
    console.print("measuring: isolated ...")
    apart = figures["isolated, ms"] = spread(measure_isolated(repeats))
    console.print(shown)
    console.print(
        f"an isolated tool: {apart['median']:.0f} ms ({apart['least']:.0f} to {apart['greatest']:.0f})"
    )
    worst_us = max(spread["median"] for spread in figures["no daemon"].values())
    goals = {
        "call_without_daemon_us": {"value": worst_us, "want": f"< {GOAL_US:g}", "met": worst_us < GOAL_US}
    }
    console.print(f"without a daemon a call costs {worst_us:.1f} us at most; wanted: below {GOAL_US:g}")
    result = {
        "baseline": "the bare function, in the same repeat",
        "repeats": repeats,
        "calls": calls,
        "figures": figures,
        "goals": goals,
    }
    _found.keep(_found.headed("sdk", result), path, console)


if __name__ == "__main__":
    main()
