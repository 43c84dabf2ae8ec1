"""Chooses the tokens after a batch of rows from their scores.

Rows are sampled together: what one of them asks for beyond the greedy choice is done for the rows that
ask for it, all at once where it looks through the vocabulary. A draw takes the number that (seed, step)
gives and finds its place among the summed probabilities, so it depends on nothing but the row itself.

Whoever asks a GPU for a number waits for all that was launched before. So everything that a step wants to
know of its rows comes in one transfer, and what goes to the device is not waited for. A draw for which the
likeliest few were not enough (no one knows before) costs another transfer.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from agentsched.engines.contract import Logprobs, Sampling
from agentsched.engines.embedded.batch import sent
from agentsched.engines.execution import Row, RowFailed, Sampled, ScoredToken

if TYPE_CHECKING:
    from agentsched.engines.embedded.grammar import Grammars

_DRAW_BITS = 48
_GREATEST = torch.finfo(torch.float32).max
_COLDEST = 1e-30  # below it, fp32 has no quotients left
# For 8 rows of 150,000 scores: the best 256 take 3 ms, 4,096 of them 14 ms, all of them sorted 120 ms.
_CANDIDATES = (256, 4096)
_PART = 512
_NOT_FINITE = "the model's logits are not finite"

Drawn = tuple[Sampling, int]
"""What a row asks for, and how many output tokens it has already."""


class Sampler:
    """``grammars`` is None for a model without a tokenizer, whose outputs cannot follow any."""

    def __init__(self, grammars: Grammars | None = None) -> None:
        self.grammars = grammars

    def sample(self, logits: Tensor, rows: Sequence[Row]) -> list[Sampled]:
        """What comes after each row, all of which have ``sampling``; ``logits`` is [rows, vocabulary]."""
        if not rows:
            return []
        failed: dict[int, str] = {}
        scores = self._changed(logits, rows, failed)
        asked: list[Drawn | None] = [
            None if place in failed or not _sampling(row).temperature else (_sampling(row), row.step)
            for place, row in enumerate(rows)
        ]
        sampled: list[Sampled] = [None] * len(rows)
        left, size = list(range(len(rows))), logits.shape[1]
        # Sorting a large vocabulary takes far longer than to find the few that are nearly always enough.
        for count in sorted({min(few, size) for few in (*_CANDIDATES, size)}):
            places = _places(left, logits)
            wanted = [_sampling(rows[place]).logprobs for place in left]
            told = _chosen(logits[places], scores[places], [asked[place] for place in left], wanted, count)
            answers = dict(zip(left, _to_host(told), strict=True))
            for place, (token, finite, _, *scored) in answers.items():
                if not finite or place in failed:
                    sampled[place] = RowFailed(failed[place] if finite else _NOT_FINITE)
                else:
                    sampled[place] = _scored(int(token), _sampling(rows[place]).logprobs, scored)
            left = [place for place, (_, _, enough, *_) in answers.items() if not enough]
            if not left:
                break
        return sampled

    def _changed(self, logits: Tensor, rows: Sequence[Row], failed: dict[int, str]) -> Tensor:
        """The scores with what rows ask for done to them; notes rows that cannot go on in ``failed``."""
        scores = logits
        for place, row in enumerate(rows):
            sampling = _sampling(row)
            if not _changes(sampling):
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
                    forbidden = sent(torch.from_numpy(~allowed), scores.device)
                    scores[place].masked_fill_(forbidden, -math.inf)
        return scores


def _sampling(row: Row) -> Sampling:
    assert row.sampling is not None, f"nothing is to be sampled after {row.call}"
    return row.sampling


def _places(places: Sequence[int], rows: Tensor) -> Tensor | slice:
    """An index of these of the rows; all of them are not copied."""
    return slice(None) if len(places) == len(rows) else sent(torch.tensor(places), rows.device)


def _to_host(told: Tensor) -> list[list[float]]:
    """The only way from the device to the host: waits for all that the step computes."""
    values: list[list[float]] = told.tolist()
    return values


def _chosen(
    logits: Tensor,
    scores: Tensor,
    asked: Sequence[Drawn | None],
    wanted: Sequence[int | None],
    count: int,
) -> Tensor:
    """A line a row, exact in doubles: its token, whether its logits are finite, whether the likeliest
    ``count`` were enough to draw from, and then what ``_log_probabilities`` tells."""
    # NaN is both the greatest and the least. Asking each score takes twenty times as long.
    finite = logits.amax(dim=-1).isfinite() & logits.amin(dim=-1).isfinite()
    tokens, enough = scores.argmax(dim=-1), torch.ones_like(finite)
    warm = [place for place, drawn in enumerate(asked) if drawn is not None]
    if warm:
        at = _places(warm, scores)
        # A draw among what is no number might fall outside of the vocabulary.
        sane = scores[at].masked_fill(~finite[at][:, None], 0)
        tokens[at], enough[at] = _draw(sane, [drawn for drawn in asked if drawn is not None], count)
    told = torch.stack((tokens.double(), finite.double(), enough.double()), dim=1)
    if all(alternatives is None for alternatives in wanted):
        return told
    return torch.cat((told, _log_probabilities(logits, tokens, wanted)), dim=1)


def _log_probabilities(logits: Tensor, tokens: Tensor, wanted: Sequence[int | None]) -> Tensor:
    """For the rows that want any: that of the token, and the likeliest tokens and theirs, in turn."""
    most = min(max(count or 0 for count in wanted), logits.shape[1])
    places = [place for place, count in enumerate(wanted) if count is not None]
    at = _places(places, logits)
    values = logits[at].log_softmax(dim=-1)
    best = values.topk(most, dim=-1)
    pairs = torch.stack((best.indices.double(), best.values.double()), dim=-1).flatten(1)
    told = torch.zeros(len(wanted), 1 + 2 * most, dtype=torch.double, device=logits.device)
    told[at] = torch.cat((values.gather(1, tokens[at][:, None]).double(), pairs), dim=1)
    return told


def _scored(token: int, alternatives: int | None, scored: Sequence[float]) -> int | ScoredToken:
    if alternatives is None:
        return token
    listed = [(int(other), value) for other, value in zip(scored[1::2], scored[2::2], strict=True)]
    return ScoredToken(token, Logprobs(scored[0], listed[:alternatives]))


def _changes(sampling: Sampling) -> bool:
    penalties = sampling.presence_penalty or sampling.frequency_penalty or sampling.repetition_penalty != 1
    return bool(sampling.logit_bias or sampling.grammar or penalties)


def _bias(scores: Tensor, sampling: Sampling) -> None:
    if sampling.logit_bias:
        tokens = sent(torch.tensor(list(sampling.logit_bias)), scores.device)
        scores[tokens] += sent(torch.tensor(list(sampling.logit_bias.values())), scores.device)


def _penalize(scores: Tensor, sampling: Sampling, row: Row) -> None:
    if sampling.repetition_penalty != 1:
        seen = sent(torch.tensor(sorted(set(row.context))), scores.device)
        old, penalty = scores[seen], sampling.repetition_penalty
        scores[seen] = torch.where(old < 0, old * penalty, old / penalty).clamp(-_GREATEST, _GREATEST)
    if row.step and (sampling.presence_penalty or sampling.frequency_penalty):
        said = Counter(row.context[len(row.context) - row.step :])
        counts = torch.tensor(list(said.values()))
        penalties = sampling.presence_penalty + sampling.frequency_penalty * counts
        scores[sent(torch.tensor(list(said)), scores.device)] -= sent(penalties, scores.device)


def _draw(scores: Tensor, rows: Sequence[Drawn], count: int) -> tuple[Tensor, Tensor]:
    """One token a row by its temperature, top-k, top-p and min-p; whether that needed no more than the
    likeliest ``count``."""
    temperatures = [min(max(sampling.temperature, _COLDEST), _GREATEST) for sampling, _ in rows]
    # The best score becomes 0 first, so its weight is 1: else small temperatures make infinities.
    weights = ((scores - scores.amax(dim=-1, keepdim=True)) / _column(temperatures, scores)).exp()
    size = weights.shape[1]
    cut = [place for place, (s, _) in enumerate(rows) if s.top_p < 1 or 0 < s.top_k < size]
    free = sorted(set(range(len(rows))) - set(cut))
    tokens = torch.zeros(len(rows), dtype=torch.long, device=scores.device)
    enough = torch.ones(len(rows), dtype=torch.bool, device=scores.device)
    if free:
        at = _places(free, scores)
        tokens[at] = _place(weights[at], [rows[place] for place in free])
    if cut:
        at, asked = _places(cut, scores), [rows[place] for place in cut]
        best, order = weights[at].topk(count, dim=-1)
        enough[at] = _cut(best, size, weights[at].sum(dim=-1, dtype=torch.double), asked)
        tokens[at] = order.gather(1, _place(best, asked)[:, None])[:, 0]
    return tokens, enough


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return sent(torch.tensor(values, dtype=like.dtype), like.device)[:, None]


def _cut(best: Tensor, size: int, totals: Tensor, rows: Sequence[Drawn]) -> Tensor:
    """Leave of each row's likeliest weights (of ``size``) what top-k and top-p do; whether no more of
    them were needed for that."""
    count = best.shape[1]
    few = [0 < sampling.top_k <= count for sampling, _ in rows]
    kept = [sampling.top_k if is_few else count for is_few, (sampling, _) in zip(few, rows, strict=True)]
    sums = best.cumsum(dim=-1, dtype=torch.double)
    first = sent(torch.tensor(kept), best.device)[:, None]
    known = sent(torch.tensor([is_few or count == size for is_few in few]), best.device)
    is_cut = sent(torch.tensor(few), best.device)[:, None]
    total = torch.where(is_cut, sums.gather(1, first - 1), totals[:, None])
    aim = _column([sampling.top_p for sampling, _ in rows], sums) * total
    best.masked_fill_(torch.arange(count, device=best.device) >= first, 0)
    # The smallest set that reaches top_p: a token stays while those before it fall short. The
    # likeliest stays always: a tiny top_p may come to nothing.
    best[:, 1:].masked_fill_(sums[:, :-1] >= aim, 0)
    return known | (sums[:, -1] >= aim[:, 0])


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
