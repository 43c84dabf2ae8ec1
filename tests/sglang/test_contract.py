"""SGLang with the plugin, held to the contract suite of our own engines through the adapter of the daemon.

The adapter takes whole requests, so ``TokenFace`` puts calls of tokens to SGLang's own ``/generate`` beside
it. Where SGLang does otherwise than our engines, the test here says how; what it does by itself (sampling,
grammars, refusals) is SGLang's business, and is not tried.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
import pytest_asyncio

from agentsched.core.decisions import EngineOrder
from agentsched.core.events import CallFinished, CallStarted, FirstToken, StepReport
from agentsched.engines.contract import Capabilities, GenerateRequest, RequestRefused, TokenEngine, TokensOut
from agentsched.engines.sglang.recorded import FLAG, PROCESSOR, parameters
from agentsched.engines.streams import CallItem, ReportFeed
from agentsched.engines.upstream.engine import UpstreamEngine, UpstreamSettings
from agentsched.workloads.sglang_model import VOCABULARY, write_model
from agentsched.workloads.sglang_server import PLUGIN, Limits, SglangServer
from tests.engines.contract import EngineContract, blocks, cached_at_most
from tests.engines.lab import BLOCK_TOKENS, CAPACITY_TOKENS, Lab, Run, held_of

pytestmark = pytest.mark.timeout(180)

LIMITS = Limits(kv_tokens=CAPACITY_TOKENS, context_tokens=2 * CAPACITY_TOKENS, chunk_tokens=CAPACITY_TOKENS)


STEP_S = 0.03
"""How much longer a step takes than it would: so that answers of two steps come one after the other."""

ROOM_TOKENS = BLOCK_TOKENS + 2
"""SGLang begins a call only where more than its tokens and a page are free: so many fewer may fill it."""


class TokenFace:
    """See ``TokenEngine``. The adapter has one reader of its reports, so they are handed on here."""

    def __init__(self, server: SglangServer) -> None:
        self._server = server
        self._adapter = UpstreamEngine(UpstreamSettings(url=server.url, poll_s=0.2))
        self._http = aiohttp.ClientSession()
        self._feed = ReportFeed()
        self._pump: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self._adapter.name

    @property
    def capabilities(self) -> Capabilities:
        return msgspec.structs.replace(self._adapter.capabilities, vocabulary=VOCABULARY)

    async def start(self) -> None:
        await self._adapter.start()
        self._pump = asyncio.create_task(self._publish())
        async with self._http.post(
            self._server.url + "/slow_down", json={"forward_sleep_time": STEP_S}
        ) as answer:
            assert answer.status == 200

    async def _publish(self) -> None:
        async for report in self._adapter.reports():
            self._feed.publish(report)

    async def order(self, orders: Sequence[EngineOrder]) -> None:
        await self._adapter.order(orders)

    def reports(self) -> AsyncIterator[StepReport]:
        return self._feed.read()

    async def close(self) -> None:
        if self._pump is not None:
            self._pump.cancel()
            await asyncio.wait([self._pump])
        await self._http.close()
        await self._adapter.close()
        self._server.kill()

    async def generate(self, request: GenerateRequest) -> AsyncGenerator[CallItem, None]:
        body: dict[str, Any] = {
            "rid": request.call,
            "routing_key": request.program,  # no header says it there
            "input_ids": request.prompt,
            "stream": True,
            "sampling_params": {
                "max_new_tokens": request.sampling.max_output_tokens,
                "temperature": request.sampling.temperature,
                "ignore_eos": True,
            },
        }
        if request.recorded is not None:
            body["custom_logit_processor"] = PROCESSOR
            body["sampling_params"] |= {
                "max_new_tokens": len(request.recorded),
                "custom_params": parameters(request.recorded),
            }
        if request.salt:
            body["cache_salt"] = request.salt
        async with self._http.post(self._server.url + "/generate", json=body) as answer:
            if answer.status != 200:
                raise RequestRefused(await answer.text())
            seen, said = 0, {}
            async for said in _events(answer):
                if not seen:
                    yield CallStarted(call=request.call, cached_tokens=said["meta_info"]["cached_tokens"])
                    yield FirstToken(call=request.call)
                count = said["meta_info"]["completion_tokens"]
                if count > seen:
                    yield TokensOut(call=request.call, tokens=said["output_ids"][seen - count :])
                    seen = count
        yield CallFinished(
            call=request.call,
            prompt_tokens=said["meta_info"]["prompt_tokens"],
            cached_tokens=said["meta_info"]["cached_tokens"],
            output_tokens=seen,
        )


async def _events(answer: aiohttp.ClientResponse) -> AsyncIterator[Any]:
    async for line in answer.content:
        if line.startswith(b"data: {"):
            said = json.loads(line[6:])
            if "error" in said:
                raise RequestRefused(said["error"]["message"])
            yield said


class HttpLab(Lab):
    """Calls reach the engine when they do: it says how many it has."""

    def __init__(self, engine: TokenEngine) -> None:
        super().__init__(engine)
        self._runs: list[Run] = []

    def call(self, prompt: list[int], **more: Any) -> Run:
        run = super().call(prompt, **more)
        self._runs.append(run)
        return run

    async def submitted(self) -> None:
        live = sum(not run.over for run in self._runs)
        await self.until(lambda seen: bool(seen) and seen[-1].running + seen[-1].queued == live)

    async def fill(self, tokens: int) -> None:
        await super().fill(min(tokens, CAPACITY_TOKENS - ROOM_TOKENS))


def _not_tried(reason: str) -> Any:
    async def test(self: EngineContract) -> None:
        pytest.skip(reason)

    return test


class TestSglang(EngineContract):
    test_output_ends_before_a_stop_token = _not_tried("sampling is SGLang's own")
    test_log_probabilities_are_told_where_that_is_claimed = _not_tried("SGLang's own, passed on as it is")
    test_grammars_are_followed_where_that_is_claimed = _not_tried("SGLang's own, passed on as it is")
    test_tenants_share_a_prefix_that_is_declared_shared = _not_tried("SGLang's salts are for whole prompts")
    test_a_preempted_call_keeps_its_output = _not_tried("nothing is preempted by rank")

    @staticmethod
    def make(folder: Path) -> TokenEngine:
        write_model(folder)
        server = SglangServer(folder, (*PLUGIN, FLAG, "--page-size", str(BLOCK_TOKENS)), LIMITS)
        server.start()
        return TokenFace(server)

    @pytest_asyncio.fixture(loop_scope="class")
    async def lab(self, engine: TokenEngine) -> AsyncIterator[Lab]:
        lab = HttpLab(engine)
        await lab.order(lab.terms())
        yield lab
        await lab.close()

    async def test_declares_its_limits(self, engine: TokenEngine) -> None:
        limits = engine.capabilities
        assert limits.capacity_tokens == CAPACITY_TOKENS
        assert limits.block_tokens == BLOCK_TOKENS
        assert limits.max_context_tokens >= CAPACITY_TOKENS
        assert limits.ranks
        assert limits.retention
        assert limits.tail_eviction
        assert limits.recorded_outputs
        assert not limits.host_tier

    async def test_refuses_what_it_cannot_serve(self, lab: Lab) -> None:  # type: ignore[override]
        """What is refused is SGLang's to say; it takes other calls after that."""
        with pytest.raises(RequestRefused):
            await lab.call(lab.tokens(4 * CAPACITY_TOKENS)).finished()
        await lab.call(lab.tokens(8)).finished()

    async def test_output_is_cached_for_the_next_call(self, lab: Lab) -> None:
        prompt = lab.tokens(50)
        run = lab.call(prompt, output=50)
        await run.finished()
        # The last token was emitted, but never computed.
        assert await lab.cached([*prompt, *run.tokens, *lab.tokens(9)]) == blocks(99 // BLOCK_TOKENS)

    async def test_counts_tokens_computed_again(self, lab: Lab) -> None:
        """For the engine as a whole: over HTTP SGLang does not say it of a call."""
        prompt, program = lab.tokens(blocks(10)), lab.name("program")
        await lab.cached(prompt, program)
        await lab.fill(CAPACITY_TOKENS - BLOCK_TOKENS)
        before = len(lab.reports)
        assert await lab.cached([*prompt, *lab.tokens(20)], program) == 0
        await lab.until(
            lambda reports: sum(r.recomputed_tokens for r in itertools.islice(reports, before, None)) > 0
        )
        assert sum(report.recomputed_tokens for report in lab.reports) == blocks(10)

    async def test_without_orders_the_longest_unused_tail_is_evicted(self, lab: Lab) -> None:
        """By leaves: what is worth nothing goes as a whole, as in SGLang without us."""
        older, newer = lab.tokens(blocks(16)), lab.tokens(blocks(16))
        await lab.cached(older)
        await lab.cached(newer)
        await lab.fill(blocks(40))
        assert await lab.cached(newer) == cached_at_most(newer)
        assert await lab.cached(older) == 0

    async def test_retained_kv_outlives_newer_kv(self, lab: Lab) -> None:
        older, newer, program = lab.tokens(blocks(16)), lab.tokens(blocks(16)), lab.name("program")
        await lab.cached(older, program)
        await lab.order(lab.retain(program, len(older)))
        await lab.cached(newer)
        await lab.fill(blocks(40))
        assert await lab.cached(older, program) == cached_at_most(older)
        assert await lab.cached(newer) == 0

    async def test_the_head_is_kept_when_the_tail_is_worth_nothing(self, lab: Lab) -> None:
        prompt, program = lab.tokens(blocks(16)), lab.name("program")
        await lab.cached(prompt, program)
        await lab.order(lab.retain(program, blocks(8)))
        await lab.fill(CAPACITY_TOKENS - blocks(8) - ROOM_TOKENS)
        assert await lab.cached(prompt, program) == blocks(8)

    async def test_kv_at_or_below_the_price_goes(self, lab: Lab) -> None:
        cheap, dear = lab.name("program"), lab.name("program")
        prompts = {program: lab.tokens(blocks(16)) for program in (cheap, dear)}
        for program, prompt in prompts.items():
            await lab.cached(prompt, program)
        await lab.order(lab.terms(device_price=2.0), lab.retain(cheap, 999, 2.0), lab.retain(dear, 999, 3.0))
        await lab.fill(CAPACITY_TOKENS - blocks(16) - ROOM_TOKENS)
        assert await lab.cached(prompts[dear], dear) == cached_at_most(prompts[dear])
        assert await lab.cached(prompts[cheap], cheap) <= BLOCK_TOKENS

    async def test_reports_account_for_all_memory_and_work(self, lab: Lab) -> None:
        """After a call of its own: what the one before computed may be reported later than it ends."""
        program, earlier = lab.name("program"), lab.name("program")
        await lab.cached(lab.tokens(blocks(1)), earlier)
        await lab.until(lambda seen: held_of(seen, earlier) == blocks(1) and seen[-1].running == 0)
        known = len(lab.reports)
        await lab.call(lab.tokens(blocks(5)), program=program, output=20).finished()
        await lab.until(lambda seen: len(seen) > known and seen[-1].running == 0)
        new = lab.reports[known:]
        assert sum(report.prefilled_tokens for report in new) == blocks(5)
        assert sum(report.decoded_tokens for report in new) == 20
        assert sum(report.step_s for report in new) > 0
        assert new[-1].free_tokens + new[-1].evictable_tokens == CAPACITY_TOKENS
        assert held_of(new, program) == blocks(6)

    async def test_the_kv_of_an_aborted_call_stays_as_cache(self, lab: Lab) -> None:
        prompt = lab.tokens(100)
        run = lab.call(prompt, output=700)
        await run.reached(FirstToken)
        await lab.until(lambda seen: bool(seen) and seen[-1].running == 1)
        await run.hang_up()
        # SGLang notices in its own time that a client is gone.
        await lab.until(lambda seen: seen[-1].running == 0)
        assert await lab.cached(prompt) == cached_at_most(prompt)
