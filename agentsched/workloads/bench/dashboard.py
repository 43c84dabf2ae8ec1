"""What the dashboard costs: the page in a real Chromium, and the daemon that feeds it.

A simulated run with many live programs is served as the daemon serves it (``workloads/watched.py``), its
clock set so that programs make a given number of events a second. Beside it, as the baseline, a run of
three programs at their own pace. Sides alternate. Measured are

* script, style and layout of each frame, from a Chromium trace: all such work of the main thread since the
  frame before, so that what is done between frames counts, too. In CPU time of that thread, and by the clock;
* the time from asking for the page to its first paint, and to the first program that it shows;
* the page's heap, after a collection, every five minutes of an hour of virtual time that passes in minutes,
  and the size of what the daemon keeps for it. It is flat if the least of the second half hour is at most a
  tenth above the least of the first, from when histories go back as far as they may;
* what an event costs the daemon while nobody watches.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import msgspec
from rich.console import Console
from rich.table import Table

from agentsched.core import Core, make_policy
from agentsched.core import events as ev
from agentsched.daemon.dashboard.live import Live
from agentsched.daemon.dashboard.model import LIVE
from agentsched.daemon.programs import Programs
from agentsched.workloads.bench import _found
from agentsched.workloads.bench._traces import CATEGORIES, frames_ms
from agentsched.workloads.browsers import chromium, missing
from agentsched.workloads.simulate import Options
from agentsched.workloads.summary import percentile
from agentsched.workloads.watched import Watched

if TYPE_CHECKING:
    from playwright.async_api import Browser, Page

OUT = Path("out/bench/dashboard.json")
ENGINES, KV_TOKENS = 4, 450_000
LOADED_S = 240.0
PROBED_S = 30.0
HOUR_S = 3600.0
LOOKS = 12
SETTLE_S = 3.0

Figures = dict[str, Any]


def crowd(programs: int, *, engines: int = ENGINES) -> Watched:
    """A run with so many live programs, at its own pace."""
    options = Options(
        traces=("gen:saga-swe",),
        kv_tokens=KV_TOKENS,
        engines=engines,
        concurrency=programs,
        programs=100 * programs,
        tool_cores=64,
        tool_memory_gb=128,
        told_progress=0.5,
    )
    run = Watched(options)
    run.run_to(LOADED_S)
    return run


def paced(run: Watched, events_per_s: float) -> None:
    """Set its clock so that programs make so many events a second. Engines' reports come beside these."""
    before = run.programs_events
    run.run_to(run.now() + PROBED_S)
    run.go(events_per_s * PROBED_S / max(1, run.programs_events - before))


class Frames(NamedTuple):
    """Milliseconds of work in each frame: of the main thread's CPU time, and by the clock."""

    cpu: list[float]
    wall: list[float]

    def add(self, more: Frames) -> None:
        self.cpu.extend(more.cpu)
        self.wall.extend(more.wall)

    def spread(self) -> Figures:
        return {"frames": len(self.cpu), "cpu": _spread(self.cpu), "wall": _spread(self.wall)}


async def framed(browser: Browser, run: Watched, seconds: float, *, scroll: bool) -> Frames:
    """The frames of so many seconds; ``scroll``: half of the time the list of programs is scrolled."""
    async with run.served() as url:
        page = await _opened(browser, url)
        await browser.start_tracing(page=page, categories=CATEGORIES.split(","))
        if scroll:
            await asyncio.sleep(seconds / 2)
            for _ in range(int(seconds)):
                await page.mouse.move(400, 500)
                await page.mouse.wheel(0, 400)
                await asyncio.sleep(0.5)
        else:
            await asyncio.sleep(seconds)
        trace = json.loads(await browser.stop_tracing())
        await page.context.close()
    events = trace["traceEvents"]
    return Frames(frames_ms(events), frames_ms(events, of_thread=False))


async def painted(browser: Browser, run: Watched) -> tuple[float, float]:
    """Seconds to the first paint, and to the first program."""
    async with run.served() as url:
        context = await browser.new_context(viewport={"width": 1440, "height": 900})
        page = await context.new_page()
        begin_s = time.monotonic()
        await page.goto(url, wait_until="commit")
        await page.wait_for_selector(".program")
        shown_s = time.monotonic() - begin_s
        first = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
        first_s = float(await page.evaluate(first)) / 1000
        await context.close()
    return first_s, shown_s


async def aged(browser: Browser, run: Watched, seconds: float, tell: Console) -> list[Figures]:
    """The heap, twelve times in the hour of virtual time that passes in so many seconds."""
    found = []
    async with run.served() as url:
        page = await _opened(browser, url)
        session = await page.context.new_cdp_session(page)
        run.go(HOUR_S / seconds)
        began_s = run.now()
        for look in range(1, LOOKS + 1):
            left_s = began_s + look * HOUR_S / LOOKS - run.now()
            await asyncio.sleep(max(0.0, left_s / run.speed))
            await session.send("HeapProfiler.collectGarbage")
            heap = await session.send("Runtime.getHeapUsage")
            kept = len(msgspec.json.encode(await run.live.view(run.everything)))
            nodes = await page.evaluate("document.querySelectorAll('*').length")
            found.append(
                {
                    "virtual_minutes": round(look * HOUR_S / LOOKS / 60),
                    "heap_mb": round(heap["usedSize"] / 1e6, 1),
                    "dom_nodes": nodes,
                    "daemon_view_mb": round(kept / 1e6, 2),
                }
            )
            tell.print(f"  {found[-1]}")
        await page.context.close()
    return found


def unwatched_ns(events: int = 200_000) -> float:
    """Of one event while nobody watches."""
    live = Live(Core(make_policy("fcfs-lru")), Programs(), "fcfs-lru")
    woken, nothing = ev.Woken(), ()
    begin_ns = time.process_time_ns()
    for _ in range(events):
        live.observe(0.0, woken, nothing)
    return (time.process_time_ns() - begin_ns) / events


async def _opened(browser: Browser, url: str) -> Page:
    context = await browser.new_context(viewport={"width": 1440, "height": 900})
    page = await context.new_page()
    await page.goto(url)
    await page.wait_for_selector(".program")
    await asyncio.sleep(SETTLE_S)
    return page


def _spread(values: list[float]) -> Figures:
    return {
        "p50": round(statistics.median(values), 2),
        "p99": round(percentile(values, 99), 2),
        "most": round(max(values), 2),
    }


async def measure(programs: int, events_per_s: float, *, quick: bool, console: Console) -> Figures:
    rounds, seconds, hour_in_s = (1, 6.0, 60.0) if quick else (3, 20.0, 240.0)
    sides: dict[str, Watched] = {"3 programs": crowd(3, engines=1), f"{programs} programs": crowd(programs)}
    paced(sides[f"{programs} programs"], events_per_s)
    frames = {name: Frames([], []) for name in sides}
    scrolled = Frames([], [])
    first: list[float] = []
    shown: list[float] = []
    async with chromium() as browser:
        for number in range(rounds):
            for name, run in sides.items():
                frames[name].add(await framed(browser, run, seconds, scroll=False))
                console.print(f"round {number + 1} of {rounds}, {name}: {frames[name].spread()}")
            scrolled.add(await framed(browser, sides[f"{programs} programs"], seconds, scroll=True))
            first_s, shown_s = await painted(browser, sides[f"{programs} programs"])
            first.append(first_s)
            shown.append(shown_s)
            console.print(f"  scrolled: {scrolled.spread()}")
            console.print(f"  first paint {first_s:.2f} s, programs {shown_s:.2f} s")
        console.print(f"an hour of virtual time in {hour_in_s:.0f} s:")
        ages = await aged(browser, sides[f"{programs} programs"], hour_in_s, console)
    return {
        "programs": programs,
        "events_per_s": events_per_s,
        "frame_ms": {name: one.spread() for name, one in frames.items()},
        "frame_ms_scrolled": scrolled.spread(),
        "load_average": os.getloadavg()[0],
        "first_paint_s": round(max(first), 3),
        "first_program_s": round(max(shown), 3),
        "ages": ages,
        "unwatched_ns": round(unwatched_ns()),
    }


def goals(figures: Figures) -> Figures:
    many = figures["frame_ms"][f"{figures['programs']} programs"]["cpu"]["p99"]
    scrolled = figures["frame_ms_scrolled"]["cpu"]["p99"]
    ages, hour = figures["ages"], HOUR_S / 60
    grew = _least_mb(ages, hour / 2, hour) / _least_mb(ages, (LIVE.past_s or 0.0) / 60, hour / 2)
    wanted = {
        "frame_p99_ms": (many, "< 8", many < 8),
        "frame_p99_ms_scrolled": (scrolled, "< 8", scrolled < 8),
        "first_paint_s": (figures["first_paint_s"], "< 1", figures["first_paint_s"] < 1),
        "heap_second_half_hour": (round(grew, 3), "<= 1.1 times", grew <= 1.1),
        "unwatched_event_ns": (figures["unwatched_ns"], "< 1000", figures["unwatched_ns"] < 1000),
    }
    return {name: {"value": value, "want": want, "met": met} for name, (value, want, met) in wanted.items()}


def _least_mb(ages: list[Figures], after_minutes: float, to_minutes: float) -> float:
    return float(min(a["heap_mb"] for a in ages if after_minutes < a["virtual_minutes"] <= to_minutes))


@click.command()
@click.option("--programs", default=500, show_default=True, type=click.IntRange(10), help="Live ones.")
@click.option("--events", default=50.0, show_default=True, help="Events a second that programs make.")
@click.option("--quick", is_flag=True, help="One short round: whether it runs, not what it costs.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), default=OUT, show_default=True)
def main(programs: int, events: float, quick: bool, out: Path) -> None:
    """Script and layout, first paint and memory of the dashboard in a real Chromium."""
    if (problem := missing()) is not None:
        raise click.ClickException(problem)
    console = Console()
    console.print(f"loading {programs} programs", highlight=False)
    figures = asyncio.run(measure(programs, events, quick=quick, console=console))
    met = goals(figures)
    table = Table("goal", "value", "want", "met")
    for name, goal in met.items():
        table.add_row(name, str(goal["value"]), str(goal["want"]), "yes" if goal["met"] else "NO")
    console.print(table)
    few, many = figures["frame_ms"].values()
    console.print(
        f"a frame's work: {many['cpu']['p50'] / few['cpu']['p50']:.1f} times that with 3 programs (P50)"
    )
    _found.keep(_found.headed("dashboard", {**figures, "goals": met}), out, console)


if __name__ == "__main__":
    main()
