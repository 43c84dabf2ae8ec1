"""A cost profile from measurement: the embedded engine is driven through a designed set of steps.

What is measured is the wall time of ``BatchingEngine.step``: forming the batch, keeping the KV, and the
model. The steps vary one thing at a time: chunks of prefill of several sizes after several lengths of
context, and batches of several rows that decode at several lengths. Steps that do both are measured too,
but not fitted: they show how well the sum of the parts tells the whole.

Machines are noisy, mostly in one direction. So each point is measured in short bursts, the fastest of a
burst counts, and a point's time is the median of that over rounds, between which some time passes. The fit
is least squares of relative errors (else the longest steps alone would decide), and no cost is negative.

Not measured: what the socket to the daemon adds, and KV that lies scattered in many blocks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, fields
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from statistics import fmean, median

import msgspec

from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import GenerateRequest, Sampling
from agentsched.engines.cost import PROFILES, CostProfile, pairs
from agentsched.engines.execution import Executor, Row, Sampled
from agentsched.workloads.summary import Host, describe_host

KV_TOKENS = 262_144
"""KV that a measurement wants: all contexts of the design, and what two rounds prefill."""

CONTEXTS = (64, 1024, 4096, 16_384)
CHUNKS = (16, 64, 256, 512, 1024, 2048)
BATCHES = (1, 2, 4, 8, 16, 32)
MIXED = ((4, 1024, 64), (4, 1024, 512), (16, 1024, 256), (8, 4096, 512), (2, 16_384, 256))
"""Steps of so many decoding rows, at so many tokens of context, with a chunk of so many tokens."""

LEAST_CONTEXT_TOKENS = 512

HOST_TOKENS = 32_768
"""Size of the host tier whose speed is measured."""

_MOST_DECODED_CONTEXT = 65_536
_PREFILL_BURST, _DECODE_BURST = 3, 8
_TERMS = ("step_s", "prefill_token_s", "decode_row_s", "attention_s", "context_token_s")


class ProfileError(ValueError):
    """There is no such profile, or its file cannot be read."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What a step computes, in the terms of ``CostProfile``; ``attended`` counts pairs of prefill."""

    prefill_tokens: float = 0.0
    decode_rows: float = 0.0
    attended: float = 0.0
    decode_context: float = 0.0

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Shape:
        """The shape of these rows, told apart as ``CostProfile.seconds`` does."""
        prefill = [row for row in rows if row.step == 0 or len(row.tokens) > 1]
        decode = [row for row in rows if row.step > 0 and len(row.tokens) == 1]
        return cls(
            prefill_tokens=sum(len(row.tokens) for row in prefill),
            decode_rows=len(decode),
            attended=sum(pairs(row.start, len(row.tokens)) for row in prefill),
            decode_context=sum(row.start + 1 for row in decode),
        )

    def seconds(self, profile: CostProfile) -> float:
        """What the profile says that such a step takes."""
        return (
            profile.step_s
            + profile.prefill_token_s * self.prefill_tokens
            + profile.decode_row_s * self.decode_rows
            + profile.attention_s * self.attended
            + profile.context_token_s * self.decode_context
        )


@dataclass(slots=True)
class Point:
    """One kind of step, measured once a round: the fastest of a burst. ``fitted`` tells the fit to use it."""

    group: str
    fitted: bool = True
    shapes: list[Shape] = field(default_factory=list)
    bursts_s: list[float] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return median(self.bursts_s)

    @property
    def shape(self) -> Shape:
        return Shape(*(fmean(amounts) for amounts in zip(*map(astuple, self.shapes), strict=True)))

    @property
    def noise(self) -> float:
        """How far apart the middle half of the rounds lies, over their median."""
        ordered = sorted(self.bursts_s)
        quarter = len(ordered) // 4
        return (ordered[-1 - quarter] - ordered[quarter]) / self.seconds


class Residual(msgspec.Struct, frozen=True, kw_only=True):
    """How well the profile tells one group of steps: relative errors, measured time as the base."""

    group: str
    points: int
    fitted: bool
    mean_error: float
    worst_error: float
    noise: float


class Fit(msgspec.Struct, frozen=True, kw_only=True):
    """A fitted profile with what it rests on: the content of a profile's file."""

    profile: CostProfile
    engine: str
    model: str
    rounds: int
    residuals: tuple[Residual, ...]
    host: Host


# Measuring


class _Watched:
    """The executor, and the rows that it was given last."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.num_blocks, self.block_tokens = executor.num_blocks, executor.block_tokens
        self.vocabulary, self.max_context_tokens = executor.vocabulary, executor.max_context_tokens
        self.rows: Sequence[Row] = ()

    def run(self, rows: Sequence[Row]) -> tuple[float, Sequence[Sampled]]:
        self.rows = rows
        return self._executor.run(rows)


class Bench:
    """An engine that is put into a wanted state, one step of which is then timed.

    Contexts are heads of fixed streams of tokens, one a row, so that they are prefilled once and found
    in the KV from then on; a chunk to be timed is new each time.
    """

    def __init__(self, executor: Executor, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._watched = _Watched(executor)
        self._engine = BatchingEngine(self._watched, "embedded", chunk_tokens=max(CHUNKS))
        self._clock = clock
        self._calls = 0
        self._fresh = 0
        self.limit_tokens = min(executor.max_context_tokens, executor.num_blocks * executor.block_tokens)

    def decode(self, rows: int, context: int, chunk: int = 0) -> tuple[Shape, float]:
        """The fastest step of so many rows that decode, with a fresh chunk of prefill beside them."""
        burst = _PREFILL_BURST if chunk else _DECODE_BURST
        # Two tokens pass before the first timed step, and no row ends within a timed one.
        calls = [self._submit(f"row {row}", self._stream(row, context), burst + 4) for row in range(rows)]
        for _ in range(2):
            self._step()
        timed = []
        for _ in range(burst):
            if chunk:
                self._submit("tail", self._tail(chunk), 1)
            timed.append(self._step())
        for call in calls:
            self._engine.abort(call, self._clock())
        self._drain()
        return min(timed, key=lambda step: step[1])

    def prefill(self, start: int, chunk: int) -> tuple[Shape, float]:
        """The fastest step that prefills ``chunk`` tokens after ``start`` tokens that are held."""
        timed = []
        for _ in range(_PREFILL_BURST):
            self._submit("tail", self._stream(0, start) + self._tail(chunk), 1)
            timed.append(self._step())
            self._drain()
        return min(timed, key=lambda step: step[1])

    def hold(self, row: int, context: int) -> None:
        """Compute a row's context, so that it is found in the KV."""
        self._submit(f"row {row}", self._stream(row, context), 1)
        self._drain()

    def _stream(self, row: int, tokens: int) -> list[int]:
        vocabulary = self._watched.vocabulary
        return [row % vocabulary, *((row * 7919 + at * 31) % vocabulary for at in range(1, tokens))][:tokens]

    def _tail(self, tokens: int) -> list[int]:
        """Tokens that begin as nothing before them did: a number, written to the base of the vocabulary."""
        vocabulary = self._watched.vocabulary
        self._fresh += 1
        number = self._fresh
        head = [vocabulary - 1 - number % vocabulary, number // vocabulary]
        return [*head, *((number + at) % vocabulary for at in range(tokens))][:tokens]

    def _submit(self, program: str, prompt: list[int], output: int) -> str:
        self._calls += 1
        request = GenerateRequest(
            call=str(self._calls), program=program, prompt=prompt, sampling=Sampling(max_output_tokens=output)
        )
        self._engine.submit(request, self._clock())
        return request.call

    def _step(self) -> tuple[Shape, float]:
        began_s = self._clock()
        self._engine.step(began_s)
        return Shape.of(self._watched.rows), self._clock() - began_s

    def _drain(self) -> None:
        while self._engine.has_work:
            self._engine.step(self._clock())


Measure = Callable[[Bench], tuple[Shape, float]]


def design(limit_tokens: int) -> list[tuple[Point, Measure]]:
    """The points to measure on an engine whose contexts have at most ``limit_tokens``."""
    prefills = [
        (start, chunk) for chunk in CHUNKS for start in (0, *CONTEXTS) if start + chunk < limit_tokens
    ]
    decodes = [(rows, context, 0) for rows in BATCHES for context in CONTEXTS]
    return [
        *(
            (Point(f"prefill of {chunk}"), partial(Bench.prefill, start=start, chunk=chunk))
            for start, chunk in prefills
        ),
        *(
            (
                Point("both", fitted=False) if chunk else Point(f"decode of {rows}"),
                partial(Bench.decode, rows=rows, context=context, chunk=chunk),
            )
            for rows, context, chunk in (*decodes, *MIXED)
            if _fits(rows, context, limit_tokens)
        ),
    ]


def _fits(rows: int, context: int, limit_tokens: int) -> bool:
    return rows * context <= _MOST_DECODED_CONTEXT and context + 4 * _DECODE_BURST < limit_tokens


def measure(bench: Bench, *, rounds: int, progress: Callable[[str], None]) -> list[Point]:
    """Measure the design ``rounds`` times; ``progress`` is told of each round. Some seconds a round."""
    points = design(bench.limit_tokens)
    for number in range(rounds):
        progress(f"Round {number + 1} of {rounds}: {len(points)} kinds of steps")
        for row in range(max(BATCHES)):
            deepest = [c for c in CONTEXTS if _fits(row + 1, c, bench.limit_tokens)]
            if deepest:
                bench.hold(row, deepest[-1])
        for point, run in points:
            shape, seconds = run(bench)
            point.shapes.append(shape)
            point.bursts_s.append(seconds)
    return [point for point, _ in points]


# Fitting


def fit_profile(points: Sequence[Point], *, host_tokens_per_s: float) -> CostProfile:
    """The costs, none negative, with the least squares of relative errors over the fitted points."""
    import numpy as np

    used = [point for point in points if point.fitted]
    amounts = np.array([(1.0, *astuple(point.shape)) for point in used])
    amounts /= np.array([[point.seconds] for point in used])
    # The terms differ by ten orders of magnitude: without scaling the solver would lose the small ones.
    scale = np.linalg.norm(amounts, axis=0)
    scale[scale == 0] = 1.0
    amounts /= scale
    # Few enough terms to try which of them are nothing.
    best, costs = float("inf"), np.zeros(len(_TERMS))
    for some in chain.from_iterable(combinations(range(len(_TERMS)), n + 1) for n in range(len(_TERMS))):
        found = np.linalg.lstsq(amounts[:, some], np.ones(len(used)), rcond=None)[0]
        error = float(np.linalg.norm(amounts[:, some] @ found - 1))
        if found.min() >= 0 and error < best:
            best, costs = error, np.zeros(len(_TERMS))
            costs[list(some)] = found / scale[list(some)]
    return CostProfile(**dict(zip(_TERMS, costs.tolist(), strict=True)), host_tokens_per_s=host_tokens_per_s)


def residuals(points: Sequence[Point], profile: CostProfile) -> tuple[Residual, ...]:
    """The profile's relative errors, by group in the order of the points."""
    groups: dict[str, list[Point]] = {}
    for point in points:
        groups.setdefault(point.group, []).append(point)
    told = []
    for group, members in groups.items():
        errors = [abs(point.shape.seconds(profile) / point.seconds - 1) for point in members]
        told.append(
            Residual(
                group=group,
                points=len(members),
                fitted=members[0].fitted,
                mean_error=fmean(errors),
                worst_error=max(errors),
                noise=median(point.noise for point in members),
            )
        )
    return tuple(told)


def fit_embedded(folder: Path, *, model: str, rounds: int, progress: Callable[[str], None]) -> Fit:
    """Fit the embedded engine with the model of ``folder``, on one thread of this process.

    ``model`` names it in the result. Raises ``ModelError`` if the model cannot be served, and ``ValueError``
    if its contexts are too short to tell costs apart or its KV finds too little memory.
    """
    from agentsched.engines.embedded.__main__ import load_executor, load_host_tier, warm_up
    from agentsched.engines.embedded.spec import load_spec

    spec = load_spec(folder)
    if spec.max_context_tokens < LEAST_CONTEXT_TOKENS:
        raise ValueError(
            f"contexts have {spec.max_context_tokens} tokens; a fit needs {LEAST_CONTEXT_TOKENS} at least"
        )
    executor = load_executor(folder, KV_TOKENS)
    warm_up(executor)
    points = measure(Bench(executor), rounds=rounds, progress=progress)
    tier = load_host_tier(executor, HOST_TOKENS)
    assert tier is not None, "it has blocks"
    profile = fit_profile(points, host_tokens_per_s=tier.tokens_per_s)
    return Fit(
        profile=profile,
        engine="embedded",
        model=f"{model} ({spec.layers} layers, hidden {spec.hidden})",
        rounds=rounds,
        residuals=residuals(points, profile),
        host=describe_host(),
    )


# Files


def save_fit(fit: Fit, path: Path) -> None:
    """Write a profile's file, which ``load_profile`` reads. Raises ``OSError``."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(fit), indent=2) + b"\n")


class _File(msgspec.Struct):
    profile: dict[str, float]


def load_profile(name_or_path: str) -> CostProfile:
    """The profile of that name, or of a file that ``save_fit`` wrote (of which only its object ``profile``
    is read, with every cost in it). Raises ``ProfileError``."""
    if name_or_path in PROFILES:
        return PROFILES[name_or_path]
    try:
        costs = msgspec.json.decode(Path(name_or_path).read_bytes(), type=_File).profile
    except FileNotFoundError:
        names = ", ".join(PROFILES)
        raise ProfileError(f"no profile {name_or_path!r}: neither one of {names}, nor a file") from None
    except (OSError, msgspec.DecodeError) as error:
        raise ProfileError(f"{name_or_path}: {error}") from None
    wanted = {field.name for field in fields(CostProfile)}
    # A cost left out would be that of another machine, CostProfile's default.
    if wrong := sorted(wanted ^ costs.keys()):
        raise ProfileError(f"{name_or_path}: profile must have exactly {sorted(wanted)}; see {wrong}")
    try:
        return CostProfile(**costs)
    except ValueError as error:
        raise ProfileError(f"{name_or_path}: {error}") from None
