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
from torch.nn import functional

from agentsched.engines.contract import Logprobs, Sampling
from agentsched.engines.embedded.grammar import Grammars
from agentsched.engines.execution import Row, RowFailed, Sampled, ScoredToken

_DRAW_BITS = 48
_GREATEST = torch.finfo(torch.float32).max
_COLDEST = 1e-30  # below it, fp32 has no quotients left
# For 8 rows of 150,000 scores: the best 256 take 3 ms, 4,096 of them 14 ms, all of them sorted 120 ms.
_CANDIDATES = (256, 4096)
_PART = 512


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


Drawn = tuple[Sampling, int]
"""What a row asks for, and how many output tokens it has already."""


def _draw(scores: Tensor, rows: Sequence[Drawn]) -> Tensor:
    """One token a row by its temperature, top-k, top-p and min-p."""
    temperatures = [min(max(sampling.temperature, _COLDEST), _GREATEST) for sampling, _ in rows]
    # The best score becomes 0 first, so its weight is 1: else small temperatures make infinities.
    weights = ((scores - scores.amax(dim=-1, keepdim=True)) / _column(temperatures, scores)).exp()
    size = weights.shape[1]
    cut = [place for place, (s, _) in enumerate(rows) if s.top_p < 1 or 0 < s.top_k < size]
    tokens = torch.zeros(len(rows), dtype=torch.long, device=scores.device)
    free = sorted(set(range(len(rows))) - set(cut))
    if free:
        tokens[free] = _place(weights[free], [rows[place] for place in free])
    # Sorting a large vocabulary takes far longer than to find the few that are nearly always enough.
    for count in sorted({min(few, size) for few in (*_CANDIDATES, size)}):
        if cut:
            asked = [rows[place] for place in cut]
            best, order = weights[cut].topk(count, dim=-1)
            enough = _cut(best, size, weights[cut].sum(dim=-1, dtype=torch.double), asked)
            tokens[cut] = order.gather(1, _place(best, asked)[:, None])[:, 0]
            cut = [place for place, done in zip(cut, enough, strict=True) if not done]
    return tokens


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _cut(best: Tensor, size: int, totals: Tensor, rows: Sequence[Drawn]) -> list[bool]:
    """Leave of each row's likeliest weights (of ``size``) what top-k and top-p do; whether no more of
    them were needed for that."""
    sums = best.cumsum(dim=-1, dtype=torch.double)
    enough = []
    for place, (sampling, _) in enumerate(rows):
        few = 0 < sampling.top_k <= best.shape[1]
        total = sums[place, sampling.top_k - 1] if few else totals[place]
        if few:
            best[place, sampling.top_k :] = 0
        # The smallest set that reaches top_p: a token stays while those before it fall short. The
        # likeliest stays always: a tiny top_p may come to nothing.
        best[place, 1:][sums[place, :-1] >= sampling.top_p * total] = 0
        whole = few or best.shape[1] == size
        enough.append(whole or bool(sums[place, -1] >= sampling.top_p * total))
    return enough


def _place(weights: Tensor, rows: Sequence[Drawn]) -> Tensor:
    """Where each row's draw falls among the running sums of its weights that min-p leaves."""
    if any(sampling.min_p for sampling, _ in rows):
        weights = weights.masked_fill(weights < _column([sampling.min_p for sampling, _ in rows], weights), 0)
    # In two steps: sums of parts, and within the part. One exact sum of all takes ten times as long.
    parts = functional.pad(weights, (0, -weights.shape[1] % _PART)).view(len(rows), -1, _PART)
    sums = parts.sum(dim=-1, dtype=torch.double).cumsum(dim=-1)
    aims = _column([_fraction(sampling.seed, step) for sampling, step in rows], sums) * sums[:, -1:]
    part = torch.searchsorted(sums, aims, right=True)
    inside = parts.gather(1, part[..., None].expand(-1, -1, _PART))[:, 0].cumsum(dim=-1, dtype=torch.double)
    left = (aims - (sums.gather(1, part) - inside[:, -1:])).clamp(min=0)
    # Rounding must not lead past the last weight that is more than nothing.
    last = torch.searchsorted(inside, inside[:, -1:].contiguous())
    within = torch.minimum(torch.searchsorted(inside, left, right=True), last)
    return (part * _PART + within)[:, 0]


def _fraction(seed: int, step: int) -> float:
    """A number in [0, 1), as good as random; below 1 by enough that products with sums stay below them."""
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=_DRAW_BITS // 8).digest()
    return int.from_bytes(digest, "big") / float(1 << _DRAW_BITS)
