"""Sampling over a batch of scores, against the reference's own processors and by its properties."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from agentsched.engines.contract import RequestRefused, Sampling
from agentsched.engines.embedded import sampling as sampling_module
from agentsched.engines.embedded.grammar import Grammars, grammar_fault
from agentsched.engines.embedded.sampling import Sampler
from agentsched.engines.embedded.tokens import ModelTokenizer
from agentsched.engines.execution import Row, RowFailed, Sampled, ScoredToken
from agentsched.engines.sampling_limits import check_sampling
from tests.engines.folders import family_folder

VOCABULARY = 60
CONTEXT = [3, 5, 5, 9, 7, 7, 7]


def row(step: int = 3, call: str = "c", context: list[int] | None = None, **sampling: Any) -> Row:
    wanted = Sampling(max_output_tokens=100, **sampling)
    return Row(
        call=call, tokens=[7], start=6, blocks=[0], sampling=wanted, step=step, context=context or CONTEXT
    )


def scores(seed: int = 0, rows: int = 1, scale: float = 3.0) -> Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale


def sample(logits: Tensor, *rows: Row) -> list[Sampled]:
    before = logits.clone()
    drawn = Sampler().sample(logits, rows)
    assert torch.equal(logits.nan_to_num(), before.nan_to_num()), "the model's scores are changed in place"
    return drawn


def frequencies(logits: Tensor, draws: int = 4000, **sampling: Any) -> Tensor:
    """How often each token is drawn."""
    rows = [row(seed=seed, **sampling) for seed in range(draws)]
    tokens = Sampler().sample(logits.expand(draws, -1), rows)
    counts = torch.bincount(torch.tensor(tokens), minlength=VOCABULARY)
    return counts / draws


WARPED: list[tuple[dict[str, Any], list[Any]]] = [
    ({"temperature": 1.0}, []),
    ({"temperature": 0.6}, [TemperatureLogitsWarper(0.6)]),
    ({"temperature": 1.0, "top_k": 5}, [TopKLogitsWarper(5)]),
    ({"temperature": 1.0, "top_p": 0.6}, [TopPLogitsWarper(0.6)]),
    ({"temperature": 1.0, "min_p": 0.2}, [MinPLogitsWarper(0.2)]),
    (
        {"temperature": 1.5, "top_k": 9, "top_p": 0.8, "min_p": 0.1},
        [TemperatureLogitsWarper(1.5), TopKLogitsWarper(9), TopPLogitsWarper(0.8), MinPLogitsWarper(0.1)],
    ),
    (
        {"temperature": 1.0, "repetition_penalty": 1.7, "top_k": 20},
        [RepetitionPenaltyLogitsProcessor(1.7), TopKLogitsWarper(20)],
    ),
]


@pytest.mark.parametrize(("sampling", "processors"), WARPED, ids=lambda value: str(value)[:60])
def test_draws_come_as_often_as_the_reference_says(sampling: dict[str, Any], processors: list[Any]) -> None:
    logits = scores()
    context = torch.tensor([CONTEXT])
    expected = LogitsProcessorList(processors)(context, logits.clone()).softmax(-1)[0]  # type: ignore[arg-type]
    drawn = frequencies(logits, **sampling)
    assert set(drawn.nonzero().flatten().tolist()) <= set(expected.nonzero().flatten().tolist())
    # Four standard deviations of the greatest possible error.
    assert (drawn - expected).abs().max() < 4 * math.sqrt(0.25 / 4000)


def test_a_draw_depends_on_its_own_row_alone() -> None:
    source = random.Random(1)
    logits = scores(2, 40)
    rows = [
        row(
            step=source.randrange(1, 5),
            temperature=source.choice([0.0, 0.7, 2.0]),
            top_p=source.choice([1.0, 0.5]),
            top_k=source.choice([0, 7]),
            min_p=source.choice([0.0, 0.1]),
            seed=source.randrange(1000),
            presence_penalty=source.choice([0.0, 1.0]),
            repetition_penalty=source.choice([1.0, 1.3]),
        )
        for _ in range(40)
    ]
    together = sample(logits, *rows)
    order = source.sample(range(40), 40)
    shuffled = sample(logits[order], *(rows[place] for place in order))
    assert shuffled == [together[place] for place in order]
    assert together == [sample(logits[place : place + 1], rows[place])[0] for place in range(40)]
    assert len(set(together)) > 10


@pytest.mark.parametrize("scale", [0.01, 1.0, 6.0])
def test_looking_at_the_likeliest_first_changes_no_draw(
    scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = torch.randn(60, 9000, generator=torch.Generator().manual_seed(4)) * scale
    rows = [
        row(temperature=1.0, seed=seed, top_p=(1.0, 0.9, 0.3)[seed % 3], top_k=(0, 7, 600, 8999)[seed % 4])
        for seed in range(60)
    ]
    drawn = sample(logits, *rows)
    monkeypatch.setattr(sampling_module, "_CANDIDATES", ())
    again = sample(logits, *rows)
    # Tokens that are equally likely, but for rounding, have no order.
    best, same = (logits[torch.arange(60), torch.tensor(tokens)] for tokens in (drawn, again))
    torch.testing.assert_close(best, same, atol=1e-4, rtol=0)
    assert sum(one == other for one, other in zip(drawn, again, strict=True)) > 50
    assert len(set(drawn)) > 20


def test_steps_and_seeds_give_other_draws() -> None:
    logits = scores(scale=0.1).expand(50, -1)
    steps = sample(logits, *(row(step=step, temperature=1.0) for step in range(50)))
    seeds = sample(logits, *(row(seed=seed, temperature=1.0) for seed in range(50)))
    assert steps != seeds
    assert len(set(steps)) > 20
    assert len(set(seeds)) > 20


def test_presence_and_frequency_count_the_output_only() -> None:
    logits = torch.zeros(1, VOCABULARY)
    logits[0, [5, 9, 7]] = torch.tensor([3.0, 2.0, 4.0])
    assert sample(logits, row()) == [7]
    assert sample(logits, row(step=4, presence_penalty=1.5)) == [5]  # 9, 7, 7, 7 are output
    assert sample(logits, row(step=4, frequency_penalty=0.4)) == [5]
    assert sample(logits, row(step=4, frequency_penalty=0.3)) == [7]
    assert sample(logits, row(step=0, presence_penalty=2.0)) == [7]
    assert sample(logits, row(step=0, repetition_penalty=4.0)) == [7]
    logits[0, 11] = 1.5
    assert sample(logits, row(step=0, repetition_penalty=4.0)) == [11]


def test_a_bias_forbids_or_forces() -> None:
    logits = scores()
    best = int(logits.argmax())
    [other] = sample(logits, row(logit_bias={best: -100.0}))
    assert other != best
    assert sample(logits, row(logit_bias={4: 100.0})) == [4]


def test_log_probabilities_are_the_models_own() -> None:
    logits = scores(3, 3)
    drawn = sample(
        logits,
        row(logprobs=2, temperature=1.0, top_k=3, seed=4),
        row(),
        row(logprobs=0, logit_bias={8: 100.0}),
    )
    expected = logits.log_softmax(-1)
    first, plain, forced = drawn
    assert isinstance(first, ScoredToken)
    assert isinstance(plain, int)
    assert isinstance(forced, ScoredToken)
    assert first.logprobs.token == pytest.approx(float(expected[0, first.token]))
    best = expected[0].topk(2)
    assert [token for token, _ in first.logprobs.top] == best.indices.tolist()
    assert [value for _, value in first.logprobs.top] == pytest.approx(best.values.tolist())
    assert (forced.token, forced.logprobs.top) == (8, [])
    assert forced.logprobs.token == pytest.approx(float(expected[2, 8]))


def test_a_row_that_is_not_finite_fails_alone() -> None:
    logits = scores(5, 4)
    clean = sample(logits, *[row(temperature=1.0)] * 4)
    logits[1, 3], logits[3, 0] = math.nan, math.inf
    drawn = sample(logits, *[row(temperature=1.0)] * 4)
    assert [drawn[0], drawn[2]] == [clean[0], clean[2]]
    assert [drawn[1], drawn[3]] == [RowFailed("the model's logits are not finite")] * 2


class Waits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what would make the host wait for a GPU, but for the one known way."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        masks = name.startswith("index") and any(
            isinstance(index, Tensor) and index.dtype == torch.bool
            for indices in args
            if isinstance(indices, list)
            for index in indices
        )
        if masks or name in ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "is_nonzero"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


EVERYTHING: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 1},
    {"temperature": 0.8, "top_p": 0.9, "top_k": 7, "min_p": 0.05, "logprobs": 3},
    {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.1, "logit_bias": {4: 2.0}},
    {"logprobs": 0},
]


def test_a_step_asks_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    transfers: list[tuple[int, ...]] = []
    to_host = sampling_module._to_host

    def counting(told: Tensor) -> list[list[float]]:
        transfers.append(tuple(told.shape))
        return to_host(told)

    monkeypatch.setattr(sampling_module, "_to_host", counting)
    with Waits() as waits:
        sample_in_place = Sampler().sample
        for rows in ([row(), row()], [row(**fields) for fields in EVERYTHING]):
            sample_in_place(scores(9, len(rows)), rows)
    assert not waits.names
    assert transfers == [(2, 3), (5, 3 + 1 + 2 * 3)]

    # A draw from a flat distribution may need more than the likeliest few: only its row is asked again.
    transfers.clear()
    flat = torch.randn(2, 9000, generator=torch.Generator().manual_seed(4)) * 0.01
    assert sample_in_place(flat, [row(temperature=1.0, top_p=0.9), row()])[1] == int(flat[1].argmax())
    assert [shape[0] for shape in transfers] == [2, 1, 1]


def test_no_extreme_leaves_the_vocabulary_or_the_finite() -> None:
    source = random.Random(6)
    extremes = {
        "temperature": [0.0, 1e-320, 1e-40, 1.0, 1e308],
        "top_p": [1.0, 0.5, 1e-320],
        "top_k": [0, 1, VOCABULARY, 10**9],
        "min_p": [0.0, 1.0, 1e-320],
        "repetition_penalty": [1.0, 10.0, 1e-9],
    }
    rows = [row(**{name: source.choice(values) for name, values in extremes.items()}) for _ in range(400)]  # type: ignore[arg-type]
    for scale in (0.0, 1.0, 1e30):
        for drawn in sample(scores(7, 400, scale), *rows):
            assert isinstance(drawn, int)
            assert 0 <= drawn < VOCABULARY


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"temperature": math.nan}, "temperature: must be >= 0, got nan"),
        ({"temperature": math.inf}, "temperature: must be"),
        ({"top_p": 0.0}, r"top_p: must be in \(0, 1\], got 0.0"),
        ({"top_k": -1}, "top_k: must be >= 0"),
        ({"min_p": 1.5}, "min_p: must be in"),
        ({"repetition_penalty": 0.0}, "repetition_penalty: must be in"),
        ({"presence_penalty": -3.0}, "presence_penalty: must be in"),
        ({"frequency_penalty": math.nan}, "frequency_penalty: must be in"),
        ({"logit_bias": {3: 101.0}}, "logit_bias: must be"),
        ({"logprobs": 21}, r"top_logprobs: must be in \[0, 20\], got 21"),
    ],
)
def test_what_is_out_of_range_is_named(fields: dict[str, Any], says: str) -> None:
    with pytest.raises(RequestRefused, match=says):
        check_sampling(Sampling(max_output_tokens=1, **fields))


# Grammars


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> ModelTokenizer:
    return ModelTokenizer(family_folder(tmp_path_factory.mktemp("grammar"), "qwen"))


NUMBERS = 'start: "[" /[0-9]{4}/ ("," /[0-9]{4}/)* "]"'


def follow(
    sampler: Sampler, tokenizer: ModelTokenizer, call: str, steps: int, *, forget: bool = False
) -> str:
    """The text that random scores give under the grammar."""
    context = [50, 51, 52]
    vocabulary = len(tokenizer._tokenizer.get_vocab()) + 40
    for step in range(steps):
        if forget and sampler.grammars:
            sampler.grammars._states.clear()
        generator = torch.Generator().manual_seed(step)
        logits = torch.randn(2, vocabulary, generator=generator)
        free = Row("free", [1], 0, [0], Sampling(max_output_tokens=9), 0, [1])
        bound = row(step=step, call=call, context=context, grammar=NUMBERS, temperature=1.0)
        unbound, token = sampler.sample(logits, [free, bound])
        assert unbound == int(logits[0].argmax())
        assert isinstance(token, int)
        if token in tokenizer.ends:
            break
        context = [*context, token]
    return tokenizer.text(context[3:])


def test_a_grammar_is_followed_whatever_the_scores_are(tokenizer: ModelTokenizer) -> None:
    sampler = Sampler(Grammars(tokenizer, len(tokenizer._tokenizer.get_vocab()) + 40))
    texts = {follow(sampler, tokenizer, f"c{number}", 60) for number in range(3)}
    [text] = texts
    assert text.startswith("[")
    assert all(len(number) == 4 and number.isdecimal() for number in text.strip("[]").split(",")[:-1])
    assert len(text) > 5
    # A call that is preempted goes on where it was, though its state is lost.
    assert follow(sampler, tokenizer, "again", 60, forget=True) == text


def test_an_output_that_left_its_grammar_fails_alone(tokenizer: ModelTokenizer) -> None:
    vocabulary = len(tokenizer._tokenizer.get_vocab()) + 40
    sampler = Sampler(Grammars(tokenizer, vocabulary))
    logits = torch.randn(2, vocabulary, generator=torch.Generator().manual_seed(1))
    strayed = row(step=2, context=[50, *tokenizer.encode_prompt("no")][:3], grammar=NUMBERS)
    failed, token = sampler.sample(logits, [strayed, row()])
    assert isinstance(failed, RowFailed)
    assert "the output cannot follow its grammar" in failed.reason
    assert token == int(logits[1].argmax())


def test_a_grammar_that_is_none_is_told(tokenizer: ModelTokenizer) -> None:
    assert grammar_fault(NUMBERS) == ""
    assert "unknown name" in grammar_fault("start: nothing")
    assert grammar_fault("") != ""


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    folder = family_folder(tmp_path, "qwen")
    for broken in ("", "{}", '{"model": 3}', (folder / "tokenizer.json").read_text()[:-40]):
        (folder / "tokenizer.json").write_text(broken)
        with pytest.raises(ValueError, match=r"tokenizer\.json: not a readable tokenizer"):
            ModelTokenizer(folder)
