"""KV that goes down to host memory and comes back: the copies, and the tokens of a real model."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.core.decisions import EngineTerms, Prefetch, Rank, Release, Retain, Segment, Worth
from agentsched.core.events import CallAborted, CallFinished
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import GenerateRequest, Sampling, TokensOut
from agentsched.engines.embedded import memory, transfer
from agentsched.engines.embedded.__main__ import load_executor, load_host_tier
from agentsched.engines.embedded.executor import TorchExecutor
from agentsched.engines.embedded.preset import PRESETS
from agentsched.engines.embedded.transfer import HostMemory
from agentsched.engines.host_tier import Move
from tests.engines.test_embedded_engine import MODEL, VOCABULARY, alone

BLOCK = 4
DEVICE_BLOCKS, SLOTS = 6, 4


def pools_of(dtype: torch.dtype, layers: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    shape = (DEVICE_BLOCKS * BLOCK, 2, 3)
    return [(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)) for _ in range(layers)]


class Twin:
    """A host tier beside a plain model of it, in which all is done at once."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.pools = pools_of(dtype)
        self.tier = HostMemory(self.pools, blocks=SLOTS, block_tokens=BLOCK)
        self.device = [0] * DEVICE_BLOCKS
        self.host = [0] * SLOTS
        self.coming: list[Move] = []
        self.arrived = self.stamp = 0

    def write(self, block: int) -> None:
        self.tier.make_way([block])
        self.stamp += 1
        self.device[block] = self.stamp
        for number, pool in enumerate(pool for pair in self.pools for pool in pair):
            pool[block * BLOCK : (block + 1) * BLOCK] = self.stamp + number

    def demote(self, block: int, slot: int) -> None:
        self.host[slot] = self.device[block]
        self.tier.demote([Move(block, slot)])

    def promote(self, slot: int, block: int) -> None:
        self.device[block] = self.host[slot]
        self.coming.append(Move(slot, block))
        self.tier.promote([Move(slot, block)], 0.0)

    def settle(self) -> None:
        arrived = self.tier.promoted(0.0)
        del self.coming[: arrived - self.arrived]
        self.arrived = arrived

    def busy_blocks(self) -> set[int]:
        return {move.target for move in self.coming}

    def busy_slots(self) -> set[int]:
        return {move.source for move in self.coming}

    def check(self) -> None:
        for number, pool in enumerate(pool for pair in self.pools for pool in pair):
            for block, stamp in enumerate(self.device):
                if block not in self.busy_blocks():
                    held = pool[block * BLOCK : (block + 1) * BLOCK]
                    assert (held == (stamp + number if stamp else 0)).all(), f"block {block}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_copies_are_as_if_done_at_once(dtype: torch.dtype, data: st.DataObject) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transfer, "STEP_BYTES", 1)
        twin = Twin(dtype)
    for _ in range(data.draw(st.integers(1, 40))):
        blocks = sorted({*range(DEVICE_BLOCKS)} - twin.busy_blocks())
        slots = sorted({*range(SLOTS)} - twin.busy_slots())
        kind = data.draw(st.sampled_from(["write", "demote", "promote", "settle", "wait"]))
        if kind == "settle":
            twin.settle()
        elif kind == "wait":
            assert twin.tier.wait(0.0) >= 0
        elif blocks and slots:
            block, slot = data.draw(st.sampled_from(blocks)), data.draw(st.sampled_from(slots))
            if kind == "write":
                twin.write(block)
            elif kind == "demote":
                twin.write(block)  # what is demoted was computed
                twin.demote(block, slot)
            else:
                twin.promote(slot, block)
        twin.check()
    while twin.coming:
        twin.settle()
    twin.check()


def test_a_step_copies_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    pools = pools_of(torch.float32)
    block_bytes = sum(pool.numel() * pool.itemsize for pair in pools for pool in pair) // DEVICE_BLOCKS
    monkeypatch.setattr(transfer, "STEP_BYTES", 2 * block_bytes)
    tier = HostMemory(pools, blocks=SLOTS, block_tokens=BLOCK)
    assert tier.tokens_per_s > 0
    tier.promote([Move(slot, slot) for slot in range(3)], 0.0)
    assert tier.load_s(1, 0.0) == pytest.approx(4 * BLOCK / tier.tokens_per_s)
    assert [tier.promoted(0.0), tier.promoted(0.0)] == [2, 3]


def test_memory_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"host memory for .* tokens of KV takes .* ask for less"):
        HostMemory(pools_of(torch.float32), blocks=1 << 44, block_tokens=BLOCK)
    (tmp_path / "config.json").write_text(json.dumps(PRESETS["tiny"]))
    with pytest.raises(ValueError, match=r"takes .* GB, and .* GB are available: .*--kv-tokens"):
        load_executor(tmp_path, 1 << 44)
    executor = load_executor(tmp_path, 1024)
    with pytest.raises(ValueError, match="--host-tokens"):
        load_host_tier(executor, 1 << 44)
    with pytest.raises(ValueError, match="host_tokens must be >= 0"):
        load_host_tier(executor, -1)
    assert load_host_tier(executor, 15) is None
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "absent")
    memory.check_memory(1 << 60, "all there is", "nothing can be done")


# A real model


class Checking:
    """The embedded engine on a tiny model in fp32, and what the model says alone to each prompt."""

    def __init__(self, random: Random) -> None:
        self.random = random
        executor = TorchExecutor(MODEL, num_blocks=random.randrange(40, 70), block_tokens=BLOCK)
        tier = HostMemory(executor.pools, blocks=random.choice([10, 60]), block_tokens=BLOCK)
        self.engine = BatchingEngine(
            executor, "embedded", host_tier=tier, chunk_tokens=random.choice([7, 33]), max_running=4
        )
        self.now = 0.0
        self.contexts = [[random.randrange(VOCABULARY) for _ in range(24)] for _ in range(5)]
        self.prompts: dict[str, list[int]] = {}
        self.said: dict[str, list[int]] = {}
        self.cached = self.ended = self.seq = 0

    def order(self, kind: Any, **fields: Any) -> None:
        self.seq += 1
        self.engine.order([kind(cause=1, epoch=1, seq=self.seq, engine="e", **fields)], self.now)

    def disturb(self) -> None:
        random, program = self.random, f"p{self.random.randrange(5)}"
        match random.randrange(7):
            case 0:
                worth = (Worth(until_s=self.now + random.choice([5.0, 60.0]), value=random.random()),)
                segment = Segment(
                    start_tokens=0, end_tokens=random.randrange(8, 90), device=worth, host=worth
                )
                self.order(Retain, program=program, segments=(segment,), lease_until_s=self.now + 60.0)
            case 1:
                self.order(Rank, program=program, key=float(random.randrange(3)))
            case 2 | 3:
                self.order(Prefetch, program=program, by_s=self.now + 3.0)
            case 4:
                self.order(EngineTerms, host_price=random.choice([0.0, 0.2]), device_price=random.random())
            case 5 if self.prompts:
                self.engine.abort(random.choice(list(self.prompts)), self.now)
            case _:
                self.order(Release, program=program)

    def submit(self, number: int) -> None:
        place = self.random.randrange(5)
        prompt = [*self.contexts[place], *(self.random.randrange(VOCABULARY) for _ in range(9))]
        if len(prompt) > 90:
            prompt = prompt[:24]
        self.contexts[place] = prompt
        call = f"p{place}/{number}"
        request = GenerateRequest(
            call=call,
            program=f"p{place}",
            prompt=prompt,
            sampling=Sampling(max_output_tokens=12),
            salt=self.random.choice(["", "red"]),
            shared_prefix_tokens=self.random.choice([0, 16]),
        )
        self.engine.submit(request, self.now)
        self.prompts[call] = prompt

    def step(self) -> None:
        for output in self.engine.step(self.now)[1]:
            match output:
                case TokensOut(call=call, tokens=tokens):
                    self.said.setdefault(call, []).extend(tokens)
                case CallFinished(call=call) | CallAborted(call=call):
                    said = self.said.pop(call, [])
                    assert said == alone(self.prompts.pop(call))[: len(said)], f"{call}: a wrong token"
                    self.ended += 1
                    self.cached += output.cached_tokens if isinstance(output, CallFinished) else 0
                case _:
                    pass
        self.now += 1.0
        self.engine.check_invariants()


@pytest.mark.parametrize("seed", range(3))
def test_reuse_never_changes_a_token(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "STEP_BYTES", 2 * BLOCK * memory.token_bytes(MODEL.spec, MODEL.dtype))
    checking = Checking(Random(seed))
    for number in range(30):
        checking.submit(number)
        for _ in range(checking.random.randrange(8)):
            checking.disturb()
            checking.step()
    while checking.engine.has_work:
        checking.step()
    assert (checking.ended, checking.prompts) == (30, {})
    assert checking.cached > 0
    report = checking.engine.report(checking.now, snapshot=True)
    capabilities = checking.engine.capabilities
    assert report.free_tokens + report.evictable_tokens == capabilities.capacity_tokens
    assert any(entry.host_tokens for entry in report.held)
