"""What outlives ``kill -9``: a daemon under load, killed at random moments, and held against its clients.

Agents with OpenAI's client library call a real ``agentsched serve`` with the simulated engine. At a random
moment of each life (also while it starts) it is killed, its state looked at, and a new one started. Held
against what the clients got:

* **lost programs**: a run that has got an answer and goes on as another program, is not known after a start,
  or not up to date, but for answers younger than ``LOSS_S`` when the daemon was killed;
* **wrong accounts**: anything counted twice, or missing though it was answered longer ago than that;
* **orphans**: processes that outlive the daemon;
* **differences**: decisions that a replay of the logs does not give.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import click
from rich.console import Console

from agentsched.core.log import read, steps
from agentsched.daemon.charges import DELIVERED, Charges
from agentsched.workloads.bench import _found
from agentsched.workloads.bench._retrying import Agents, Got, Run
from agentsched.workloads.bench._victim import Victim

RESULT = Path("out/bench/kills.json")

LOSS_S = 0.25
"""What is stated is 0.1 s and a write; on a busy machine the event loop may be late."""
LIFE_S = (0.2, 3.0)
SETTLE_S = 0.2
"""In which clients read what was sent to them before the kill."""
KV_TOKENS = 30_000


@dataclass
class Outcome:
    """What was found. ``lost_answers`` of ``answers`` are not in the accounts, since they were too young when
    the daemon was killed. ``unknown``: programs of no run, or of one that was closed."""

    kills: int = 0
    kills_while_starting: int = 0
    runs: int = 0
    answers: int = 0
    tries: int = 0
    lost_answers: int = 0
    lost_programs: list[str] = field(default_factory=list)
    wrong_accounts: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    orphans: list[int] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)
    logs: int = 0
    events: int = 0
    decisions: int = 0
    ready_s: list[float] = field(default_factory=list)


class Trial:
    """One daemon's lives. Needs a running event loop."""

    def __init__(self, folder: Path, *, agents: int, seed: int, life_s: tuple[float, float] = LIFE_S) -> None:
        self.outcome = Outcome()
        self._victim = Victim(folder, "--engine", "simulated", "--kv-tokens", str(KV_TOKENS))
        self._random = Random(seed)
        self._life_s = life_s
        self._agents = Agents(self._victim.url, agents, seed)
        self._kills_s: list[float] = []
        self._charged = Charges()
        self._answers_seen = 0
        self._missing: list[tuple[Run, float]] = []

    async def go(self, kills: int, patience_s: float) -> Outcome:
        """All of it. Raises ``TimeoutError`` if the agents do not come to their end."""
        out = self.outcome
        async with aiohttp.ClientSession() as http:
            try:
                for number in range(kills):
                    await self._one_life(http, from_ready=number % 2 == 1)
                self._victim.start()
                await self._look(http)
                await self._agents.end(patience_s)
                await asyncio.sleep(LOSS_S)
                known = {program["program"] for program in await self._victim.ready(http)}
            finally:
                self._agents.cancel()
                status = self._victim.end()
        if status:
            raise RuntimeError(f"the daemon ended with status {status}")
        self._compare_account(None)
        out.runs, out.answers = len(self._agents.runs), len(self._agents.answers)
        out.tries = self._agents.tries
        self._compare_names(known)
        self._replay()
        return out

    async def _one_life(self, http: aiohttp.ClientSession, *, from_ready: bool) -> None:
        """``from_ready``: it is as long from then on, so that a busy machine sees more than starts."""
        out = self.outcome
        self._victim.start()
        looking = asyncio.create_task(self._look(http))
        if from_ready:
            await asyncio.wait([looking])
        await asyncio.sleep(self._random.uniform(*self._life_s))
        self._agents.check()
        if not looking.done():
            out.kills_while_starting += 1
            looking.cancel()
        self._kills_s.append(time.monotonic())
        out.orphans += await self._victim.kill()
        out.kills += 1
        await asyncio.wait([looking])
        if not looking.cancelled():
            looking.result()
        await asyncio.sleep(SETTLE_S)
        self._compare_account(self._kills_s[-1])

    async def _look(self, http: aiohttp.ClientSession) -> None:
        """Whether the daemon knows, once it is ready, what the last one knew."""
        began_s = time.monotonic()
        known = {program["program"]: program for program in await self._victim.ready(http)}
        now_s = time.monotonic()
        self.outcome.ready_s.append(round(now_s - began_s, 3))
        if not self._kills_s:
            return
        old_s = self._kills_s[-1] - LOSS_S
        for run in self._agents.runs:
            old = [got for got in run.answers if got.at_s < old_s and not self._was_young(got.at_s)]
            old = old or [got for got in run.answers[:1] if got.at_s < old_s + LOSS_S + SETTLE_S]
            if run.closed_s is not None and run.closed_s < old_s and not self._was_young(run.closed_s):
                self.outcome.unknown += [got.program for got in old[-1:] if got.program in known]
            elif old and run.closed_s is None:
                calls = sum(got.program == old[-1].program for got in old)
                if known.get(old[-1].program, {"calls_done": 0})["calls_done"] < calls:
                    self._missing.append((run, now_s))

    def _compare_account(self, killed_s: float | None) -> None:
        """What was answered since this was last asked, and what was charged; equal, but for what was too
        young at a kill."""
        new = self._agents.answers[self._answers_seen :]
        self._answers_seen += len(new)
        young = [] if killed_s is None else [got for got in new if got.at_s > killed_s - LOSS_S]
        charged, before = self._victim.account(), self._charged
        self._charged = charged
        for kind in DELIVERED:
            least, most = (sum(_amount(got, kind) for got in them) for them in (young, new))
            counted = getattr(charged, kind) - getattr(before, kind)
            if not most - least <= counted <= most:
                self.outcome.wrong_accounts.append(
                    f"after kill {self.outcome.kills}: {counted} {kind} are charged, of {most} answered, "
                    f"{least} of them just before it"
                )
        self.outcome.lost_answers += len(new) - (charged.calls_finished - before.calls_finished)

    def _compare_names(self, known: set[str]) -> None:
        out = self.outcome
        for run, at_s in self._missing:
            if run.closed_s is None or run.closed_s > at_s + 1.0:  # else it was closed while we looked
                out.lost_programs.append(f"{run.name} was not known, or not up to date, after a start")
        for run in self._agents.runs:
            names = dict.fromkeys(got.program for got in run.answers)
            if len(names) > 1:
                out.lost_programs.append(f"{run.name} became another program: {', '.join(names)}")
        ours = {got.program for run in self._agents.runs for got in run.answers}
        out.unknown += sorted(known - ours)

    def _was_young(self, at_s: float) -> bool:
        """Whether a kill came so soon after that time that what happened then may be forgotten."""
        return any(killed_s - LOSS_S < at_s <= killed_s + SETTLE_S for killed_s in self._kills_s)

    def _replay(self) -> None:
        out = self.outcome
        for path in sorted(self._victim.log.parent.glob("events*.jsonl")):
            with path.open("rb") as lines:
                first = lines.readline()
                if not first.endswith(b"\n"):  # killed before its first line was written
                    continue
                lines.seek(0)
                out.logs += 1
                for step in steps(*read(lines)):
                    out.events += 1
                    out.decisions += len(step.logged)
                    if not step.agrees:
                        out.differences.append(f"{path.name}:{step.line}")


def _amount(got: Got, kind: str) -> int:
    return 1 if kind == "calls_finished" else int(getattr(got, kind))


def goals(out: Outcome) -> dict[str, dict[str, Any]]:
    """What has to be nothing."""
    found: dict[str, Sequence[object]] = {
        "lost programs": out.lost_programs,
        "wrong accounts": out.wrong_accounts,
        "programs of nobody": out.unknown,
        "orphans": out.orphans,
        "decisions that differ in replay": out.differences,
    }
    return {name: {"value": len(bad), "want": 0, "met": not bad} for name, bad in found.items()}


@click.command()
@click.option("--kills", type=click.IntRange(1), default=100, show_default=True)
@click.option("--agents", type=click.IntRange(1), default=16, show_default=True, help="At the same time.")
@click.option("--seed", default=0, show_default=True, help="Of the moments, and of what agents do.")
@click.option(
    "--json", "path", type=click.Path(path_type=Path, dir_okay=False), default=RESULT, show_default=True
)
@click.option("--keep", type=click.Path(path_type=Path, file_okay=False), help="Leave state and logs here.")
def main(kills: int, agents: int, seed: int, path: Path, keep: Path | None) -> None:
    """Kill a daemon under load again and again, and say what was lost."""

    async def trial(folder: Path) -> Outcome:
        return await Trial(folder, agents=agents, seed=seed).go(kills, patience_s=300.0)

    began_s = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
        outcome = asyncio.run(trial(keep or Path(folder)))
    found: dict[str, Any] = {
        "took_s": round(time.monotonic() - began_s, 1),
        "allowed_loss_s": LOSS_S,
        "goals": goals(outcome),
    } | asdict(outcome)
    result, console = _found.headed("kills", found), Console()
    for name, value in result.items():
        console.print(f"{name}: {json.dumps(value)}", soft_wrap=True, markup=False, highlight=False)
    _found.keep(result, path, console)


if __name__ == "__main__":
    main()
