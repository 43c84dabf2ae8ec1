"""What a sandbox costs a tool call: its time over bare fork and exec, how many a second, how many at once."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from agentsched.cgroups import Isolation, Leaf, Sandbox, ToolSpec, isolation

Figures = dict[str, Any]


def spread(values: list[float]) -> Figures:
    """Median and 95th percentile, in milliseconds."""
    ordered = sorted(values)
    return {
        "median_ms": round(1000 * statistics.median(ordered), 3),
        "p95_ms": round(1000 * ordered[int(0.95 * (len(ordered) - 1))], 3),
        "calls": len(ordered),
    }


BARE = "fork and exec"
PAUSE_S = 0.2
"""Shorter than between calls of one agent, yet what the kernel keeps ready between calls is gone by then."""


def added(rounds: int) -> Figures:
    """Each way in turn, ``rounds`` times; the difference to bare fork and exec of the same round. Then again,
    less often and with a pause before each."""
    with ExitStack() as opened:
        sandbox = opened.enter_context(Sandbox.open("bench-cost"))
        ways: dict[str, Callable[[], object]] = {
            BARE: lambda: subprocess.run(["/bin/true"], stdin=subprocess.DEVNULL, check=True),
            "sandbox": lambda: sandbox.run(ToolSpec(argv=["/bin/true"])),
            "sandbox, not sealed": lambda: sandbox.run(ToolSpec(argv=["/bin/true"], nesting=True)),
        }
        if not isolation.missing():
            isolated = opened.enter_context(Sandbox.open("bench-isolated", isolation=Isolation()))
            ways["sandbox, isolated"] = lambda: isolated.run(ToolSpec(argv=["/bin/true"]))
        times = _in_turn(ways, rounds)
        paused = _in_turn(ways, max(5, rounds // 10), PAUSE_S)
    over = _over(times) | {_after_pause(way): spent for way, spent in _over(paused).items()}
    times |= {_after_pause(way): spent for way, spent in paused.items()}
    run = [sys.executable, "-m", "agentsched", "run", "--", "/bin/true"]
    shell = {
        "agentsched run": lambda: subprocess.run(run, stdin=subprocess.DEVNULL, check=True),
        "an interpreter that does nothing": lambda: subprocess.run(
            [sys.executable, "-c", ""], stdin=subprocess.DEVNULL, check=True
        ),
    }
    times |= _in_turn(shell, max(5, rounds // 20))
    return {"whole": {way: spread(values) for way, values in times.items()}, "added": over}


def _after_pause(way: str) -> str:
    return f"{way}, after {PAUSE_S:g} s"


def _over(times: Mapping[str, list[float]]) -> Figures:
    return {
        way: spread([mine - base for mine, base in zip(values, times[BARE], strict=True)])
        for way, values in times.items()
        if way != BARE
    }


def _in_turn(
    ways: Mapping[str, Callable[[], object]], rounds: int, pause_s: float = 0.0
) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {way: [] for way in ways}
    for way in ways.values():
        way()
    for _ in range(rounds):
        for name, way in ways.items():
            time.sleep(pause_s)
            began_s = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - began_s)
    return times


def sustained(rate: float, seconds: float, threads: int = 8) -> Figures:
    """Calls begin at a steady rate, whatever the earlier ones do: how late, and how long they took."""
    late: list[float] = []
    took: list[float] = []
    with Sandbox.open("bench-rate") as sandbox, ThreadPoolExecutor(threads) as pool:
        sandbox.run(ToolSpec(argv=["/bin/true"]))
        start_s = time.perf_counter() + 0.1

        def call(due_s: float) -> None:
            began_s = time.perf_counter()
            sandbox.run(ToolSpec(argv=["/bin/true"]))
            late.append(began_s - due_s)
            took.append(time.perf_counter() - began_s)

        for number in range(int(rate * seconds)):
            due_s = start_s + number / rate
            time.sleep(max(0.0, due_s - time.perf_counter()))
            pool.submit(call, due_s)
    done_s = time.perf_counter() - start_s
    return {
        "asked_per_s": rate,
        "done_per_s": round(len(took) / done_s, 1),
        "late": spread(late),
        "call": spread(took),
    }


def live(count: int) -> Figures:
    """So many calls at the same time, then one more, timed."""
    began_s = time.perf_counter()
    ready, over = threading.Semaphore(0), threading.Event()
    failed: list[BaseException] = []
    with Sandbox.open("bench-live") as sandbox:

        def started(leaf: Leaf, pid: int) -> None:
            ready.release()

        def call() -> None:
            try:
                sandbox.run(ToolSpec(argv=["sleep", "1000"], timeout_s=None), on_start=started)
            except BaseException as error:  # ended with its sandbox, unless it never began
                if not over.is_set():
                    failed.append(error)
                    ready.release()

        threads = [threading.Thread(target=call, daemon=True) for _ in range(count)]
        for thread in threads:
            thread.start()
        for _ in threads:
            ready.acquire()
        up_s = time.perf_counter() - began_s
        alive = len(sandbox.leaves())
        more = _in_turn({"one more": lambda: sandbox.run(ToolSpec(argv=["/bin/true"]))}, 20)["one more"]
        over.set()
        began_s = time.perf_counter()
    for thread in threads:
        thread.join()
    return {
        "leaves": alive,
        "failed": len(failed),
        "up_s": round(up_s, 2),
        "down_s": round(time.perf_counter() - began_s, 2),
        "one_more": spread(more),
    }
