"""The part of the contract suite that engines with a host tier are held to beside the rest."""

from __future__ import annotations

from agentsched.engines.contract import Engine
from tests.engines.contract import OneEngine, blocks, cached_at_most
from tests.engines.lab import BLOCK_TOKENS, CAPACITY_TOKENS, HOST_TOKENS, Lab, both_held_of


class HostTierContract(OneEngine):
    """Derive, and make an engine with a host tier of ``HOST_TOKENS``."""

    async def test_declares_the_tier(self, engine: Engine) -> None:
        limits = engine.capabilities
        assert limits.host_tier
        assert limits.host_capacity_tokens == HOST_TOKENS
        assert limits.host_tokens_per_s > 0

    async def test_what_is_evicted_is_held_in_host_memory_and_comes_back(self, lab: Lab) -> None:
        prompt, program = lab.tokens(blocks(20)), lab.name("program")
        first = lab.call(prompt, program=program, output=4)
        await first.finished()
        await lab.fill(CAPACITY_TOKENS - BLOCK_TOKENS)
        await lab.until(lambda reports: both_held_of(reports, program)[1] >= blocks(19))
        again = lab.call(prompt, program=program, output=4)
        end = await again.finished()
        assert (end.cached_tokens, end.recomputed_tokens) == (cached_at_most(prompt), 0), end
        await lab.until(lambda reports: both_held_of(reports, program) == (blocks(20), 0))

    async def test_without_orders_the_longest_unused_leaves_host_memory(self, lab: Lab) -> None:
        oldest, older = lab.tokens(blocks(16)), lab.tokens(blocks(16))
        for prompt in (oldest, older):
            await lab.cached(prompt)
        for tokens in (CAPACITY_TOKENS - 1, CAPACITY_TOKENS - 1, blocks(54)):
            await lab.fill(tokens)
        # What is too much for both: the oldest, and four blocks of the tail of the older one.
        assert await lab.cached(older) == blocks(12)
        assert await lab.cached(oldest) == 0

    async def test_kv_below_the_price_of_host_memory_is_dropped(self, lab: Lab) -> None:
        cheap, dear = lab.name("program"), lab.name("program")
        prompts = {program: lab.tokens(blocks(16)) for program in (cheap, dear)}
        for program, prompt in prompts.items():
            await lab.cached(prompt, program)
        await lab.order(
            lab.terms(host_price=2.0),
            lab.retain(cheap, 999, 0.0, host=1.0),
            lab.retain(dear, 999, 0.0, host=2.0),
        )
        await lab.fill(CAPACITY_TOKENS - BLOCK_TOKENS)
        assert await lab.cached(prompts[dear], dear) == cached_at_most(prompts[dear])
        assert await lab.cached(prompts[cheap], cheap) <= BLOCK_TOKENS

    async def test_the_head_is_kept_in_host_memory_where_the_tail_is_worth_nothing(self, lab: Lab) -> None:
        prompt, program = lab.tokens(blocks(16)), lab.name("program")
        await lab.cached(prompt, program)
        await lab.order(lab.terms(host_price=1.0), lab.retain(program, blocks(8), 0.0, host=1.0))
        await lab.fill(CAPACITY_TOKENS - BLOCK_TOKENS)
        assert await lab.cached(prompt, program) == blocks(8)

    async def test_a_prefetch_brings_kv_up_while_nobody_asks_for_it(self, lab: Lab) -> None:
        prompt, program = lab.tokens(blocks(10)), lab.name("program")
        await lab.cached(prompt, program)
        await lab.fill(CAPACITY_TOKENS - 1)
        await lab.until(lambda reports: both_held_of(reports, program) == (0, blocks(10)))
        await lab.order(lab.prefetch(program))
        await lab.until(lambda reports: both_held_of(reports, program) == (blocks(10), 0))
        assert await lab.cached(prompt, program) == cached_at_most(prompt)

    async def test_tenants_do_not_find_each_others_kv_in_host_memory(self, lab: Lab) -> None:
        prompt = lab.tokens(blocks(10))
        await lab.cached(prompt, salt="red")
        await lab.fill(CAPACITY_TOKENS - BLOCK_TOKENS)
        assert await lab.cached(prompt, salt="blue") == 0
        assert await lab.cached(prompt, salt="red") == cached_at_most(prompt)
