"""Without orders the engine is a stock engine: held step by step against one that was written apart."""

from __future__ import annotations

from random import Random

import pytest

from agentsched.core.events import CallFinished, CallStarted
from agentsched.engines.contract import TokensOut
from tests.engines.bench import BLOCK, Bench
from tests.engines.stock import Stock


def happened(bench: Bench, since: int) -> list[tuple[str, str, int]]:
    told: list[tuple[str, str, int]] = []
    for item in bench.outputs[since:]:
        match item:
            case CallStarted(call=call, cached_tokens=cached):
                told.append((call, "start", cached))
            case TokensOut(call=call, tokens=[token]):
                told.append((call, "token", token))
            case CallFinished(call=call):
                told.append((call, "end", 0))
            case _:
                pass
    return told


@pytest.mark.parametrize("seed", range(12))
def test_without_orders_it_is_fcfs_and_lru_to_the_token(seed: int) -> None:
    random = Random(seed)
    blocks, chunk, most = random.randrange(14, 40), random.choice([3, 8, 32]), random.choice([1, 3, 8])
    bench = Bench(blocks, chunk_tokens=chunk, max_running=most)
    stock = Stock(blocks, chunk, most)
    contexts = [[random.randrange(50) for _ in range(random.randrange(1, 20))] for _ in range(4)]
    evicted = preempted = 0
    for number in range(250):
        if random.random() < 0.45:
            name, place = f"c{number}", random.randrange(len(contexts))
            output = random.randrange(1, 40)
            prompt = [*contexts[place], *(random.randrange(50) for _ in range(random.randrange(9)))]
            if random.random() < 0.6:
                contexts[place] = prompt
            if len(prompt) + output > blocks * BLOCK:
                contexts[place] = prompt[: random.randrange(1, 8)]
                continue
            bench.submit(name, prompt, output, f"p{place}")
            stock.submit(name, prompt, output)
        if random.random() < 0.04:
            name = f"c{random.randrange(number + 1)}"
            stock.abort(name, bench.now)
            bench.engine.abort(name, bench.now)
        for _ in range(random.randrange(12)):
            since, now = len(bench.outputs), bench.now
            bench.step()
            assert sorted(happened(bench, since)) == sorted(stock.step(now))
            report = bench.report()
            evicted += report.evicted_tokens
            preempted += len(report.preempted)
            assert report.free_tokens == len(stock.free) * BLOCK
            assert report.evictable_tokens == stock.idle * BLOCK
            assert (report.running, report.queued) == (len(stock.running), len(stock.queue))
    assert evicted
    assert bool(preempted) is (most > 1), "one call alone is never preempted; several are here"
