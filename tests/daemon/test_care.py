"""Prefix care: what is undone of what clients vary, what is left alone, and what it gains."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.daemon.apis import Messages
from agentsched.daemon.care import PrefixCare, Spellings, shared_tokens
from agentsched.engines.byte_frontend import call_text
from agentsched.engines.frontend import ChatRequest
from tests.daemon.recordings import recorded
from tests.daemon.serving import served, until
from tests.daemon.speakers import Anthropic

HEADER = "x-anthropic-billing-header: cc_version=2.1.197.{}; cc_entrypoint=sdk-cli;"
SYSTEM = "You are a coding agent. " * 40


def claude(digits: str, task: str = "task", **fields: Any) -> dict[str, Any]:
    system = [{"type": "text", "text": text} for text in (HEADER.format(digits), SYSTEM)]
    messages = [{"role": "user", "content": task}]
    return {"model": "simulated", "max_tokens": 9, "system": system, "messages": messages} | fields


def chat(body: dict[str, Any]) -> ChatRequest:
    return Messages().read(json.dumps(body).encode()).chat


def called(arguments: str, identifier: str = "c1") -> ChatRequest:
    function = {"name": "bash", "arguments": arguments}
    call = {"id": identifier, "type": "function", "function": function}
    return ChatRequest(model="m", messages=[{"role": "assistant", "content": None, "tool_calls": [call]}])


def test_sessions_that_differ_in_their_billing_header_alone_have_one_prompt() -> None:
    (one, changes), (other, _) = (
        PrefixCare().tidy(chat(claude(digits)), Spellings()) for digits in ("001", "d55")
    )
    assert one == other
    assert one.messages[0] == {"role": "system", "content": [{"type": "text", "text": SYSTEM}]}
    assert [(change.rule, change.once) for change in changes] == [("claude-code-header", True)]
    assert changes[0].without == chat(claude("001"))


@pytest.mark.parametrize(
    "text",
    [
        "x-anthropic-billing-header: is what this project is about; explain it.",
        "x-anthropic-billing-header: cc_version=1; and one more thing",
        "x-anthropic-billing-header:",
        SYSTEM,
    ],
)
def test_what_is_not_exactly_that_header_is_shown_to_the_model(text: str) -> None:
    body = claude("001", system=[{"type": "text", "text": text}])
    assert PrefixCare().tidy(chat(body), Spellings()) == (chat(body), [])
    # Nor is it touched where it stands for itself, after the beginning.
    later = claude("001", system=[{"type": "text", "text": SYSTEM}, {"type": "text", "text": HEADER}])
    assert PrefixCare().tidy(chat(later), Spellings()) == (chat(later), [])


def test_a_rule_that_is_off_does_nothing() -> None:
    request = chat(claude("001"))
    assert PrefixCare({"claude-code-header"}).tidy(request, Spellings()) == (request, [])


def test_real_requests_lose_their_header_and_nothing_else() -> None:
    for row in recorded("claude-code"):
        if row["body"]:
            request = chat(row["body"])
            tidy, changes = PrefixCare().tidy(request, Spellings())
            assert [change.rule for change in changes] == ["claude-code-header"]
            assert tidy.messages[1:] == request.messages[1:]
            assert tidy.messages[0]["content"] == request.messages[0]["content"][1:]
    for row in recorded("frameworks") + recorded("codex"):
        if row["path"] == "/v1/chat/completions":
            request = ChatRequest(model="m", messages=row["body"]["messages"])
            assert PrefixCare().tidy(request, Spellings()) == (request, [])


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), values, max_size=3), st.booleans(), st.sampled_from([None, 1]))
def test_arguments_come_back_as_the_model_wrote_them(
    value: Any, ascii_only: bool, indent: int | None
) -> None:
    spellings = Spellings()
    own = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    spellings.keep("c1", own)
    tidy, _ = PrefixCare().tidy(called(json.dumps(value, ensure_ascii=ascii_only, indent=indent)), spellings)
    assert tidy == called(own)


@pytest.mark.parametrize(
    ("own", "returned"),
    [
        ('{"a": 1}', '{"a": 2}'),
        ('{"a": 1}', '{"a": true}'),
        ('{"a": 1}', '{"a": "1"}'),
        ('{"a": 1}', '{"a": 1, "b": 2}'),
        ('{"a": [1, 2]}', '{"a": [2, 1]}'),
        ('{"a": 1}', "no JSON"),
        ('{"a": 1}', "[" * 100_000),
    ],
)
def test_arguments_that_a_client_has_changed_are_shown_as_changed(own: str, returned: str) -> None:
    spellings = Spellings()
    spellings.keep("c1", own)
    assert PrefixCare().tidy(called(returned), spellings) == (called(returned), [])
    assert PrefixCare().tidy(called('{"a":1}', "another"), spellings)[1] == []


def test_one_point_zero_stays_what_the_model_wrote_though_javascript_knows_no_such_number() -> None:
    spellings = Spellings()
    spellings.keep("c1", '{"timeout": 1.0}')
    assert PrefixCare().tidy(called('{"timeout":1}'), spellings)[0] == called('{"timeout": 1.0}')


def test_spellings_are_forgotten_beyond_their_limit() -> None:
    spellings = Spellings()
    spellings._limit_chars = 25
    for number in range(3):
        spellings.keep(f"c{number}", '{"a":   1}')
    assert [spellings.get(f"c{number}") is None for number in range(3)] == [True, False, False]


def test_shared_tokens_are_those_before_the_first_difference() -> None:
    assert [shared_tokens([1, 2, 3], other) for other in ([1, 2, 4], [1, 2, 3, 4], [2])] == [2, 3, 0]


@pytest.mark.parametrize("off", [frozenset(), frozenset({"claude-code-header"})], ids=["on", "off"])
async def test_a_session_shares_the_system_prompt_of_another_and_that_is_counted(off: frozenset[str]) -> None:
    async with served(no_care=off) as served_:
        for digits in ("001", "d55"):
            _, answer, _ = await served_.post("/v1/messages", claude(digits, f"/say {digits}"))
        cached = answer["usage"]["cache_read_input_tokens"]
        gained = "agentsched_prefix_care_tokens_total"
        if off:
            assert cached < len("system: ") + len(HEADER)
            assert await served_.metric(gained) == 0
        else:
            assert cached > len(SYSTEM)

            async def counted() -> bool:
                # All but what stands before the header.
                told = await served_.metric(gained, rule="claude-code-header")
                return bool(0 <= cached - told < 80)

            await until(counted, "it is not counted")


@pytest.mark.parametrize("off", [frozenset(), frozenset({"returned-arguments"})], ids=["on", "off"])
async def test_an_answer_is_found_in_the_cache_though_the_client_spells_it_anew(off: frozenset[str]) -> None:
    own = json.dumps({"command": "x" * 300, "timeout": 1.0}, separators=(",", ":"))
    minds = {1: call_text("bash", own), 2: "done"}
    async with (
        served(mind=lambda request: minds[min(2, len(request.messages))], no_care=off) as served_,
        Anthropic(served_.url) as client,
    ):
        first = await client.say("go")
        second = await client.result(first.tools[0][0], "ok")
        whole = first.prompt_tokens + first.output_tokens
        gained = "agentsched_prefix_care_tokens_total"
        if off:
            assert second.cached_tokens < first.prompt_tokens + 60
            assert await served_.metric(gained) == 0
        else:
            assert second.cached_tokens >= whole - 16

            async def counted() -> bool:
                return bool(await served_.metric(gained, rule="returned-arguments") > 250)

            await until(counted, "it is not counted")
