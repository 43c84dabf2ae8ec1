"""The tables of ``scripts/bench cgroups``, from its record."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any


def markdown(result: dict[str, Any]) -> str:
    """All parts that there are, and the goals."""
    host, parts = result["host"], result["parts"]
    lines = [
        "# Tool calls: cost and control",
        "",
        f"`{result['command']}` on {host['cpu']}, {host['cores']} cores, {host['system']}, backend "
        f"{result['backend']}, {result['took_s']:.0f} s.",
        "",
    ]
    for name, table in (
        ("cost", _cost),
        ("reaction", _reaction),
        ("three", _three),
        ("replay", _replay),
        ("neighbour", _neighbour),
    ):
        if name in parts:
            lines += [*table(parts[name]), ""]
    rows = [
        [name, goal["value"], goal["want"], "yes" if goal["met"] else "**no**"]
        for name, goal in result["goals"].items()
    ]
    return "\n".join([*lines, "## Goals", "", *_table(["", "value", "want", "met"], rows), ""])


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    def line(cells: Iterable[object]) -> str:
        return "| " + " | ".join("-" if cell is None else str(cell) for cell in cells) + " |"

    return [line(head), line("---" for _ in head), *(line(row) for row in rows)]


def _cost(part: dict[str, Any]) -> list[str]:
    whole, added = part["time"]["whole"], part["time"]["added"]
    rows = [
        [way, values["median_ms"], values["p95_ms"], added.get(way, {}).get("median_ms"), values["calls"]]
        for way, values in whole.items()
    ]
    rate, live = part["sustained"], part["live"]
    return [
        "## Cost of a call (`true`)",
        "",
        *_table(["", "median, ms", "P95, ms", "added over fork and exec, median ms", "calls"], rows),
        "",
        f"{rate['asked_per_s']:g} calls a second asked, {rate['done_per_s']} done; a call "
        f"{rate['call']['median_ms']} ms (P95 {rate['call']['p95_ms']}), begun "
        f"{rate['late']['median_ms']} ms late (P95 {rate['late']['p95_ms']}).",
        "",
        f"{live['leaves']} live leaves, up in {live['up_s']} s, {live['failed']} failed; one more call "
        f"then takes {live['one_more']['median_ms']} ms; all gone in {live['down_s']} s.",
    ]


def _reaction(part: dict[str, Any]) -> list[str]:
    rows = [[s, f["p50_ms"], f["p95_ms"], f["p99_ms"], f["late"], f["bursts"]] for s, f in part.items()]
    return [
        "## From a burst crossing its threshold to the cap (150 MiB a second)",
        "",
        *_table(["source", "P50, ms", "P95, ms", "P99, ms", "too late", "bursts"], rows),
    ]


def _three(part: dict[str, Any]) -> list[str]:
    rows = [
        [
            way,
            f"{f['agents_survive']} of {f['rounds']}",
            f"{f['calls_done']} of {3 * f['rounds']}",
            f"{f['high_done']} of {f['rounds']}",
            round(statistics.median(f["high_p95_ms"]), 3) if f["high_p95_ms"] else None,
        ]
        for way, f in part.items()
    ]
    head = ["", "agents survive", "calls done", "the important one", "its P95 of allocating 1 MiB, median ms"]
    return ["## Three agents, one burst", "", *_table(head, rows)]


def _replay(part: dict[str, Any]) -> list[str]:
    names = {
        "agents_survive": "agents survive",
        "tasks_per_min": "calls done a minute",
        "concurrency": "useful calls at a time",
        "ended_calls": "tries ended",
        "ended_by_kernel": "of these by the kernel",
        "ended_untold": "not told why",
        "given_up": "calls given up",
        "memory_held": "memory held",
        "high_p95_slowdown": "P95 slowdown of important calls",
    }
    ways = part["ways"]
    rows = [
        [
            text,
            *(
                f"{ways[way][name]:g}{_range(ways[way]['rounds'], name)}"
                if ways[way][name] is not None
                else None
                for way in ways
            ),
        ]
        for name, text in names.items()
    ]
    return [
        f"## {part['agents']} agents in {part['host_mib']} MiB, {part['of']} "
        f"(mean peak {part['mean_peak_mib']} MiB)",
        "",
        *_table(["mean of rounds (least to most)", *ways], rows),
    ]


def _range(rounds: Sequence[dict[str, Any]], name: str) -> str:
    values = (
        [float(row[name]) for row in rows] if (rows := [r for r in rounds if r[name] is not None]) else []
    )
    return f" ({min(values):g} to {max(values):g})" if len(values) > 1 else ""


def _neighbour(part: dict[str, Any]) -> list[str]:
    rows = [[name, f["slowdown"], f"{f['least']} to {f['most']}"] for name, f in part.items()]
    return [
        "## One that needs a core, beside tools that take all",
        "",
        *_table(["", "slowdown", "range"], rows),
    ]
