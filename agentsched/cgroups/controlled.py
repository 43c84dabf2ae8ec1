"""What joins a runtime's tool calls to the controller of the host, where there can be one."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from agentsched.cgroups.contract import Capabilities, Leaf, SpecRefused, ToolSpec
from agentsched.cgroups.hints import Hint
from agentsched.cgroups.leaf import CgroupLeaf

if TYPE_CHECKING:
    from agentsched.cgroups.control.client import Client


class Standing(NamedTuple):
    """What a program's calls count for; None: nothing was said."""

    weight: float | None = None
    priority: int | None = None

    @classmethod
    def checked(cls, weight: float | None, priority: int | None) -> Standing:
        """Raises ``SpecRefused``."""
        if weight is None and priority is None:
            return cls()  # without importing the core: that takes longer than a command
        from agentsched.core.events import LEAST_WEIGHT, MOST_PRIORITY, MOST_WEIGHT

        if weight is not None and not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
            raise SpecRefused(f"weight must be from {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}, got {weight!r}")
        if priority is not None and not 0 <= priority <= MOST_PRIORITY:
            raise SpecRefused(f"priority must be from 0 to {MOST_PRIORITY}, got {priority!r}")
        return cls(weight, priority)


class Verdict(NamedTuple):
    """What the controller did to a call. ``waited_s``: it held it back for so long in all. ``why``: it ended
    it (a value of ``core.tool_control.Why``), when it held ``memory_bytes`` on a host of ``host_bytes``."""

    waited_s: float = 0.0
    why: str = ""
    memory_bytes: int = 0
    host_bytes: int = 0


class Controlled:
    """One runtime's calls. Thread-safe."""

    def __init__(self, can: Capabilities) -> None:
        self._client: Client | None = None
        self._backend = can.backend
        if can.memory_limit and can.freeze:
            from agentsched.cgroups.control.client import Client, switched_on

            self._client = Client() if switched_on() else None

    @property
    def on(self) -> bool:
        """Whether calls can be controlled here and are to be."""
        return self._client is not None

    @property
    def connected(self) -> bool:
        """Whether a controller hears of the calls now."""
        return self._client is not None and self._client.connected

    def began(self, leaf: Leaf, program: str, standing: Standing, spec: ToolSpec, hint: Hint | None) -> None:
        """The call is about to run in its leaf."""
        if self._client is None or not isinstance(leaf, CgroupLeaf):
            return
        from agentsched.cgroups.control.messages import Began

        self._client.began(
            Began(
                leaf=leaf.folder,
                folders=leaf.folders,
                backend=self._backend,
                program=program,
                key=f"{spec.tool}:{spec.command_class}",
                stated_bytes=(hint.memory_bytes or 0) if hint else 0,
                limit_bytes=spec.limits.memory_bytes,
                intent=(hint.cpu_weight or 100) if hint else 100,
                weight=standing.weight,
                priority=standing.priority,
            )
        )

    def ended(
        self, leaf: Leaf, peak_bytes: int = 0, *, by_itself: bool = False, killed: bool = False
    ) -> Verdict:
        """The call is over. Says the truth once; later it knows nothing."""
        if self._client is None or not isinstance(leaf, CgroupLeaf):
            return Verdict()
        done = self._client.ended(leaf.folder, peak_bytes, by_itself=by_itself, killed=killed)
        return Verdict(done.waited_s, done.why, done.memory_bytes, done.host_bytes)

    def forsake(self) -> None:
        """In a forked child."""
        if self._client is not None:
            self._client.forsake()

    def close(self) -> None:
        """No more calls."""
        if self._client is not None:
            self._client.close()
