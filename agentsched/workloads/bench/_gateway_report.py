"""What the figures of ``gateway.py`` say: held against the goals, and as tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Figures = dict[str, dict[str, float]]
Goal = dict[str, float | bool | str]
BASE = "aiohttp"
OURS = "agentsched"
ROUTER = "sglang-router"
DIRECT = "direct"


def added_ms(figures: Figures, name: str, figure: str) -> float:
    """How much longer than without a proxy."""
    return figures[name][figure] - figures[DIRECT][figure]


def goals(figures: Figures, samples: Mapping[str, Mapping[str, list[float]]]) -> dict[str, Goal]:
    """Each goal whose figures are there."""
    found: dict[str, Goal] = {}

    def most(name: str, value: float, want: float) -> None:
        found[name] = {"value": round(value, 3), "want": f"<= {want:g}", "met": value <= want}

    def least(name: str, value: float, want: float) -> None:
        found[name] = {"value": round(value, 3), "want": f">= {want:g}", "met": value >= want}

    ours = figures.get(OURS, {})
    for base in (BASE, f"{BASE}-uvloop"):
        if not ours or base not in figures:
            continue
        theirs, tag = figures[base], f"over_{base.replace('-', '_')}"
        for percentile, want in (("p50", 1.2), ("p99", 1.4)):
            figure = f"one_{percentile}_ms_1k"
            ratio = added_ms(figures, OURS, figure) / added_ms(figures, base, figure)
            most(f"added_{percentile}_{tag}", ratio, want)
        least(f"peak_1k_{tag}", ours["peak_1k"] / theirs["peak_1k"], 0.9)
        least(f"peak_60k_{tag}", ours["peak_60k"] / theirs["peak_60k"], 0.75)
        most(f"cpu_chunk_{tag}", ours["cpu_us_chunk"] / theirs["cpu_us_chunk"], 1.2)
    if "memory_mb" in ours:
        most("memory_mb", ours["memory_mb"], 60)
    if ours and ROUTER in figures:
        least("peak_1k_over_sglang_router", ours["peak_1k"] / figures[ROUTER]["peak_1k"], 0.6)
    if "open_streams" in ours:
        least("streams_open_at_once", ours["open_streams"] - ours["open_failed"], 2000)
    if memory := samples.get(OURS, {}).get("soak_memory_mb"):
        most("memory_growth_over_soak", memory[-1] / memory[0], 1.05)
        least("soak_requests", samples[OURS]["soak_requests"][-1], 100_000)
    return found


def markdown(told: Mapping[str, Any]) -> str:
    """The summary that is committed."""
    figures: Figures = told["figures"]
    host = ", ".join(f"{name} {value}" for name, value in told["host"].items())
    names = [name for name in figures if name != DIRECT]
    lines = [
        "# The gateway beside plain proxies",
        "",
        f"`{told['command']}`, agentsched {told['version']}; made on {host}.",
        "Medians over the rounds; docs/gateway.md says what each figure is.",
    ]
    for size in ("1k", "60k", "250k"):
        lines += ["", f"Bodies of {size.removesuffix('k')} kB:", ""]
        lines += [
            "| | peak a second | CPU us a request | added P50 / P99 ms, one connection "
            "| P50 / P99 ms, at half its peak |",
            "|---|---|---|---|---|",
        ]
        for name in names:
            own = figures[name]
            if f"peak_{size}" not in own:
                continue
            added = [added_ms(figures, name, f"one_{p}_ms_{size}") for p in ("p50", "p99")]
            half = [own[f"half_{p}_ms_{size}"] for p in ("p50", "p99")]
            lines.append(
                f"| {name} | {own[f'peak_{size}']:,.0f} | {own[f'cpu_us_{size}']:.0f} "
                f"| {added[0]:.3f} / {added[1]:.3f} | {half[0]:.2f} / {half[1]:.2f} |"
            )
    lines += ["", "| | CPU us a streamed chunk | first chunk P50 / P99 ms | memory MB |", "|---|---|---|---|"]
    for name in names:
        own = figures[name]
        if "cpu_us_chunk" in own:
            first = f"{own['stream_first_p50_ms']:.2f} / {own['stream_first_p99_ms']:.2f}"
            lines.append(f"| {name} | {own['cpu_us_chunk']:.1f} | {first} | {own['memory_mb']:.0f} |")
    lines += ["", "| goal | value | want | met |", "|---|---|---|---|"]
    for name, goal in told["goals"].items():
        lines.append(f"| {name} | {goal['value']} | {goal['want']} | {'yes' if goal['met'] else 'no'} |")
    lines += [f"\n{name} was left out: {why}" for name, why in told["missing"].items()]
    return "\n".join(lines) + "\n"
