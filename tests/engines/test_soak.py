"""Two thousand random programs, random orders, faults and transfers: no wrong token, no leak, no deadlock.

The executor's KV is a hash of all that went before (``bench.Checked``), so KV of another context, of another
tenant's, or not come up yet is no KV that it takes. What each program does follows from its seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

import pytest

from agentsched.core.decisions import EngineTerms, Prefetch, Rank, Release, Retain, Segment, Worth
from agentsched.core.events import CallAborted, CallFinished, CallStarted
from agentsched.engines.contract import EngineOutput, TokensOut
from agentsched.engines.execution import Row
from tests.engines.bench import BLOCK, Bench, answer, failing

PROGRAMS = 2_000
RUNS = 8
LIVE_AT_ONCE = 8
CALLS = 4
TENANTS = ("", "red", "blue")
SYSTEM = [7] * 10
"""What every context begins with; its first two blocks are shared by tenants where a call says so."""

LIMIT_TOKENS = 82


@dataclass(eq=False)
class Program:
    name: str
    tenant: str
    calls_left: int
    context: list[int]
    call: str | None = None
    shared: int = 0
    prompts: dict[str, list[int]] = field(default_factory=dict)


class Soak:
    """One engine, some programs at a time, and a journal of which prefixes each tenant has had computed."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        blocks = self.random.randrange(31, 42)
        self.bench = Bench(
            blocks,
            host_blocks=(20, 4, 100, 0)[seed % 4],
            chunk_tokens=self.random.choice([5, 40, 64]),
            max_running=self.random.choice([3, 6]),
            seed=seed,
        )
        self.bench.shelf.takes_s = (0.0, float("inf"))
        self.capacity_tokens = blocks * BLOCK
        self.programs: dict[str, Program] = {}
        self.by_call: dict[str, Program] = {}
        self.known: set[tuple[str, tuple[int, ...]]] = set()
        self.ended: dict[str, EngineOutput] = {}
        self.said: dict[str, list[int]] = {}
        self.submitted = 0
        self.read = 0
        self.opened = 0
        self.epoch = 1
        self.seq = 0
        self.seen: dict[str, int] = dict.fromkeys(("evicted", "recomputed", "preempted"), 0)

    def run(self, programs: int) -> None:
        steps = 0
        while self.opened < programs or self.programs:
            steps += 1
            assert steps < 200 * programs, "programs do not come to their ends"
            while len(self.programs) < LIVE_AT_ONCE and self.opened < programs:
                self.open()
            for program in list(self.programs.values()):
                if program.call is None and self.random.random() < 0.5:
                    self.next_call(program)
            self.disturb()
            self.step()
        while self.bench.engine.has_work:
            self.step()
        assert len(self.ended) == self.submitted
        last = self.bench.engine.report(self.bench.now, snapshot=True)
        assert last.free_tokens + last.evictable_tokens == self.capacity_tokens
        assert (last.running, last.queued) == (0, 0)

    def open(self) -> None:
        tenant, name = self.random.choice(TENANTS), f"p{self.opened}"
        self.opened += 1
        calls = self.random.randrange(1, CALLS + 1)
        self.programs[name] = Program(name, tenant, calls, list(SYSTEM))

    def next_call(self, program: Program) -> None:
        if not program.calls_left or len(program.context) > LIMIT_TOKENS:
            del self.programs[program.name]
            return
        program.calls_left -= 1
        if self.random.random() < 0.1:
            del program.context[self.random.randrange(len(SYSTEM), len(program.context) + 1) :]
        program.context += [self.random.randrange(50) for _ in range(self.random.randrange(1, 30))]
        call = f"c{self.submitted}"
        self.submitted += 1
        program.call, program.prompts[call] = call, list(program.context)
        program.shared = min(len(program.context), self.random.choice([0, 8, 11]))
        self.by_call[call] = program
        output = self.random.randrange(1, 13)
        self.bench.submit(
            call,
            list(program.context),
            output,
            program.name,
            salt=program.tenant,
            shared_prefix_tokens=program.shared,
        )

    # What comes from outside

    def disturb(self) -> None:
        random, bench = self.random, self.bench
        bench.executor.fault = random.choice([failing, blame, too_large]) if random.random() < 0.02 else None
        for _ in range(random.randrange(3)):
            name = f"p{random.randrange(max(0, self.opened - 12), self.opened)}"
            kind = random.randrange(12)
            if kind < 3:
                self.retain(name)
            elif kind < 5:
                self.order(Rank, program=name, key=float(random.randrange(4)))
            elif kind < 8:
                self.order(Prefetch, program=name, by_s=bench.now + random.choice([0.0, 5.0, 50.0]))
            elif kind == 8:
                self.order(Release, program=name)
            elif kind == 9:
                self.terms()
            elif kind == 10 and random.random() < 0.05:
                self.epoch += 1
            elif kind == 11 and self.submitted:
                bench.engine.abort(
                    f"c{random.randrange(max(0, self.submitted - 9), self.submitted)}", bench.now
                )

    def order(self, kind: type, **fields: object) -> None:
        # Some orders come late, and must be ignored.
        self.seq += 1
        late = self.random.random() < 0.1
        stamp = {
            "cause": 1,
            "epoch": self.epoch,
            "seq": max(0, self.seq - 50) if late else self.seq,
            "engine": "e",
        }
        self.bench.engine.order([kind(**stamp, **fields)], self.bench.now)
        self.bench.engine.check_invariants()

    def retain(self, name: str) -> None:
        random, now = self.random, self.bench.now
        ends = sorted({random.randrange(1, LIMIT_TOKENS) for _ in range(2)})
        value = random.choice([0.5, 1.0, 2.0, 3.0])
        segments = tuple(
            Segment(
                start_tokens=start, end_tokens=end, device=self.worth(value / n), host=self.worth(value / n)
            )
            for n, (start, end) in enumerate(zip([0, *ends], ends, strict=False), 1)
        )
        lease = now + random.choice([0.0, 30.0, 300.0])
        self.order(Retain, program=name, segments=segments, lease_until_s=lease)

    def worth(self, value: float) -> tuple[Worth, ...]:
        if self.random.random() < 0.2:
            return ()
        until = self.bench.now + self.random.choice([3.0, 30.0, 300.0])
        return (Worth(until_s=until, value=value), Worth(until_s=2 * until + 1.0, value=value / 2))

    def terms(self) -> None:
        random = self.random
        self.order(
            EngineTerms,
            device_price=random.choice([0.0, 1.0, 2.5]),
            host_price=random.choice([0.0, 0.0, 0.7, 2.0]),
            free_floor_tokens=random.choice([0, 12]),
            chunk_tokens=random.choice([None, 0, 7]),
            max_running=random.choice([None, 1, 3]),
        )

    # What comes of it

    def step(self) -> None:
        self.bench.step()
        report = self.bench.report()
        assert report.free_tokens + report.evictable_tokens <= self.capacity_tokens
        self.seen["evicted"] += report.evicted_tokens
        self.seen["recomputed"] += report.recomputed_tokens
        self.seen["preempted"] += len(report.preempted)
        for item in self.bench.outputs[self.read :]:
            match item:
                case CallStarted(call=call, cached_tokens=cached):
                    self.check_isolation(self.by_call[call], call, cached)
                case CallFinished() | CallAborted():
                    self.end(item)
                case TokensOut(call=call, tokens=tokens):
                    self.said.setdefault(call, []).extend(tokens)
                case _:
                    pass
        self.read = len(self.bench.outputs)

    def check_isolation(self, program: Program, call: str, cached: int) -> None:
        """Each block that was found had been computed for the same tenant, or was declared shared."""
        prompt = program.prompts[call]
        for end in range(BLOCK, cached + 1, BLOCK):
            mark = "" if end <= program.shared // BLOCK * BLOCK else program.tenant
            assert (mark, tuple(prompt[:end])) in self.known, f"{call} of {mark!r} found what is not its own"
        self.learn(program, prompt)

    def learn(self, program: Program, context: Sequence[int]) -> None:
        for end in range(BLOCK, len(context) + 1, BLOCK):
            mark = "" if end <= program.shared // BLOCK * BLOCK else program.tenant
            self.known.add((mark, tuple(context[:end])))

    def end(self, item: CallFinished | CallAborted) -> None:
        program = self.by_call[item.call]
        assert item.call not in self.ended, "a call ends once"
        self.ended[item.call] = item
        said = self.said.pop(item.call, [])
        prompt = program.prompts.pop(item.call)
        assert said == answer(prompt, len(said)), "a wrong token"
        if isinstance(item, CallFinished):
            assert len(said) == item.output_tokens
        program.context = prompt + said
        self.learn(program, program.context)
        program.call = None


def blame(rows: Sequence[Row]) -> Sequence[int]:
    return [number for number, row in enumerate(rows) if row.sampling is not None][:1]


def too_large(rows: Sequence[Row]) -> Sequence[int]:
    if len(rows) > 2:
        raise MemoryError("too little memory for this step")
    return ()


@pytest.mark.parametrize("seed", range(RUNS))
def test_soak(seed: int) -> None:
    soak = Soak(seed)
    soak.run(PROGRAMS // RUNS)
    assert all(soak.seen.values()), f"the run was too quiet: {soak.seen}"
    assert bool(soak.bench.shelf.brought) is soak.bench.engine.capabilities.host_tier
