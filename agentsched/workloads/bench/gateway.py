"""What the gateway costs: agentsched in front of an engine, beside other proxies in the same place.

A server that answers at once (``_fast_upstream``) stands for the engine. Each proxy runs on a core of its
own, load and server on another one. All are there at the same time, and are measured one after the other,
several times in turn.

* peak: wrk with 32 connections. CPU a request: of the proxy's processes, over that run.
* one connection: wrk with a single one; ``added`` is what it takes longer than without a proxy.
* half: an open loop (``_load``) at half of each one's own peak, at most ``MOST_RATE`` a second: what its
  generator does.
* streams: an open loop of streams of 200 chunks, 5 ms apart. CPU a chunk: of the proxy, over all chunks.
* open: so many streams open at once. Memory: PSS of the proxy's processes.

agentsched identifies each call (64 programs, by a session header, with conversations of the size of the
body), lets the core decide, and watches the answers; the others only pass bytes. It remembers 50,000 turns,
and forgets one with each call after these, which costs more: that is how a daemon is that has run for a
while, and what a run measures but for its first seconds. ``--quick`` does not get there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import click
import msgspec
from rich.console import Console

from agentsched.workloads.bench import _found
from agentsched.workloads.bench._gateway_report import Figures, goals, markdown
from agentsched.workloads.bench._load import Plan, Told
from agentsched.workloads.bench._proxies import (
    CONTENDERS,
    Missing,
    Proxy,
    await_port,
    free_port,
    running,
    started,
)
from agentsched.workloads.bench._requests import body, write_wrk_script

RESULT = Path("out/bench/gateway.json")
RESULTS = Path(__file__).parents[1] / "results"
SIZES_KB = (1, 60, 250)
CONNECTIONS = 32
MOST_RATE = 3_000.0
STREAM_GAP_MS = 5.0
STREAMS_A_SECOND = 15.0
OPEN_GAP_MS = 250.0
DIRECT = "direct"
_JSON = re.compile(r"^JSON (.*)$", re.MULTILINE)


class Bench:
    """One run: the proxies that are there, and what was measured of each."""

    def __init__(self, *, load_core: int, seconds: int, folder: Path, console: Console) -> None:
        self.figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.missing: dict[str, str] = {}
        self._load_core = load_core
        self._seconds = seconds
        self._folder = folder
        self._console = console
        self._number = 0

    def note(self, name: str, figure: str, value: float) -> None:
        self.figures[name][figure].append(value)

    def say(self, text: str) -> None:
        self._console.print(text, highlight=False)

    def wrk(self, port: int, size_kb: int, connections: int) -> dict[str, float]:
        script = self._folder / f"{size_kb}.lua"
        if not script.exists():
            write_wrk_script(script, body(size_kb * 1000, stream=False))
        command = ["taskset", "-c", str(self._load_core), "wrk", "-t1", f"-c{connections}"]
        command += [
            f"-d{self._seconds}s",
            "--timeout",
            "20s",
            "-s",
            str(script),
            f"http://127.0.0.1:{port}",
        ]
        told = _JSON.search(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        assert told is not None
        found: dict[str, float] = json.loads(told.group(1))
        if found["failed"]:
            raise click.ClickException(f"{found['failed']:g} requests failed at port {port}")
        return found

    def open_loop(self, port: int, size_kb: int, rate: float, requests: int, *, stream: bool) -> Told:
        plan = Plan(
            port=port,
            size_bytes=size_kb * 1000,
            stream=stream,
            rate=rate,
            requests=requests,
            timeout_s=120.0,
            first_number=self._number,
        )
        self._number += requests
        command = ["taskset", "-c", str(self._load_core), sys.executable, "-m"]
        done = subprocess.run(
            [*command, "agentsched.workloads.bench._load"],
            input=msgspec.json.encode(plan),
            check=True,
            capture_output=True,
        )
        return msgspec.json.decode(done.stdout, type=Told)

    def plain(self, name: str, port: int, proxy: Proxy | None) -> None:
        """All figures of answers that are no streams, once."""
        for size_kb in SIZES_KB:
            alone = self.wrk(port, size_kb, 1)
            self.note(name, f"one_p50_ms_{size_kb}k", alone["p50_ms"])
            self.note(name, f"one_p99_ms_{size_kb}k", alone["p99_ms"])
            cpu_s = proxy.cpu_s() if proxy else 0.0
            full = self.wrk(port, size_kb, CONNECTIONS)
            rate = full["requests"] / full["seconds"]
            self.note(name, f"peak_{size_kb}k", rate)
            if proxy:
                self.note(name, f"cpu_us_{size_kb}k", 1e6 * (proxy.cpu_s() - cpu_s) / full["requests"])
            half = min(MOST_RATE, rate / 2)
            told = self.open_loop(port, size_kb, half, int(half * self._seconds), stream=False)
            self.note(name, f"half_p50_ms_{size_kb}k", told.whole_p50_ms)
            self.note(name, f"half_p99_ms_{size_kb}k", told.whole_p99_ms)
            self.say(f"  {name} {size_kb} kB: {rate:,.0f}/s, alone {alone['p50_ms']:.3f} ms")
        if proxy:
            self.note(name, "memory_mb", proxy.memory_mb())

    def streams(self, name: str, port: int, proxy: Proxy | None) -> None:
        """CPU a chunk and time to the first one, once."""
        cpu_s = proxy.cpu_s() if proxy else 0.0
        told = self.open_loop(port, 1, STREAMS_A_SECOND, int(STREAMS_A_SECOND * self._seconds), stream=True)
        if told.failed:
            raise click.ClickException(f"{name}: {told.failed} streams failed")
        self.note(name, "stream_first_p50_ms", told.first_p50_ms)
        self.note(name, "stream_first_p99_ms", told.first_p99_ms)
        if proxy:
            self.note(name, "cpu_us_chunk", 1e6 * (proxy.cpu_s() - cpu_s) / told.chunks)
            self.say(f"  {name}: {self.figures[name]['cpu_us_chunk'][-1]:.1f} us of CPU a chunk")

    def many_open(self, name: str, port: int, proxy: Proxy, streams: int) -> None:
        """So many streams at once, opened within 10 s or so; each lasts for 50."""
        told = self.open_loop(port, 1, max(50.0, streams / 10), streams, stream=True)
        self.note(name, "open_streams", told.most_open)
        self.note(name, "open_failed", told.failed)
        self.note(name, "open_first_p99_ms", told.first_p99_ms)
        self.note(name, "open_memory_mb", proxy.memory_mb())
        self.say(f"  {name}: {told.most_open} streams at once, {told.failed} failed")

    def soak(self, name: str, proxy: Proxy, requests: int) -> None:
        """Memory over many requests, in ten parts."""
        done = 0.0
        while done < requests:
            part = 0.0
            while part < requests / 10:
                part += self.wrk(proxy.port, 1, CONNECTIONS)["requests"]
            done += part
            self.note(name, "soak_memory_mb", proxy.memory_mb())
            self.note(name, "soak_requests", done)
            self.say(f"  {name}: {proxy.memory_mb():.1f} MB after {done:,.0f} requests")


def contenders(bench: Bench, names: list[str], upstream: str, core: int, stack: ExitStack) -> list[Proxy]:
    """Those that can be started."""
    found = []
    for name in names:
        try:
            found.append(stack.enter_context(running(name, upstream, core, bench._folder)))
        except Missing as error:
            bench.missing[name] = str(error)
            bench.say(f"{name} is left out: {error}")
    return found


def turns(proxies: list[Proxy], rounds: int) -> Iterator[list[Proxy]]:
    """Every round in another order."""
    for number in range(rounds):
        yield proxies[number % len(proxies) :] + proxies[: number % len(proxies)]


@click.command()
@click.option("--quick", is_flag=True, help="Short runs: seconds a figure in place of minutes. For a look.")
@click.option("--rounds", type=click.IntRange(1), help="[default: 5; 1 with --quick]")
@click.option("--seconds", type=click.IntRange(1), help="Of each run. [default: 4; 1 with --quick]")
@click.option("--only", default=",".join(CONTENDERS), help="Names of proxies, with commas.")
@click.option(
    "--open", "open_streams", default=2000, show_default=True, help="Streams at once; 0: not measured."
)
@click.option("--soak", default=0, help="Requests over which memory is watched.")
@click.option("--proxy-core", type=int, help="[default: the last one that may be used]")
@click.option("--load-core", type=int, help="[default: the first one]")
@click.option("--out", type=click.Path(path_type=Path), default=RESULT, show_default=True)
@click.option("--results", type=click.Path(path_type=Path), help="Write a summary into this folder, too.")
def main(
    quick: bool,
    rounds: int | None,
    seconds: int | None,
    only: str,
    open_streams: int,
    soak: int,
    proxy_core: int | None,
    load_core: int | None,
    out: Path,
    results: Path | None,
) -> None:
    """Latency, rate, CPU and memory of agentsched as a gateway, beside plain proxies."""
    if shutil.which("wrk") is None:
        raise click.ClickException("wrk is not installed (apt-get install wrk)")
    cores = sorted(os.sched_getaffinity(0))
    core = cores[-1] if proxy_core is None else proxy_core
    rounds, seconds = rounds or (1 if quick else 5), seconds or (1 if quick else 4)
    begun_s, console = time.monotonic(), Console(stderr=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="agentsched-gateway-")))
        bench = Bench(
            load_core=cores[0] if load_core is None else load_core,
            seconds=seconds,
            folder=folder,
            console=console,
        )
        names = [name.strip() for name in only.split(",")]
        measure(bench, names, core, rounds=rounds, open_streams=open_streams, soak=soak)
    figures: Figures = {
        name: {figure: statistics.median(values) for figure, values in found.items()}
        for name, found in bench.figures.items()
    }
    found = {
        "took_s": round(time.monotonic() - begun_s),
        "missing": bench.missing,
        "figures": figures,
        "samples": bench.figures,
        "goals": goals(figures, bench.figures),
    }
    told = _found.headed("gateway", found)
    bench.say(markdown(told))
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        (results / "gateway.md").write_text(markdown(told))
    _found.keep(told, out, console)


def measure(bench: Bench, names: list[str], core: int, *, rounds: int, open_streams: int, soak: int) -> None:
    """All of it, into the bench's figures."""
    with ExitStack() as stack:
        upstream = _upstream(bench, stack, STREAM_GAP_MS)
        proxies = contenders(bench, names, f"127.0.0.1:{upstream}", core, stack)
        for number, order in enumerate(turns(proxies, rounds), 1):
            bench.say(f"round {number} of {rounds}")
            bench.plain(DIRECT, upstream, None)
            for proxy in order:
                bench.plain(proxy.name, proxy.port, proxy)
            for proxy in order:
                bench.streams(proxy.name, proxy.port, proxy)
        if soak:
            for proxy in proxies:
                if proxy.name == "agentsched":
                    bench.soak(proxy.name, proxy, soak)
    if not open_streams:
        return
    for name in ("aiohttp", "agentsched"):
        with ExitStack() as stack:
            upstream = _upstream(bench, stack, OPEN_GAP_MS)
            for proxy in contenders(
                bench, [name] if name in names else [], f"127.0.0.1:{upstream}", core, stack
            ):
                bench.many_open(proxy.name, proxy.port, proxy, open_streams)


def _upstream(bench: Bench, stack: ExitStack, gap_ms: float) -> int:
    port = free_port()
    command = [sys.executable, "-m", "agentsched.workloads.bench._fast_upstream", str(port), str(gap_ms)]
    log = bench._folder / "upstream.log"
    process = stack.enter_context(started(command, bench._load_core, log))
    await_port(port, process, log)
    return port


if __name__ == "__main__":
    main()
