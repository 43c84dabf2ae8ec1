"""The sandbox contract: what a tool call asks for, what a leaf can do, and what came of it.

Sizes are bytes, times are seconds (CPU and wall), CPU limits are cores (0.5 is half of one).
"""

from __future__ import annotations

import enum
import math
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import msgspec

from agentsched.cgroups.commands import programs

if TYPE_CHECKING:
    from agentsched.cgroups.hints import Hint


class SandboxError(Exception):
    """Base of what can go wrong around a sandbox; a command that fails by itself is no error.

    * ``SpecRefused``: the caller asked for something that cannot be run; nothing was started.
      ``CommandUnusable``: because of the command itself.
    * ``HostRefused``: the machine (kernel, permissions) did not do what it was asked.
    * ``Cancelled``: another thread ended the run.
    * ``Unsupported``: this backend cannot do it at all; its capabilities say so beforehand.
    """


class SpecRefused(SandboxError, ValueError):
    """The request is at fault; the message names the field and the fix."""


class CommandUnusable(SpecRefused):
    """The command is not there, or cannot be executed; ``exit_status`` as a shell would give it."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class HostRefused(SandboxError):
    """The machine is at fault; the message names the file or call and its error."""


class Cancelled(SandboxError):
    """The run was ended from another thread, and its leaf is gone."""


class Unsupported(SandboxError):
    """The backend lacks the capability."""


MOST_PIDS = 4096
"""Processes and threads of a call, unless it says otherwise: enough for builds, and the end of fork bombs."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Hard limits of one leaf. Memory counts swap and page cache too; None is unlimited there and for CPU:
    the host's controller sees to the rest. ``pids``: processes and threads at the same time; None is
    ``MOST_PIDS``, where the backend can limit them."""

    memory_bytes: int | None = None
    cpu_cores: float | None = None
    pids: int | None = None

    def __post_init__(self) -> None:
        if self.memory_bytes is not None and self.memory_bytes < 1 << 20:
            raise SpecRefused(f"limits.memory_bytes must be at least 1 MiB, got {self.memory_bytes}")
        if self.cpu_cores is not None and not 0.01 <= self.cpu_cores <= 4096:
            raise SpecRefused(f"limits.cpu_cores must be from 0.01 to 4096, got {self.cpu_cores}")
        if self.pids is not None and self.pids < 1:
            raise SpecRefused(f"limits.pids must be at least 1, got {self.pids}")


class Isolation(msgspec.Struct, frozen=True, kw_only=True):
    """A view of the disk, and a process tree, of a program's own, for all its calls.

    What they write is kept apart from the host's disk, up to ``disk_bytes`` in all, seen by the program's
    later calls, and gone with the program. ``writable``: folders of the host that they change for real,
    without a bound. ``network``: whether they have more of it than a loopback of their own.
    """

    disk_bytes: int = 1 << 30
    writable: tuple[str, ...] = ()
    network: bool = True

    def __post_init__(self) -> None:
        if self.disk_bytes < 1 << 20:
            raise SpecRefused(f"isolation.disk_bytes must be at least 1 MiB, got {self.disk_bytes}")
        for folder in self.writable:
            if not os.path.isdir(folder):
                raise SpecRefused(f"isolation.writable: {folder!r} is not a folder")


class DiskUse(msgspec.Struct, frozen=True, kw_only=True):
    """Of an isolated program: what it has written so far, and may write in all. ``full``: a call was refused
    room, as far as can be told from outside."""

    used_bytes: int
    limit_bytes: int
    full: bool = False


class ToolSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One tool call: either ``argv`` or a shell ``command``.

    ``env`` replaces the caller's environment (None: inherit). ``tool_call`` is the id that joins
    this run to the LLM call that asked for it; one is made up if it is empty. Output is captured,
    stdout and stderr merged, and all but the first and last half of ``max_output_bytes`` dropped;
    or, with ``passthrough``, the caller's own stdio is used. ``timeout_s`` is wall time. ``hint``: what it
    is expected to need; without one, that of ``AGENT_RESOURCE_HINT`` counts (see ``hints``).
    ``nesting``: the command may make control groups and mounts of its own, for sandboxes in the sandbox;
    without it, it cannot write control group files, whatever user it is (see ``sealing``).
    ``tap``: progress that a shell command hides by a pipe is looked at too, where somebody listens, for
    which its text is changed (see ``tapping``).
    """

    argv: Sequence[str] = ()
    command: str = ""
    shell: str = "/bin/sh"
    cwd: str | None = None
    env: Mapping[str, str] | None = None
    tool_call: str = ""
    tool: str = "bash"
    hint: Hint | None = None
    timeout_s: float | None = None
    limits: Limits = Limits()
    max_output_bytes: int = 1 << 20
    passthrough: bool = False
    tap: bool = False
    nesting: bool = False

    def __post_init__(self) -> None:
        if bool(self.argv) == bool(self.command):
            raise SpecRefused("exactly one of argv and command must be given")
        if isinstance(self.argv, str):
            raise SpecRefused("argv must be a sequence of strings; give a string as command")
        if any("\0" in word for word in (*self.argv, self.command, self.cwd or "")):
            raise SpecRefused("argv, command and cwd must not contain NUL characters")
        if self.timeout_s is not None and not (self.timeout_s > 0 and math.isfinite(self.timeout_s)):
            raise SpecRefused(f"timeout_s must be a positive number of seconds, got {self.timeout_s}")
        if self.max_output_bytes < 0:
            raise SpecRefused(f"max_output_bytes must be >= 0, got {self.max_output_bytes}")
        for name, value in (self.env or {}).items():
            if not name or "=" in name or "\0" in name + value:
                raise SpecRefused(f"env: {name!r} is not a usable variable")

    @property
    def command_class(self) -> str:
        """The first program that the command runs, as far as its text tells: ``pytest``, also of
        ``cd x && python -m pytest -q`` and ``timeout 60 bash -c pytest``."""
        ran = programs(self.argv, self.command)
        words = ran[0] if ran else self.argv or self.command.split()
        return os.path.basename(next((word for word in words if "=" not in word), ""))


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a leaf used so far. ``peak_memory_bytes`` and ``cpu_s`` cover the whole process tree,
    unless the backend's capabilities say otherwise."""

    cpu_s: float
    peak_memory_bytes: int
    memory_bytes: int
    wall_s: float
    throttled_s: float = 0.0
    """For so long its CPU limit stopped it."""


class Pressure(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds in which at least one task of the leaf waited for the resource, since its start."""

    cpu_s: float
    memory_s: float
    io_s: float


class Ending(enum.Enum):
    """Why a tool call ended: by itself, at a limit of its own, or killed by somebody else."""

    EXITED = "exited"
    TIME_LIMIT = "time limit"
    MEMORY_LIMIT = "memory limit"
    KILLED = "killed"


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """What came of a tool call, for the agent. ``note`` says it in words, and is empty where there is
    nothing to act on. ``needs_s``: what the whole would take, by its progress until the time limit."""

    ending: Ending
    exit_status: int
    used: Usage
    pressure: Pressure | None = None
    disk: DiskUse | None = None
    done_fraction: float | None = None
    progress_source: str = ""
    needs_s: float | None = None
    slowed: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    note: str = ""


class ToolResult(msgspec.Struct, frozen=True, kw_only=True):
    """How a tool call ended.

    ``exit_status``: the main process's, 0-255; 128 + signal number if one killed it; 124 if it timed
    out. ``oom_killed``: the kernel killed some process of the leaf at its memory limit, perhaps not
    the main one. ``reason`` says it in words. ``unenforced`` names what was asked for and this
    machine could not do.
    """

    program: str
    tool_call: str
    exit_status: int
    output: bytes
    dropped_output_bytes: int
    usage: Usage
    timed_out: bool
    oom_killed: bool
    reason: str
    backend: str
    feedback: Feedback
    unenforced: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The output as text; bytes that are not UTF-8 become replacement characters."""
        return self.output.decode("utf-8", errors="replace")


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What a backend declares. A claim that is true here is tested.

    ``whole_tree``: usage and kill reach every descendant, whatever it did to escape. ``lost`` says in
    words what the machine does not give.
    """

    backend: str
    whole_tree: bool
    memory_limit: bool
    cpu_limit: bool
    pids_limit: bool
    freeze: bool
    peak_memory: bool
    pressure: bool
    lost: tuple[str, ...] = ()


class Undo(msgspec.Struct, frozen=True, kw_only=True):
    """How to take a setting back: control files to write, or marked processes to continue."""

    writes: tuple[tuple[str, str], ...] = ()
    resume: str = ""


class Leases(Protocol):
    """Whoever undoes settings when their lease ends, even if this process hangs."""

    def hold(self, key: str, lease_s: float, undo: Undo) -> None:
        """Carry ``undo`` out after ``lease_s``; replaces what is held under ``key``."""
        ...

    def drop(self, key: str) -> None:
        """The setting is gone; ``undo`` is not needed any more."""
        ...


class Leaf(Protocol):
    """Where one tool call runs. Thread-safe. Methods raise ``HostRefused`` when the kernel refuses,
    and ``Unsupported`` where the capabilities lack them; on a removed leaf settings do nothing.

    With ``lease_s`` a setting ends by itself after that many seconds, also if this process hangs or
    dies, and falls back to the last setting made without a lease. Setting it again renews it.
    """

    @property
    def cgroup_id(self) -> int | None:
        """The id that the kernel (and BPF) knows the leaf by; None without cgroup v2."""
        ...

    def limit_memory(self, limit_bytes: int | None, lease_s: float | None = None) -> None:
        """Over the limit the kernel reclaims and then kills; None lifts the limit."""
        ...

    def limit_cpu(self, cores: float | None, lease_s: float | None = None) -> None: ...

    def limit_pids(self, limit: int | None) -> None: ...

    def weigh_cpu(self, weight: int, lease_s: float | None = None) -> None:
        """Share against sibling leaves, 1 to 10000; 100 is usual."""
        ...

    def freeze(self, lease_s: float) -> None:
        """Stop all tasks until ``thaw`` or the end of the lease; does not wait until they stopped."""
        ...

    def thaw(self) -> None: ...

    def kill(self) -> None:
        """SIGKILL everything in the leaf, frozen or not; does not wait. Idempotent."""
        ...

    def pids(self) -> list[int]:
        """Live processes of the leaf."""
        ...

    def usage(self) -> Usage: ...

    def pressure(self) -> Pressure: ...

    def oom_kills(self) -> int:
        """Processes of the leaf that the kernel killed at the memory limit."""
        ...

    def entries(self) -> list[str]:
        """Files into which the id of a process is written to move it into the leaf, in this order; its next
        exec is then inside."""
        ...

    def marks(self) -> dict[str, str]:
        """Environment variables that its processes must carry."""
        ...

    def started(self, pid: int) -> None:
        """The main process runs; for backends that know their processes in no better way."""
        ...

    def ended(self, cpu_s: float, peak_memory_bytes: int) -> None:
        """The main process ended: what it and the children that it waited for used; for backends
        that have nothing better."""
        ...

    def remove(self) -> None:
        """Kill what is left and remove the leaf. Idempotent. Raises ``HostRefused`` if a process
        does not die within seconds."""
        ...


class Backend(Protocol):
    """Makes leaves for one runtime instance."""

    @property
    def capabilities(self) -> Capabilities: ...

    def roots(self) -> list[str]:
        """Folders of this instance, one a hierarchy, that hold nothing but its leaves."""
        ...

    def create(self, program: str, tool_call: str) -> Leaf:
        """Make a leaf, a new one also for an id that was there before. Raises ``HostRefused``."""
        ...

    def close_program(self, program: str) -> None:
        """Forget a program that has no leaves left; does nothing while it has some."""
        ...

    def close(self) -> None:
        """Kill and remove all leaves of the instance. Idempotent."""
        ...
