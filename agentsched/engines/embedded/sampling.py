"""Chooses the tokens after a batch of rows from their scores.

Rows are sampled together: what one of them asks for beyond the greedy choice is done for the rows that
ask for it, all at once where it looks through the vocabulary. A draw takes the number that (seed, step)
gives and finds its place among the summed probabilities, so it depends on nothing but the row itself.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from agentsched.engines.contract import Logprobs, Sampling
from agentsched.engines.embedded.grammar import Grammars
from agentsched.engines.execution import Row, RowFailed, Sampled, ScoredToken

_DRAW_BITS = 48
_GREATEST = torch.finfo(torch.float32).max


class Sampler:
    """``grammars`` is None for a model without a tokenizer, whose outputs cannot follow any."""

    def __init__(self, grammars: Grammars | None = None) -> None:
        self.grammars = grammars

    def sample(self, logits: Tensor, rows: Sequence[Row]) -> list[Sampled]:
        """What comes after each row, all of which have ``sampling``; ``logits`` is [rows, vocabulary]."""
        wanted = [_sampling(row) for row in rows]
        failed = _not_finite(logits)
        logprobs = _Logprobs(logits, wanted)
        scores = self._changed(logits, rows, failed)
        tokens = scores.argmax(dim=-1)
        warm = [
            place for place, sampling in enumerate(wanted) if sampling.temperature and place not in failed
        ]
        if warm:
            tokens[warm] = _draw(scores[warm], [(wanted[place], rows[place].step) for place in warm])
        chosen: list[int] = tokens.tolist()
        scored = logprobs.of(tokens)
        return [
            RowFailed(failed[place])
            if place in failed
            else ScoredToken(token, scored[place])
            if place in scored
            else token
            for place, token in enumerate(chosen)
        ]

    def _changed(self, logits: Tensor, rows: Sequence[Row], failed: dict[int, str]) -> Tensor:
        """The scores with what rows ask for done to them; notes rows that cannot go on in ``failed``."""
        scores = logits
        for place, row in enumerate(rows):
            sampling = _sampling(row)
            if place in failed or not _changes(sampling):
                continue
            if scores is logits:
                scores = logits.clone()
            _bias(scores[place], sampling)
            _penalize(scores[place], sampling, row)
            if sampling.grammar:
                assert self.grammars is not None, "a grammar for a model without a tokenizer"
                allowed = self.grammars.allowed(row)
                if isinstance(allowed, str):
                    failed[place] = f"the output cannot follow its grammar: {allowed}"
                else:
                    scores[place].masked_fill_(~torch.from_numpy(allowed).to(scores.device), -math.inf)
        return scores


def _sampling(row: Row) -> Sampling:
    assert row.sampling is not None, f"nothing is to be sampled after {row.call}"
    return row.sampling


def _not_finite(logits: Tensor) -> dict[int, str]:
    # One infinite or undefined score makes the sum so too: cheaper than asking each of them.
    if math.isfinite(logits.sum()):
        return {}
    finite = logits.isfinite().all(dim=-1).tolist()
    return {place: "the model's logits are not finite" for place, good in enumerate(finite) if not good}


class _Logprobs:
    """Log probabilities of the rows that ask for them."""

    def __init__(self, logits: Tensor, wanted: Sequence[Sampling]) -> None:
        self._places = [place for place, sampling in enumerate(wanted) if sampling.logprobs is not None]
        self._counts = [wanted[place].logprobs or 0 for place in self._places]
        self._values = logits[self._places].log_softmax(dim=-1) if self._places else logits[:0]

    def of(self, tokens: Tensor) -> dict[int, Logprobs]:
        """By row, once the tokens are chosen."""
        if not self._places:
            return {}
        own = self._values.gather(1, tokens[self._places][:, None])[:, 0].tolist()
        best = self._values.topk(min(max(self._counts), self._values.shape[1]), dim=-1)
        tops = zip(best.indices.tolist(), best.values.tolist(), self._counts, strict=True)
        listed = [list(zip(ids, values, strict=True))[:count] for ids, values, count in tops]
        return {
            place: Logprobs(value, top) for place, value, top in zip(self._places, own, listed, strict=True)
        }


def _changes(sampling: Sampling) -> bool:
    penalties = sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1
    return bool(sampling.logit_bias or sampling.grammar or penalties)


def _bias(scores: Tensor, sampling: Sampling) -> None:
    if sampling.logit_bias:
        tokens = torch.tensor(list(sampling.logit_bias), device=scores.device)
        scores[tokens] += torch.tensor(list(sampling.logit_bias.values()), device=scores.device)


def _penalize(scores: Tensor, sampling: Sampling, row: Row) -> None:
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted(set(row.context)), device=scores.device)
        old, penalty = scores[seen], sampling.repetition_penalty
        scores[seen] = torch.where(old < 0, old * penalty, old / penalty).clamp(-_GREATEST, _GREATEST)
    if row.step and (sampling.presence_penalty or sampling.frequency_penalty):
        output = torch.tensor(row.context[len(row.context) - row.step :], device=scores.device)
        said, counts = torch.unique(output, return_counts=True)
        scores[said] -= sampling.presence_penalty + sampling.frequency_penalty * counts


def _draw(scores: Tensor, rows: Sequence[tuple[Sampling, int]]) -> Tensor:
    """One token a row by its temperature, top-k, top-p and min-p."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.double, device=scores.device)[:, None]

    # The best score becomes 0 first, and in double: else a tiny temperature makes infinities of scores.
    scores = (scores - scores.amax(dim=-1, keepdim=True)).double()
    scores /= column([sampling.temperature for sampling, _ in rows])
    weights = scores.exp_()
    cut = [place for place, (s, _) in enumerate(rows) if s.top_p < 1 or 0 < s.top_k < scores.shape[1]]
    if cut:
        kinds = [rows[place][0] for place in cut]
        ordered, order = weights[cut].sort(dim=-1, descending=True, stable=True)
        ranks = torch.arange(ordered.shape[1], device=scores.device)
        ordered[ranks >= column([kind.top_k or math.inf for kind in kinds])] = 0
        # The smallest set that reaches top_p: a token stays while those before it fall short.
        sums = ordered.cumsum(dim=-1)
        short = column([kind.top_p for kind in kinds]) * sums[:, -1:]
        # The likeliest stays always: a tiny top_p may come to nothing.
        ordered[:, 1:][(sums - ordered)[:, 1:] >= short] = 0
        weights[cut] = torch.zeros_like(ordered).scatter_(1, order, ordered)
    if any(sampling.min_p for sampling, _ in rows):
        # The likeliest has the weight 1.
        weights[weights < column([sampling.min_p for sampling, _ in rows])] = 0
    sums = weights.cumsum(dim=-1)
    drawn = column([_fraction(sampling.seed, step) for sampling, step in rows]) * sums[:, -1:]
    return torch.searchsorted(sums, drawn, right=True)[:, 0]


def _fraction(seed: int, step: int) -> float:
    """A number in [0, 1), as good as random; below 1 by enough that products with sums stay below them."""
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=_DRAW_BITS // 8).digest()
    return int.from_bytes(digest, "big") / float(1 << _DRAW_BITS)
