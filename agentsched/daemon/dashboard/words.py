"""Decisions, and what engines do by themselves, in plain words."""

from __future__ import annotations

from typing import assert_never

from agentsched.core import decisions as de
from agentsched.core.outlook import Wait
from agentsched.core.standing import worth_at

MUCH = 1e5
"""Worth that only says: before all others."""


def tokens(count: float) -> str:
    """As 940, 12k, 1.2M."""
    if count < 1_000:
        return f"{count:.0f}"
    if count < 999_500:
        return f"{count / 1_000:.0f}k" if count >= 9_950 else f"{count / 1_000:.1f}k"
    return f"{count / 1_000_000:.1f}M"


def seconds(count: float) -> str:
    """As 0.4 s, 12 s, 3.5 min, 2 h."""
    if count < 10:
        return f"{count:.1f} s"
    if count < 120:
        return f"{count:.0f} s"
    return f"{count / 60:.1f} min" if count < 7200 else f"{count / 3600:.1f} h"


def worth(value: float) -> str:
    """What a second of holding KV saves."""
    if value >= MUCH:
        return "more than any other"
    return "next to nothing" if value <= de.YIELDS else f"{value:.2g}/s"


def decision(said: de.AnyDecision, now: float) -> str:
    """What it orders, and why. ``now``: monotonic seconds, when it was decided."""
    told, reason = _order(said, now), said.reason
    if isinstance(said, de.Retain):
        reason = reason.partition(": index")[0]  # that is the worth
    return f"{told}: {reason}" if reason else told


def _order(said: de.AnyDecision, now: float) -> str:
    match said:
        case de.Admit():
            return f"gets a place on {said.engine}"
        case de.Pass():
            return f"is let through to {said.engine} without a place"
        case de.Pause():
            return "loses its place"
        case de.Reject():
            return f"is turned away, to come back in {seconds(said.retry_after_s)}"
        case de.Rank():
            return f"is number {said.key:.4g} in the engine's order"
        case de.Retain():
            return _kept(said, now)
        case de.Prefetch():
            return f"its KV is to be back on the device within {seconds(max(0.0, said.by_s - now))}"
        case de.Release():
            return "its KV is worth nothing any more"
        case de.EngineTerms():
            host = f", KV worth less than {worth(said.host_price)} has no place in host memory"
            return f"KV worth no more than {worth(said.device_price)} yields to new calls" + (
                host if said.host_price else ""
            )
        case _:
            assert_never(said)


def _kept(order: de.Retain, now: float) -> str:
    held = tokens(order.segments[-1].end_tokens) if order.segments else "0"
    value = worth_at(order.segments[0].device, now) if order.segments else 0.0
    if value <= de.YIELDS:
        return f"its {held} tokens stay only while nobody needs the room"
    ends_s = max(0.0, order.lease_until_s - now)
    return f"its {held} tokens are kept, worth {worth(value)} now and nothing in {seconds(ends_s)}"


def evicted(count: int, left: int, value: float | None, price: float | None) -> str:
    """The engine dropped ``count`` tokens, and ``left`` stay; ``value`` and ``price`` in 1/s, where known."""
    said = f"the engine evicted {tokens(count)} tail tokens, {tokens(left)} stay"
    if not left:
        said = f"the engine evicted all {tokens(count)} tokens"
    if value is not None and value < MUCH:  # else it is no part of what its next call reads
        said += f": worth {worth(value)}"
        if price is not None:
            said += f", price {worth(price)}"
    return said


def moved(count: int, left: int, *, to_host: bool) -> str:
    """Between the device, where ``left`` tokens are now, and host memory."""
    if to_host:
        return (
            f"the engine moved {tokens(count)} tail tokens to host memory, {tokens(left)} stay on the device"
        )
    return (
        f"the engine brought {tokens(count)} tokens back from host memory, {tokens(left)} are on the device"
    )


def wait(waiting: Wait, host: str, pace_s: float | None) -> str:
    """Why it waits for a place. ``pace_s``: seconds from call to call."""
    match waiting.cause:
        case "engine":
            return "no engine is attached"
        case "host":
            return f"the memory of {host}, where its tools run, is full"
        case "now":
            return (
                f"programs would hold {tokens(waiting.need_tokens)} tokens with it, "
                f"and {tokens(waiting.bound_tokens)} may be filled"
            )
        case "peak":
            after = f"in about {waiting.calls:.0f} calls of each program"
            if pace_s is not None:
                after = f"at about +{seconds(waiting.calls * pace_s)}"
            return (
                f"admitting it would overflow {after}: {tokens(waiting.need_tokens)} tokens at the peak, "
                f"{tokens(waiting.bound_tokens)} allowed"
            )
        case "line":
            return f"{waiting.behind} stands before it in line"
        case "policy":
            return "the policy holds it back"
        case _:
            assert_never(waiting.cause)


WITHOUT_REASON = {
    "admit": "gets a place",
    "pass": "is let through without a place",
    "pause": "loses its place",
    "reject": "is turned away, to come back later",
    "wait": "waits for a place",
    "rank": "its order in the engine changed",
    "retain": "what its KV is worth changed",
    "prefetch": "its KV is brought back to the device",
    "release": "its KV is worth nothing any more",
}
"""For tenants: reasons tell how much others use."""
