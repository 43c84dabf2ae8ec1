"""The contract suite: what every engine of ours must do, seen through the ``Engine`` protocol.

A test module derives from ``EngineContract`` and says how its engine is made. The engine is shared by
all tests of the class and never restarted, so each test finds the cache as others left it, as in
service: it uses fresh tokens, fresh programs, and a newer epoch, which ends all earlier orders.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from agentsched.core.decisions import YIELDS
from agentsched.core.events import CallAborted, CallFinished, CallStarted, FirstToken
from agentsched.engines.contract import RequestRefused, TokenEngine, TokensOut
from tests.engines.lab import BLOCK_TOKENS, CAPACITY_TOKENS, FOREVER, Lab, held_of


def blocks(count: int) -> int:
    """Tokens of so many blocks."""
    return count * BLOCK_TOKENS


def cached_at_most(prompt: list[int]) -> int:
    """What of a fully cached prompt counts as cached: the last token is always computed."""
    return (len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS


@pytest.mark.asyncio(loop_scope="class")
class OneEngine:
    """Derive, and make an engine of ``CAPACITY_TOKENS`` in blocks of ``BLOCK_TOKENS``."""

    @staticmethod
    def make(folder: Path) -> TokenEngine:
        """``folder`` is empty, and the engine's to use."""
        raise NotImplementedError

    @pytest_asyncio.fixture(scope="class", loop_scope="class")
    @classmethod
    async def engine(cls, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TokenEngine]:
        engine = cls.make(tmp_path_factory.mktemp("engine"))
        await engine.start()
        yield engine
        await engine.close()

    @pytest_asyncio.fixture(loop_scope="class")
    async def lab(self, engine: TokenEngine) -> AsyncIterator[Lab]:
        lab = Lab(engine)
        await lab.order(lab.terms())
        yield lab
        await lab.close()


class EngineContract(OneEngine):
    """What every engine must do, without a host tier."""

    async def test_declares_its_limits(self, engine: TokenEngine) -> None:
        limits = engine.capabilities
        assert limits.capacity_tokens == CAPACITY_TOKENS
        assert limits.block_tokens == BLOCK_TOKENS
        assert limits.max_context_tokens >= CAPACITY_TOKENS
        assert limits.vocabulary > 0
        assert limits.ranks
        assert limits.retention
        assert limits.tail_eviction
        assert limits.recorded_outputs
        assert limits.host_tier is (limits.host_capacity_tokens > 0)

    # Calls

    async def test_a_call_streams_in_order(self, lab: Lab) -> None:
        run = lab.call(lab.tokens(100), output=5)
        end = await run.finished()
        kinds = [type(item) for item in run.items]
        assert kinds[:3] == [CallStarted, FirstToken, TokensOut]
        assert kinds[-1] is CallFinished
        assert set(kinds[3:-1]) <= {TokensOut}
        assert (end.prompt_tokens, end.cached_tokens, end.output_tokens) == (100, 0, 5)
        assert len(run.tokens) == 5
        assert all(0 <= token < lab.engine.capabilities.vocabulary for token in run.tokens)

    async def test_calls_run_side_by_side(self, lab: Lab) -> None:
        first = await lab.occupied()
        await lab.call(lab.tokens(40), output=2).finished()
        before = len(first.tokens)
        await lab.call(lab.tokens(40), output=2).finished()
        assert len(first.tokens) > before
        await first.hang_up()

    async def test_output_ends_before_a_stop_token(self, lab: Lab) -> None:
        prompt, call = lab.tokens(20), lab.name("call")
        # Sampled by seed: a small model of random weights repeats itself when it is greedy.
        free = lab.call(prompt, output=8, call=call, temperature=1.0)
        await free.finished()
        place = next(n for n in range(1, 8) if free.tokens[n] not in free.tokens[:n])
        stop = (free.tokens[place],)
        stopped = lab.call(prompt, output=8, call=call, temperature=1.0, stop_tokens=stop)
        assert (await stopped.finished()).output_tokens == place
        assert stopped.tokens == free.tokens[:place]

    async def test_recorded_outputs_are_emitted(self, lab: Lab) -> None:
        recorded = lab.tokens(40)
        run = lab.call(lab.tokens(30), output=1, recorded=recorded, stop_tokens=(recorded[3],))
        end = await run.finished()
        assert run.tokens == recorded
        assert end.output_tokens == 40

    async def test_log_probabilities_are_told_where_that_is_claimed(self, lab: Lab) -> None:
        run = lab.call(lab.tokens(20), output=4, logprobs=3)
        if not lab.engine.capabilities.logprobs:
            with pytest.raises(RequestRefused, match="logprobs"):
                await run.finished()
            return
        await run.finished()
        told = [score for item in run.items if isinstance(item, TokensOut) for score in item.logprobs or ()]
        assert len(told) == len(run.tokens) == 4
        for token, score in zip(run.tokens, told, strict=True):
            assert len(score.top) == 3
            assert score.top[0] == (token, score.token)  # greedy
            assert 0 > score.token >= score.top[1][1] >= score.top[2][1]

    async def test_grammars_are_followed_where_that_is_claimed(self, lab: Lab) -> None:
        run = lab.call(lab.tokens(20), output=3, grammar="start: <[9]> <[8]> <[11]> <[9]>")
        if not lab.engine.capabilities.grammars:
            with pytest.raises(RequestRefused, match="grammar"):
                await run.finished()
            return
        await run.finished()
        assert run.tokens == [9, 8, 11]

    @pytest.mark.parametrize(
        ("fault", "says"),
        [
            ("empty", "prompt"),
            ("outside", "vocabulary"),
            ("long", "context"),
            ("no output", "max_tokens"),
            ("empty recording", "recorded"),
            ("shared beyond the prompt", "shared_prefix_tokens"),
            ("shared below nothing", "shared_prefix_tokens"),
            ("twice", "in use"),
        ],
    )
    async def test_refuses_what_it_cannot_serve(self, lab: Lab, fault: str, says: str) -> None:
        running = await lab.occupied()
        good, outside = lab.tokens(8), lab.engine.capabilities.vocabulary
        match fault:
            case "empty":
                bad = lab.call([])
            case "outside":
                bad = lab.call([outside])
            case "long":
                bad = lab.call(lab.tokens(CAPACITY_TOKENS), output=CAPACITY_TOKENS)
            case "no output":
                bad = lab.call(good, output=0)
            case "shared beyond the prompt":
                bad = lab.call(good, salt="red", shared=9)
            case "shared below nothing":
                bad = lab.call(good, salt="red", shared=-1)
            case "empty recording":
                bad = lab.call(good, recorded=[])
            case _:
                bad = lab.call(good, call=running.call)
        with pytest.raises(RequestRefused, match=says):
            await bad.finished()
        assert bad.items == []
        await lab.call(good).finished()
        await running.hang_up()

    # Prefix cache

    async def test_a_prompt_seen_before_is_cached(self, lab: Lab) -> None:
        prompt = lab.tokens(200)
        assert await lab.cached(prompt) == 0
        assert await lab.cached(prompt) == cached_at_most(prompt)
        assert await lab.cached([*prompt[:100], *lab.tokens(100)]) == blocks(6)

    async def test_output_is_cached_for_the_next_call(self, lab: Lab) -> None:
        prompt, recorded = lab.tokens(50), lab.tokens(50)
        await lab.call(prompt, recorded=recorded).finished()
        # The last token was emitted, but never computed.
        assert await lab.cached([*prompt, *recorded, *lab.tokens(9)]) == blocks(99 // BLOCK_TOKENS)

    async def test_a_prefix_is_shared_between_programs(self, lab: Lab) -> None:
        prompt = lab.tokens(blocks(4))
        first, second = lab.name("program"), lab.name("program")
        await lab.cached(prompt, first)
        await lab.until(lambda reports: held_of(reports, first) == blocks(4))
        await lab.cached(prompt, second)
        await lab.until(lambda reports: held_of(reports, second) == blocks(4))

    async def test_tenants_do_not_see_each_others_kv(self, lab: Lab) -> None:
        prompt = lab.tokens(blocks(6))
        assert await lab.cached(prompt, salt="red") == 0
        assert await lab.cached(prompt, salt="blue") == 0
        assert await lab.cached(prompt) == 0
        assert await lab.cached(prompt, salt="red") == cached_at_most(prompt)

    async def test_tenants_share_a_prefix_that_is_declared_shared(self, lab: Lab) -> None:
        prompt = lab.tokens(blocks(6))
        await lab.cached(prompt, salt="red", shared=blocks(3) + 5)
        assert await lab.cached(prompt, salt="blue", shared=blocks(3) + 5) == blocks(3)
        assert await lab.cached(prompt, salt="blue", shared=blocks(2)) == blocks(2)
        assert await lab.cached(prompt) == blocks(3)
        assert await lab.cached(prompt, salt="red") == 0, "nothing is shared with a call that does not say so"

    async def test_counts_tokens_computed_again(self, lab: Lab) -> None:
        prompt = lab.tokens(blocks(10))
        await lab.cached(prompt)
        await lab.fill(CAPACITY_TOKENS - BLOCK_TOKENS)
        end = await lab.call(prompt).finished()
        assert end.cached_tokens + end.recomputed_tokens == len(prompt)
        assert end.recomputed_tokens >= blocks(9)

    # Without orders: stock

    async def test_without_orders_calls_go_first_come_first_served(self, lab: Lab) -> None:
        await lab.order(lab.terms(max_running=1))
        running = await lab.occupied()
        runs = [lab.call(lab.tokens(20 + n)) for n in (3, 1, 2)]
        await lab.submitted()
        await running.hang_up()
        for run in runs:
            await run.finished()
        assert lab.starts(*runs) == runs

    async def test_without_orders_the_longest_unused_tail_is_evicted(self, lab: Lab) -> None:
        older, newer = lab.tokens(blocks(16)), lab.tokens(blocks(16))
        await lab.cached(older)
        await lab.cached(newer)
        await lab.fill(blocks(40))
        assert await lab.cached(newer) == cached_at_most(newer)
        # 8 of 16 blocks were evicted, and one more for the last token of the call above.
        assert await lab.cached(older) == blocks(7)

    # Standing orders

    async def test_ranks_order_the_queue(self, lab: Lab) -> None:
        programs = [lab.name("program") for _ in range(3)]
        await lab.order(lab.terms(max_running=1))
        running = await lab.occupied()
        runs = [lab.call(lab.tokens(20), program=program) for program in programs]
        await lab.submitted()
        await lab.order(*(lab.rank(program, key) for program, key in zip(programs, (3, 1, 2), strict=True)))
        await running.hang_up()
        for run in runs:
            await run.finished()
        assert lab.starts(*runs) == [runs[1], runs[2], runs[0]]

    async def test_repeated_and_older_orders_are_ignored(self, lab: Lab) -> None:
        first, second = lab.name("program"), lab.name("program")
        await lab.order(lab.terms(max_running=1))
        running = await lab.occupied()
        runs = [lab.call(lab.tokens(20), program=program) for program in (first, second)]
        await lab.submitted()
        newest = lab.rank(first, 9, seq=1000)
        await lab.order(newest, lab.rank(second, 5), lab.rank(first, 1, seq=999), newest)
        await running.hang_up()
        for run in runs:
            await run.finished()
        assert lab.starts(*runs) == [runs[1], runs[0]]

    async def test_retained_kv_outlives_newer_kv(self, lab: Lab) -> None:
        older, newer, program = lab.tokens(blocks(16)), lab.tokens(blocks(16)), lab.name("program")
        await lab.cached(older, program)
        await lab.order(lab.retain(program, len(older)))
        await lab.cached(newer)
        await lab.fill(blocks(40))
        assert await lab.cached(older, program) == cached_at_most(older)
        assert await lab.cached(newer) == blocks(7)

    async def test_the_head_is_kept_when_the_tail_is_worth_nothing(self, lab: Lab) -> None:
        prompt, program = lab.tokens(blocks(16)), lab.name("program")
        await lab.cached(prompt, program)
        await lab.order(lab.retain(program, blocks(8)))
        await lab.fill(CAPACITY_TOKENS - blocks(8))
        assert await lab.cached(prompt, program) == blocks(8)

    async def test_kv_at_or_below_the_price_goes(self, lab: Lab) -> None:
        cheap, dear = lab.name("program"), lab.name("program")
        prompts = {program: lab.tokens(blocks(16)) for program in (cheap, dear)}
        for program, prompt in prompts.items():
            await lab.cached(prompt, program)
        await lab.order(lab.terms(device_price=2.0), lab.retain(cheap, 999, 2.0), lab.retain(dear, 999, 3.0))
        await lab.fill(CAPACITY_TOKENS - blocks(16))
        assert await lab.cached(prompts[dear], dear) == cached_at_most(prompts[dear])
        assert await lab.cached(prompts[cheap], cheap) == 0

    async def test_kv_that_yields_outlives_newer_kv_worth_nothing_and_holds_up_nobody(self, lab: Lab) -> None:
        older, newer, program = lab.tokens(blocks(16)), lab.tokens(blocks(16)), lab.name("program")
        await lab.cached(older, program)
        await lab.order(lab.retain(program, 999, YIELDS))
        await lab.cached(newer)
        await lab.fill(blocks(40))
        assert await lab.cached(older, program) == cached_at_most(older)
        await lab.order(lab.retain(program, 999, YIELDS))
        await lab.fill(CAPACITY_TOKENS - BLOCK_TOKENS)
        assert await lab.cached(older, program) <= BLOCK_TOKENS
        assert not any(report.broken_leases for report in lab.reports)

    @pytest.mark.parametrize("how", ["lease over", "released", "new epoch"])
    async def test_retention_ends(self, lab: Lab, how: str) -> None:
        prompt, program = lab.tokens(blocks(16)), lab.name("program")
        await lab.cached(prompt, program)
        await lab.order(lab.retain(program, len(prompt), lease=0.0 if how == "lease over" else FOREVER))
        if how == "released":
            await lab.order(lab.release(program))
        later = Lab(lab.engine)
        if how == "new epoch":
            await later.order(later.terms())
        await lab.fill(CAPACITY_TOKENS - BLOCK_TOKENS)
        assert await lab.cached(prompt, program) <= BLOCK_TOKENS
        assert not any(report.broken_leases for report in lab.reports)
        await later.close()

    async def test_a_stuck_engine_breaks_the_cheapest_lease_and_says_so(self, lab: Lab) -> None:
        cheap, dear = lab.name("program"), lab.name("program")
        prompts = {program: lab.tokens(blocks(16)) for program in (cheap, dear)}
        for program, prompt in prompts.items():
            await lab.cached(prompt, program)
        await lab.order(lab.retain(cheap, 999, 1.0), lab.retain(dear, 999, 2.0))
        await lab.fill(CAPACITY_TOKENS - blocks(20))
        await lab.until(lambda reports: any(report.broken_leases for report in reports))
        assert [name for report in lab.reports for name in report.broken_leases] == [cheap]
        assert await lab.cached(prompts[dear], dear) == cached_at_most(prompts[dear])

    async def test_a_preempted_call_keeps_its_output(self, lab: Lab) -> None:
        outputs = [lab.tokens(200) for _ in range(2)]
        programs = [lab.name("program") for _ in outputs]
        await lab.order(lab.rank(programs[0], 2), lab.rank(programs[1], 1))
        runs = [
            lab.call(lab.tokens(blocks(24)), program=program, recorded=output)
            for program, output in zip(programs, outputs, strict=True)
        ]
        for run in runs:
            await run.finished()
        assert [run.tokens for run in runs] == outputs
        await lab.until(lambda reports: any(report.preempted for report in reports))
        assert {name for report in lab.reports for name in report.preempted} == {programs[0]}

    # Aborts and reports

    async def test_closing_the_stream_aborts_the_call(self, lab: Lab) -> None:
        await lab.order(lab.terms(max_running=1))
        running, prompt = await lab.occupied(), lab.tokens(100)
        waiting = lab.call(prompt)
        await lab.submitted()
        await waiting.hang_up()
        await running.hang_up()
        await lab.fill(blocks(2))
        await lab.until(lambda reports: reports[-1].running == reports[-1].queued == 0)
        assert not any(isinstance(item, CallAborted | CallFinished) for item in running.items)
        assert await lab.cached(prompt) == 0, "a call that was aborted in the queue was computed"

    async def test_the_kv_of_an_aborted_call_stays_as_cache(self, lab: Lab) -> None:
        prompt = lab.tokens(100)
        run = lab.call(prompt, output=700)
        await run.reached(FirstToken)
        await run.hang_up()
        assert await lab.cached(prompt) == cached_at_most(prompt)

    async def test_a_new_reader_gets_a_snapshot_first(self, lab: Lab) -> None:
        program = lab.name("program")
        await lab.cached(lab.tokens(blocks(3)), program)
        await lab.until(lambda reports: held_of(reports, program) == blocks(3))
        later = Lab(lab.engine)
        await later.until(lambda reports: bool(reports))
        assert later.reports[0].snapshot
        assert later.reports[0].engine == lab.engine.name
        assert held_of(later.reports[:1], program) == blocks(3)
        await later.close()

    async def test_reports_account_for_all_memory_and_work(self, lab: Lab) -> None:
        await lab.until(lambda reports: bool(reports))
        known, program = len(lab.reports), lab.name("program")
        await lab.call(lab.tokens(blocks(5)), program=program, output=20).finished()
        await lab.until(lambda reports: len(reports) > known and reports[-1].running == 0)
        new = lab.reports[known:]
        assert sum(report.prefilled_tokens for report in new) == blocks(5)
        assert sum(report.decoded_tokens for report in new) == 20
        assert sum(report.step_s for report in new) > 0
        assert new[-1].free_tokens + new[-1].evictable_tokens == CAPACITY_TOKENS
        assert held_of(new, program) == blocks(6)
