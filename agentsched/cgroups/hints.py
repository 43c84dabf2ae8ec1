"""What an agent says beforehand of a command's needs: evidence for controllers, never a limit.

Where it comes from, first that is there: the caller (``ToolSpec.hint``), ``AGENT_RESOURCE_HINT`` set in
front of the command itself, as an agent writes it in its shell call, the same variable in the tool's
environment, and ``_meta`` of an MCP call (``of_mcp``). What an agent wrote wrongly is told to it and stops
nothing.
"""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from agentsched.cgroups.commands import assignments
from agentsched.cgroups.contract import SpecRefused, ToolSpec

VARIABLE = "AGENT_RESOURCE_HINT"
MCP_HINT = "agentsched/hint"
"""Key in ``params._meta`` of an MCP ``tools/call`` request; the value is the same text."""

FORM = "memory:high,cpu:low,time:medium or amounts as memory:2G,cpu:1.5,time:90s"


class Level(enum.Enum):
    """How much of a resource an agent expects that its command needs."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"


_CPU_WEIGHTS = {Level.LOW: 50, Level.MEDIUM: 100, Level.HIGH: 200}
_AMOUNT = {
    "memory": re.compile(r"(\d+(?:\.\d+)?)([kmgt]?)(?:i?b)?"),
    "cpu": re.compile(r"(\d+(?:\.\d+)?)(?:cores?)?()"),
    "time": re.compile(r"(\d+(?:\.\d+)?)([smh]?)"),
}
_UNITS = {"memory": {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}}
_UNITS |= {"cpu": {"": 1}, "time": {"": 1, "s": 1, "m": 60, "h": 3600}}


class Hint(msgspec.Struct, frozen=True, kw_only=True):
    """A level or an amount for each resource: bytes at most, cores, seconds of wall time.

    The CPU level sets the leaf's CPU weight, and counts in its program's. The amount of memory is told to the
    daemon, which believes it where it has not seen more, and to the controller of the host, as what is
    expected. The rest stands in the feedback, beside what was used.
    """

    memory: Level | None = None
    cpu: Level | None = None
    time: Level | None = None
    memory_bytes: int | None = None
    cpu_cores: float | None = None
    time_s: float | None = None

    @classmethod
    def parse(cls, text: str) -> Hint:
        """Read ``memory:high``, ``memory:2G,cpu:1.5,time:90s`` and the like. Raises ``SpecRefused``."""
        found: dict[str, Any] = {}
        for part in text.split(","):
            resource, _, value = part.strip().lower().partition(":")
            read = _read(resource.strip(), value.strip())
            if read is None:
                raise SpecRefused(
                    f"hint {text!r}: {part.strip()!r} is not <memory|cpu|time>:<low|medium|high|amount>, "
                    f"for example {FORM}"
                )
            if resource.strip() in {name.partition("_")[0] for name in found}:
                raise SpecRefused(f"hint {text!r}: {resource.strip()} is given twice")
            found |= read
        return cls(**found)

    @property
    def cpu_weight(self) -> int | None:
        """The leaf's share against its siblings, 100 being usual."""
        return _CPU_WEIGHTS[self.cpu] if self.cpu else None


def _read(resource: str, value: str) -> dict[str, Any] | None:
    if resource not in _AMOUNT:
        return None
    if value in Level._value2member_map_:
        return {resource: Level(value)}
    match = _AMOUNT[resource].fullmatch(value)
    amount = float(match[1]) * _UNITS[resource][match[2]] if match else 0.0
    if not 0 < amount < 1e15 or not math.isfinite(amount):
        return None
    if resource == "memory":
        return {"memory_bytes": int(amount)}
    return {"cpu_cores" if resource == "cpu" else "time_s": amount}


def hint_of(spec: ToolSpec, environment: Mapping[str, str]) -> tuple[Hint | None, str]:
    """The hint that counts for a call, and what is wrong with one that the agent gave."""
    if spec.hint is not None:
        return spec.hint, ""
    text = assignments(spec.argv, spec.command).get(VARIABLE) or environment.get(VARIABLE, "")
    return _forgiving(text)


def of_mcp(params: Mapping[str, Any]) -> tuple[Hint | None, str]:
    """The hint in the parameters of an MCP ``tools/call``: ``{"_meta": {"agentsched/hint": "time:90s"}}``."""
    meta = params.get("_meta")
    text = meta.get(MCP_HINT, "") if isinstance(meta, Mapping) else ""
    return _forgiving(text) if isinstance(text, str) else (None, f"{MCP_HINT} must be text, as {FORM}")


def _forgiving(text: str) -> tuple[Hint | None, str]:
    if not text:
        return None, ""
    try:
        return Hint.parse(text), ""
    except SpecRefused as error:
        return None, str(error)
