"""What came of a tool call, in words that an agent can act on, and as a record.

One who reads it is a language model in the middle of a task: what happened, why, what to do instead, by the
kind of command. Nothing is said of a call that ended by itself and was not slowed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from agentsched.cgroups.commands import Words, programs
from agentsched.cgroups.contract import DiskUse, Ending, Feedback, Limits, Pressure, ToolSpec, Usage
from agentsched.cgroups.controlled import Verdict
from agentsched.cgroups.hints import VARIABLE, Hint

FILE_VARIABLE = "AGENTSCHED_FEEDBACK"
"""Names a file; ``agentsched run`` writes the feedback there, as JSON."""

SLOWED_SHARE = 0.2
"""Of the wall time; a call that waited less for a resource was not slowed to speak of."""

_TESTS = ("run fewer tests at a time: one file, or some by name{by_name}", "stop at the first failure{stop}")
_LESS_DISK = ("remove files that earlier commands wrote", "write less at a time")
_FEWER_JOBS = "build with fewer jobs at the same time: {jobs}"


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """What the sandbox knows of a call that ended. ``done_fraction``: the last that its output told."""

    ending: Ending
    exit_status: int
    usage: Usage
    pressure: Pressure | None = None
    disk: DiskUse | None = None
    done_fraction: float | None = None
    progress_source: str = ""
    hint: Hint | None = None
    hint_problem: str = ""
    verdict: Verdict = Verdict()


def feedback(spec: ToolSpec, seen: Seen) -> Feedback:
    """See the module."""
    ran = programs(spec.argv, spec.command)
    needs_s = None
    if seen.ending is Ending.TIME_LIMIT and seen.done_fraction:
        needs_s = seen.usage.wall_s / seen.done_fraction
    slowed = _slowed(spec.limits, seen)
    why = _why(spec, seen, needs_s)
    full = _full(seen.disk)
    advice = [*(_LESS_DISK if full else []), *_advice(ran, seen, slowed)][:3]
    sentences = [*why, *full, *slowed, *([seen.hint_problem] if seen.hint_problem else [])]
    note = ". ".join(text[0].upper() + text[1:] for text in sentences)
    if note and advice:
        note += ". Try: " + "; or ".join(advice)
    return Feedback(
        ending=seen.ending,
        exit_status=seen.exit_status,
        used=seen.usage,
        pressure=seen.pressure,
        disk=seen.disk,
        done_fraction=seen.done_fraction,
        progress_source=seen.progress_source,
        needs_s=needs_s,
        slowed=tuple(slowed),
        advice=tuple(advice),
        note=note + "." if note else "",
    )


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:.0f} MiB"


def _why(spec: ToolSpec, seen: Seen, needs_s: float | None) -> list[str]:
    used = seen.usage
    match seen.ending:
        case Ending.TIME_LIMIT:
            text = f"the command was stopped at its time limit of {spec.timeout_s:g} s"
            if seen.done_fraction:
                text += f", about {seen.done_fraction:.0%} done ({seen.progress_source})"
            if needs_s is not None:
                text += f"; at this pace the whole takes about {needs_s:.0f} s"
            idle = used.wall_s > 5 and used.cpu_s < 0.05 * used.wall_s
            return [text, *(["it hardly computed: it may wait for input or for a server"] if idle else [])]
        case Ending.MEMORY_LIMIT:
            limit = f" of {size(spec.limits.memory_bytes)}" if spec.limits.memory_bytes else ""
            text = f"the kernel killed processes of the command at its memory limit{limit}"
            if seen.hint and seen.hint.memory_bytes:
                text += f" (expected were {size(seen.hint.memory_bytes)})"
            return [f"{text}; the sandbox and earlier work are untouched"]
        case Ending.KILLED if seen.verdict.why:
            return _ended_for_memory(seen.verdict)
        case Ending.KILLED:
            peak = f", having used {size(used.peak_memory_bytes)}" if used.peak_memory_bytes else ""
            return [
                f"the command was killed from outside{peak}, not by its own limits: "
                "the machine may be short of memory"
            ]
        case Ending.EXITED:
            return []


def _ended_for_memory(verdict: Verdict) -> list[str]:
    held = f"the command was ended while it held {size(verdict.memory_bytes)} of memory"
    rest = "the sandbox and earlier work are untouched"
    match verdict.why:
        case "too big":
            return [f"{held} and needed more than this machine has ({size(verdict.host_bytes)} in all)", rest]
        case "waited":
            waited = f"it had waited {verdict.waited_s:.0f} s for more, and the machine had none to spare"
            return [f"{held}: {waited}", rest]
        case _:
            short = f"the machine ({size(verdict.host_bytes)}) ran short, and others came before it"
            return [f"{held}: {short}", rest]


def _full(disk: DiskUse | None) -> list[str]:
    if disk is None or not disk.full:
        return []
    return [
        f"its disk was full: what commands of this program write has to fit into {size(disk.limit_bytes)} in "
        f"all, and {size(disk.used_bytes)} are taken"
    ]


def _slowed(limits: Limits, seen: Seen) -> list[str]:
    used, found = seen.usage, []
    least_s = max(1.0, SLOWED_SHARE * used.wall_s)
    if limits.cpu_cores is not None and used.throttled_s >= least_s:
        found.append(f"its CPU limit of {limits.cpu_cores:g} cores held it back for {used.throttled_s:.0f} s")
    if seen.verdict.waited_s >= least_s:
        found.append(
            f"it was held back for {seen.verdict.waited_s:.0f} s, for the machine was short of memory"
        )
    elif seen.pressure is not None and seen.pressure.memory_s >= least_s:
        found.append(f"it waited {seen.pressure.memory_s:.0f} s for memory")
    return found


def _advice(ran: Sequence[Words], seen: Seen, slowed: Sequence[str]) -> list[str]:
    """At most three, the most useful first."""
    memory = seen.ending in (Ending.MEMORY_LIMIT, Ending.KILLED)
    if not memory and seen.ending is not Ending.TIME_LIMIT and not slowed:
        return []
    found: list[str] = []
    for words in reversed(ran):
        found = _for_program(words[0], words[1:], memory=memory)
        if found:
            break
    if not found:
        found = ["work on a smaller part: fewer files, rows or cases at a time"]
    if seen.ending is Ending.KILLED:
        found = [*found[:2], f"say what it needs, so that there is room for it: {VARIABLE}=memory:4G COMMAND"]
    return found[:3]


def _for_program(name: str, words: Sequence[str], *, memory: bool) -> list[str]:
    def tests(by_name: str, stop: str) -> list[str]:
        narrow, first = _TESTS
        return [
            narrow.format(by_name=f" ({by_name})"),
            *([] if memory else [first.format(stop=f" ({stop})")]),
        ]

    match name:
        case "pytest" | "py.test":
            more = ["leave out -n: each worker takes memory of its own"] if memory and "-n" in words else []
            return more + tests("pytest tests/test_x.py -k NAME", "pytest -x")
        case "unittest" | "manage.py" | "tox" | "nox":
            return tests("python -m unittest package.test_module", "-f")
        case "go" if "test" in words:
            return (["go test -p 1"] if memory else []) + tests("go test ./pkg -run NAME", "-failfast")
        case "cargo":
            test = tests("cargo test NAME", "cargo test without --no-fail-fast") if "test" in words else []
            return [_FEWER_JOBS.format(jobs="cargo build -j 1"), *test] if memory else test
        case "make" | "ninja" | "cmake" | "gcc" | "g++" | "cc":
            return [_FEWER_JOBS.format(jobs="make -j2, or -j1")] if memory else ["build one target of it"]
        case "npm" | "yarn" | "pnpm" | "jest" | "vitest" | "mocha" | "node":
            few = ["one worker (jest --runInBand, vitest --no-file-parallelism)"] if memory else []
            return few + tests("jest path/to/file.test.js -t NAME", "jest --bail")
        case "pip" | "pip3" | "uv":
            return ["install fewer packages at a time, and only ready-made wheels (--only-binary :all:)"]
        case "grep" | "rg" | "find" | "ls" | "du":
            return ["name a narrower folder, and leave out .git, node_modules and build folders"]
        case _:
            return []
