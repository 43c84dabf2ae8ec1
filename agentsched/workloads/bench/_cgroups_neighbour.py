"""How much a neighbour that needs one core slows down beside tools that take all they can."""

from __future__ import annotations

import statistics
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from agentsched.cgroups import Leaf, Sandbox, ToolSpec

WORK = """
import time
began = time.perf_counter()
for _ in range(6_000_000): pass
print(time.perf_counter() - began)
"""
THREADS = """
import threading
def spin():
    while True: pass
while True: threading.Thread(target=spin, daemon=True).start()
"""
BOMBS = {
    "fork bomb": ToolSpec(command="bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 100"),
    "16 busy processes": ToolSpec(command="for i in $(seq 16); do while :; do :; done & done; wait"),
    "threads": ToolSpec(argv=[sys.executable, "-S", "-c", THREADS]),
    "endless output": ToolSpec(argv=["yes"], max_output_bytes=1 << 16),
    "memory": ToolSpec(argv=[sys.executable, "-S", "-c", "while True: x = bytearray(b'x') * (64 << 20)"]),
}
"""Each in a leaf of its own."""


def measure(repeats: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Wall time of the neighbour, a process outside of all leaves as an agent is, over alone."""
    found = {}
    for name, spec in BOMBS.items():
        say(f"neighbour of {name}")
        ratios = [_beside(spec) / _alone() for _ in range(repeats)]
        found[name] = {
            "slowdown": round(statistics.median(ratios), 2),
            "least": round(min(ratios), 2),
            "most": round(max(ratios), 2),
        }
    return found


def _alone() -> float:
    done = subprocess.run([sys.executable, "-S", "-c", WORK], capture_output=True, text=True, check=True)
    return float(done.stdout)


def _beside(spec: ToolSpec) -> float:
    running = threading.Event()
    taken: list[float] = []
    with Sandbox.open("bench-bomb") as sandbox:

        def started(leaf: Leaf, pid: int) -> None:
            running.set()

        def neighbour() -> None:
            running.wait()
            threading.Event().wait(0.5)  # the bomb goes off
            taken.append(_alone())
            for leaf in sandbox.leaves().values():
                leaf.kill()

        thread = threading.Thread(target=neighbour)
        thread.start()
        sandbox.run(spec, on_start=started)
        thread.join()
    return taken[0]
