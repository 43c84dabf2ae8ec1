"""What computing costs an engine, in seconds: a linear model of one step, and profiles of real models.

A step takes a fixed part (launching, reading the weights), a part for every prefilled token and every
decoding row, one for every pair of a prefilled token and a token of its context (attention is
compute-bound there; it is what makes the tail of a context dearer than its head), and one for every
context token that a decoding row reads (there attention is bound by memory).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

from agentsched.engines.execution import Row


@dataclass(frozen=True, slots=True, kw_only=True)
class CostProfile:
    """Seconds that computing takes; ``host_tokens_per_s`` moves KV between device and host memory."""

    step_s: float = 6e-3
    prefill_token_s: float = 4.5e-5
    decode_row_s: float = 1e-4
    attention_s: float = 8e-10
    context_token_s: float = 4.5e-8
    host_tokens_per_s: float = 190_000.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < float("inf"):
                raise ValueError(f"CostProfile.{field.name} must be finite and >= 0")
        if not self.host_tokens_per_s:
            raise ValueError("CostProfile.host_tokens_per_s must be > 0")

    def scaled(self, factor: float) -> CostProfile:
        """All costs times ``factor``."""
        costs = {field.name: getattr(self, field.name) * factor for field in fields(self)}
        return replace(self, **costs | {"host_tokens_per_s": self.host_tokens_per_s / factor})

    def seconds(self, rows: Sequence[Row]) -> float:
        """What a step of these rows takes."""
        seconds = self.step_s
        for row in rows:
            count = len(row.tokens)
            if row.step > 0 and count == 1:
                seconds += self.decode_row_s + (row.start + 1) * self.context_token_s
            else:
                seconds += self.prefill_s(row.start, count)
        return seconds

    def prefill_s(self, start: int, count: int) -> float:
        """What prefilling ``count`` tokens after ``start`` tokens of context adds to its steps."""
        return count * self.prefill_token_s + pairs(start, count) * self.attention_s


def pairs(start: int, count: int) -> int:
    """Pairs of a computed token and a token of its context, itself included."""
    return count * start + count * (count + 1) // 2


PROFILES = {
    # 16-bit weights of 16 GB and KV of 131,072 bytes a token over 3.35 TB/s of memory (step, context);
    # 16 GFLOP a token and 4 x 4,096 x 32 FLOP a pair at 40 and 65 % of 989 TFLOP/s (prefill, attention);
    # PCIe 4 x16 at 25 GB/s (host).
    "llama-3.1-8b-h100": CostProfile(),
    # The same arithmetic over four GPUs: 141 GB of weights, 327,680 bytes a token, 141 GFLOP a token,
    # 4 x 8,192 x 80 FLOP a pair, 2 ms of all-reduces a step, four PCIe links.
    "llama-3.1-70b-4xh100": CostProfile(
        step_s=1.3e-2,
        prefill_token_s=9e-5,
        decode_row_s=1.5e-4,
        attention_s=1.1e-9,
        context_token_s=3e-8,
        host_tokens_per_s=300_000.0,
    ),
    # Measured, by `agentsched fit --engine embedded`: the preset "demo" (2 layers, hidden 64, fp32) on one
    # core of an AMD EPYC; the machine has two, and others used them too. Three fits of nine rounds each
    # agree within 5 % on every cost but the host's. They tell steps that prefill and decode at once within
    # 6 % in the mean, and prefills of 16 tokens about 30 % too low. Of 24 agents played on the engine, step
    # for step the same, 6.1 s are told and 6.5 s took when each step is given its fastest of six runs; with
    # the other core busy one run took 6.7 to 12 s. The host tier's speed is that of the fastest of 300
    # promotions of 64 blocks.
    "embedded-cpu": CostProfile(
        step_s=2.64e-4,
        prefill_token_s=7.16e-6,
        decode_row_s=1.03e-4,
        attention_s=9e-9,
        context_token_s=2.07e-8,
        host_tokens_per_s=1e7,
    ),
}
"""By name; ``llama-*`` is computed from the models' shapes and the devices' data sheets, not measured."""
