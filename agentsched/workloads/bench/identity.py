"""How well are the calls of real clients told apart, by each signal?

Real, unmodified clients run one and the same task at the same time, many runs of each, against a real daemon.
Its simulated model answers each of them in other words, as a sampled answer would be. Each run says on
the wire all that its client can be configured to say of who it is, and, under a header that the daemon
does not know, the truth. What the daemon learned of each call, in the order in which it learned it, is
then put before resolvers that believe only some of the signals: each row of the table has one signal
less, the strongest of those before. In the last row the ids of tool calls are also taken out of the
conversations, as an engine that mints none would see them.

A call's precision is the share of its program's calls, as found, that are of its run; its recall is the
share of its run's calls that were found in its program; the figures are means over calls. A sub-agent
is a run of its own.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import click
import msgspec
from rich.console import Console
from rich.table import Table

from agentsched.daemon.identity import Ask, Claim, Identities, call_digest
from agentsched.daemon.signals import KINDS
from agentsched.engines.byte_frontend import Mind
from agentsched.workloads.acting import ActingMind
from agentsched.workloads.acting_daemon import acting_daemon
from agentsched.workloads.bench import _found
from agentsched.workloads.live_clients import PYTHON_CLIENTS, TRUTH_HEADER, Driver, Run, node_clients

RESULT = Path("out/bench/identity.json")
TOOL_ID = re.compile(r"call_[A-Za-z0-9_-]{22}")
DELEGATE = ("Agent", {"description": "look", "prompt": "Look at it.", "subagent_type": "general-purpose"})
ALL_CLIENTS = "all clients"


@dataclass(slots=True)
class Heard:
    """One call as the daemon learned of it. ``steps`` are its events by their place among all events."""

    ask: Ask
    claim: Claim
    steps: dict[int, tuple[str, str]]


class Listening(Identities):
    """Identities that keep what they are asked and told."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Heard] = []
        self._numbers = count()
        self._open: dict[int, Heard] = {}

    def resolve(self, ask: Ask) -> Claim:
        claim = super().resolve(ask)
        self._open[id(claim)] = Heard(ask, claim, {})
        self._step(claim, "resolve")
        return claim

    def begun(self, claim: Claim) -> None:
        super().begun(claim)
        self.calls.append(self._open[id(claim)])

    def answered(self, claim: Claim, text: str) -> None:
        super().answered(claim, text)
        self._step(claim, "answered", text)

    def given_up(self, claim: Claim) -> None:
        super().given_up(claim)
        self._step(claim, "given_up")

    def mint(self, program: str, call: str) -> str:
        tool_call = super().mint(program, call)
        # Beside a call with tools, a side request of the program may be live.
        asking = (h for h in reversed(self.calls) if h.claim.program == program and h.ask.chat.tools)
        newest = next(h for h in asking if not _over(h))
        newest.steps[next(self._numbers)] = ("mint", tool_call)
        return tool_call

    def _step(self, claim: Claim, kind: str, value: str = "") -> None:
        self._open[id(claim)].steps[next(self._numbers)] = (kind, value)


def _over(heard: Heard) -> bool:
    return any(kind in ("answered", "given_up") for kind, _ in heard.steps.values())


def replayed(calls: list[Heard], kinds: tuple[str, ...], seen: Callable[[Ask], Ask]) -> list[Claim]:
    """The claims that a resolver makes which believes ``kinds`` and sees requests as ``seen`` gives them."""
    known = Identities(kinds=kinds)
    steps = sorted((n, index, step) for index, h in enumerate(calls) for n, step in h.steps.items())
    claims: dict[int, Claim] = {}
    for _, index, (kind, value) in steps:
        if kind == "resolve":
            claims[index] = known.resolve(seen(calls[index].ask))
            known.begun(claims[index])
        elif kind == "mint":
            known.adopt(value, claims[index].program, str(index))
        elif kind == "answered":
            known.answered(claims[index], value)
        else:
            known.given_up(claims[index])
    return [claims[index] for index in range(len(calls))]


def without_ids(ask: Ask) -> Ask:
    """The request as it would be had nobody minted ids of tool calls."""
    text = TOOL_ID.sub("", json.dumps(ask.chat.messages))
    chat = msgspec.structs.replace(ask.chat, messages=json.loads(text))
    return msgspec.structs.replace(ask, chat=chat, digest=call_digest(chat))


def truth(ask: Ask) -> tuple[str, str]:
    """The run that a call is of: what it was told to say, and which of the client's agents it is."""
    headers = ask.origin.headers
    agent = headers.get("x-claude-code-agent-id") or headers.get("thread-id") or ""
    return headers.get(TRUTH_HEADER, "?"), agent


def scores(pairs: list[tuple[str, Any]]) -> tuple[float, float]:
    """Precision and recall of (found program, true run) by call."""
    both, found, true = Counter(pairs), Counter(p for p, _ in pairs), Counter(t for _, t in pairs)
    precision = sum(n * n / found[p] for (p, _), n in both.items()) / len(pairs)
    recall = sum(n * n / true[t] for (_, t), n in both.items()) / len(pairs)
    return precision, recall


@contextmanager
def served(mind: Mind, identities: Identities) -> Iterator[str]:
    """A daemon in a thread of its own; gives its URL."""
    with acting_daemon(mind, make_identities=lambda _: identities) as url:
        yield url


def said(name: str, number: int) -> tuple[dict[str, str], dict[str, Any]]:
    """All that a run says of who it is, in headers and in fields of the body."""
    headers = {
        "x-agentsched-program": name,
        "x-session-id": name,
        "traceparent": f"00-{number:032x}-{number:016x}-01",
    }
    return headers, {"nvext": {"agent_context": {"session_id": name, "trajectory_id": name}}}


def drive(drivers: dict[str, Driver], runs: int, url: str, workers: int, folder: Path) -> list[str]:
    """Let all clients run, mixed; what failed, in words."""
    with ThreadPoolExecutor(workers) as pool:
        waiting: dict[Future[None], str] = {}
        for number in range(runs):
            for client, driver in drivers.items():
                name = f"{client}#{number}"
                place = folder / re.sub(r"\W+", "-", name)
                place.mkdir()
                headers, body = said(name, len(waiting) + 1)
                if driver not in PYTHON_CLIENTS.values():  # with sub-agents, which have ids of their own
                    headers, body = {}, {}
                path = f"{url}/program/{place.name}"
                run = Run(name=name, url=path, folder=place, headers=headers, body=body)
                waiting[pool.submit(driver, run)] = name
        ended = {waiting[done]: done.exception() for done in as_completed(waiting)}
    return [f"{name}: {type(error).__name__}: {error}" for name, error in ended.items() if error]


def table(calls: list[Heard]) -> list[dict[str, Any]]:
    """One row for each strongest signal; figures for all clients and for each."""
    rows = []
    for index, kind in enumerate(KINDS):
        last = index == len(KINDS) - 1
        claims = replayed(calls, KINDS[index:], without_ids if last else lambda ask: ask)
        pairs: dict[str, list[tuple[str, Any]]] = defaultdict(list)
        for heard, claim in zip(calls, claims, strict=True):
            run = truth(heard.ask)
            for group in (ALL_CLIENTS, run[0].rpartition("#")[0]):
                pairs[group].append((claim.program, run))
        rows.append(
            {
                "signal": kind,
                "known_by": dict(Counter(claim.known_by for claim in claims).most_common()),
                "scores": {group: scores(found) for group, found in pairs.items()},
            }
        )
    return rows


def show(rows: list[dict[str, Any]], calls: list[Heard], console: Console) -> None:
    """The tables, for people and for the docs."""
    clients = list(rows[0]["scores"])
    shown = Table("strongest signal left", "precision %", "recall %", "known by (calls)", title="All clients")
    for row in rows:
        precision, recall = (f"{100 * score:.2f}" for score in row["scores"][ALL_CLIENTS])
        by = ", ".join(f"{kind} {n}" for kind, n in row["known_by"].items())
        shown.add_row(row["signal"], precision, recall, by)
    console.print(shown)
    counted = Counter(truth(heard.ask)[0].rpartition("#")[0] for heard in calls)
    shown = Table(
        "client", "calls", *(row["signal"] for row in rows), title="Precision / recall, %, by client"
    )
    for client in clients[1:]:
        figures = [" / ".join(f"{100 * s:.1f}" for s in row["scores"][client]) for row in rows]
        shown.add_row(client, str(counted[client]), *figures)
    console.print(shown)


@click.command()
@click.option("--runs", default=50, show_default=True, help="Runs of each client of a Python package.")
@click.option("--node-runs", default=8, show_default=True, help="Runs of each client from npm.")
@click.option("--turns", default=6, show_default=True, help="Calls of tools in each run.")
@click.option("--workers", default=16, show_default=True, help="Runs at the same time.")
@click.option(
    "--npm",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    help="Folder node_modules/.bin with claude and codex; without it they are left out.",
)
@click.option(
    "--json", "path", type=click.Path(path_type=Path, dir_okay=False), default=RESULT, show_default=True
)
@click.option("--same-answers", is_flag=True, help="All runs of a client get the same answers.")
def main(
    runs: int,
    node_runs: int,
    turns: int,
    workers: int,
    npm: Path | None,
    path: Path,
    same_answers: bool,
) -> None:
    """Tell the calls of real clients apart, by each signal, and print how well that went."""
    for name in ("OPENAI_AGENTS_DISABLE_TRACING", "MSWEA_CONFIGURED", "MSWEA_SILENT_STARTUP"):
        os.environ.setdefault(name, "1")
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    console, began_s = Console(width=180), time.monotonic()
    known = Listening()
    mind = ActingMind(turns, vary=not same_answers, delegate=DELEGATE)
    with tempfile.TemporaryDirectory() as folder, served(mind, known) as url:
        failed = drive(PYTHON_CLIENTS, runs, url, workers, Path(folder))
        if npm is not None:
            failed += drive(node_clients(npm.resolve()), node_runs, url, 4, Path(folder))
    calls = [heard for heard in known.calls if _over(heard)]
    rows = table(calls)
    show(rows, calls, console)
    console.print(f"{len(calls):,} calls in {time.monotonic() - began_s:.0f} s; {len(failed)} runs failed")
    for line in failed:
        console.print(line, markup=False)
    result = _found.headed("identity", {"calls": len(calls), "failed": failed, "rows": rows})
    _found.keep(result, path, console)


if __name__ == "__main__":
    main()
