"""Isolated tools as a user's module has them: the process in which they run imports this file."""

import asyncio
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from agentsched.sdk import current_program, headers, tool


@dataclass(frozen=True)
class Point:
    x: int
    y: int


class Picky(Exception):
    """Can be pickled, and not be read again."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first + second)


@tool(isolated=True)
def shifted(point: Point, by: int = 1) -> tuple[Point, int]:
    return Point(point.x + by, point.y + by), os.getpid()


@tool(isolated=True, name="napper")
async def nap(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "rested"


@tool(isolated=True, memory="200M", timeout_s=60)
def hoard(mib: int) -> int:
    return len(bytearray(os.urandom(1) * (mib << 20)))


@tool(isolated=True, timeout_s=1)
def oversleep() -> None:
    time.sleep(60)


@tool(isolated=True)
def fail(how: str) -> object:
    if how == "picky":
        raise Picky("a", "b")
    if how == "unpicklable":
        return lambda: None
    if how == "exit":
        print("going down", flush=True)
        os._exit(7)
    raise LookupError(how)


@tool(isolated=True)
def chatter() -> None:
    print("héllo from inside", flush=True)
    print("and an error", file=sys.stderr)


@tool(isolated=True)
def whose() -> tuple[str | None, dict[str, str], str | None]:
    running = current_program()
    return running.id if running else None, headers(), os.environ.get("AGENTSCHED_PROGRAM")


@tool(isolated=True)
def burn(cpu_s: float) -> None:
    end = time.process_time() + cpu_s
    while time.process_time() < end:
        pass


@tool(isolated=True)
async def linger(mark: str) -> None:
    """Starts a process that can be found, and waits for ever."""
    await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)", mark)
    await asyncio.to_thread(Path(mark).touch)
    await asyncio.sleep(600)
