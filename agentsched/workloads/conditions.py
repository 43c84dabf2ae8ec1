"""What a simulated run has to bear."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """What the run has to bear. ``concurrency`` caps how many programs are alive at once (closed loop:
    the next begins when one ends); without it programs arrive at their own times (open loop).
    ``control_delay_s`` holds up orders to engines and their reports; ``lost_orders`` is the share of
    orders that never arrive. ``report_every_s`` is the engines' interval of reports. ``tool_cores`` and
    ``tool_memory_bytes`` limit each of the ``tool_hosts`` on which tools run; None: without limit.
    ``told_share`` of the tools tell of their progress."""

    concurrency: int | None = None
    control_delay_s: float = 0.0
    lost_orders: float = 0.0
    report_every_s: float = 0.5
    tool_hosts: int = 1
    tool_cores: float | None = None
    tool_memory_bytes: int | None = None
    told_share: float = 0.0
    seed: int = 0
    check: bool = False
