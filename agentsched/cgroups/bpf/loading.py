"""Compiles BPF programs and attaches them, and says in words why it cannot.

The only module that imports bcc, which comes from the distribution (python3-bpfcc) and is no package of PyPI.
Each program is a file of its own in ``programs``; what they share is in ``leaves.h``. bcc rewrites what it
compiles, in its main file only, so the files are put one after the other into one text.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from agentsched.cgroups.bpf import headers
from agentsched.cgroups.contract import HostRefused

FOLDER = Path(__file__).parent / "programs"
PROGRAMS = ("lifecycle", "commands", "running", "memory", "oom", "block_io")
RING_PAGES = 256
"""A full megabyte: some thousand events, or 250 long commands, between two looks."""

TRACEFS = ("/sys/kernel/tracing", "/sys/kernel/debug/tracing")
_FIRST_PID_NAMESPACE = "pid:[4026531836]"
_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 38, 39


def text(programs: Sequence[str]) -> str:
    """What is compiled for these programs. Raises ``ValueError`` for one that there is not."""
    if unknown := set(programs) - set(PROGRAMS):
        raise ValueError(f"no BPF program {min(unknown)!r}; there are: {', '.join(PROGRAMS)}")
    files = [FOLDER / "leaves.h", *(FOLDER / f"{name}.c" for name in programs)]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def why_not() -> str | None:
    """Why BPF programs cannot be loaded here, as far as that shows without loading any."""
    if not sys.platform.startswith("linux"):
        return f"BPF needs Linux, this is {platform.system()}"
    if not _may():
        return "BPF needs root, or CAP_BPF with CAP_PERFMON"
    if not any(os.path.isdir(f"{folder}/events/sched") for folder in TRACEFS):
        return "no tracefs: mount -t tracefs tracefs /sys/kernel/tracing"
    if os.readlink("/proc/self/ns/pid") != _FIRST_PID_NAMESPACE:
        return "this is a pid namespace of its own (a container), and BPF tells the numbers of the first one"
    try:
        import bcc
    except ImportError as error:
        return f"no bcc ({error}): apt-get install python3-bpfcc (never from PyPI), and let Python see it"
    if not hasattr(bcc, "BPF"):
        return (
            "the package named bcc here is a different one: pip uninstall bcc; apt-get install python3-bpfcc"
        )
    return None


def _may() -> bool:
    with open("/proc/self/status", encoding="utf-8") as file:
        line = next((line for line in file if line.startswith("CapEff:")), "CapEff: 0")
    able = int(line.split()[1], 16)
    return bool(able >> _CAP_SYS_ADMIN & 1) or bool(able >> _CAP_BPF & able >> _CAP_PERFMON & 1)


def load(programs: Sequence[str]) -> Any:
    """A ``bcc.BPF`` with these programs compiled and attached. Takes some tenths of a second, and about 100
    MB of memory that stay. Raises ``HostRefused`` with the reason why not."""
    if (reason := why_not()) is not None:
        raise HostRefused(reason)
    from bcc import BPF

    source = text(programs)
    with _headers(), _stderr_kept() as said:
        try:
            return BPF(text=source.encode(), cflags=[f"-DRING_PAGES={RING_PAGES}", "-Wno-macro-redefined"])
        except Exception as error:  # bcc raises plain ones
            raise HostRefused(f"BPF programs cannot be loaded: {error}{_last(said())}") from error


def _last(said: str) -> str:
    lines = [line for line in said.splitlines() if "error" in line.lower() or "invalid" in line.lower()]
    return f" ({'; '.join(lines[:3])})" if lines else ""


@contextlib.contextmanager
def _headers() -> Iterator[None]:
    if headers.own() is not None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="agentsched-headers-") as folder:
        headers.stand_in(Path(folder))
        os.environ[headers.VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[headers.VARIABLE]


@contextlib.contextmanager
def _stderr_kept() -> Iterator[Any]:
    """The compiler writes to descriptor 2 itself; kept for the reason, instead of before the user."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as kept:
        saved = os.dup(2)
        os.dup2(kept.fileno(), 2)

        def said() -> str:
            size = os.fstat(kept.fileno()).st_size
            return os.pread(kept.fileno(), min(size, 1 << 20), 0).decode(errors="replace")

        try:
            yield said
        finally:
            os.dup2(saved, 2)
            os.close(saved)
