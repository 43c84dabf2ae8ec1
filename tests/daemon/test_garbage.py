"""Whatever JSON is sent: it is read, or refused as the client's fault, by everything before the engine."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agentsched.daemon.apis import APIS, Api
from agentsched.daemon.care import PrefixCare, Spellings
from agentsched.daemon.errors import ApiError, refused
from agentsched.daemon.identity import Ask, Identities, call_digest
from agentsched.daemon.signals import Origin
from agentsched.engines.byte_frontend import ByteFrontend
from agentsched.engines.contract import RequestRefused

WORDS = st.sampled_from(
    [
        "text",
        "tool_use",
        "tool_result",
        "image",
        "message",
        "function",
        "function_call",
        "function_call_output",
        "namespace",
        "bash",
        "input_text",
        "input_image",
        "image_url",
        "user",
        "assistant",
        "system",
        "tool",
        "base64",
        "url",
        "none",
        "auto",
        "m",
        "simulated",
        "call_0123456789abcdefghijkl",
    ]
)
KEYS = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "id",
        "name",
        "call_id",
        "tool_use_id",
        "tool_call_id",
        "arguments",
        "input",
        "source",
        "data",
        "media_type",
        "url",
        "image_url",
        "function",
        "tools",
        "tool_calls",
        "parameters",
        "input_schema",
        "description",
        "output",
        "namespace",
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=15,
)
ITEMS = st.lists(st.dictionaries(KEYS, VALUES, max_size=6), max_size=4)
FIELDS = {
    "messages": ITEMS | VALUES,
    "input": ITEMS | st.text(max_size=5) | VALUES,
    "prompt": st.text(max_size=5) | VALUES,
    "system": ITEMS | VALUES,
    "tools": ITEMS | VALUES,
    "tool_choice": VALUES,
    "max_tokens": st.just(5) | VALUES,
    "stop": VALUES,
    "stop_sequences": VALUES,
    "stream": VALUES,
    "metadata": VALUES,
}


def outcome(api: Api, body: dict[str, Any]) -> ApiError | None:
    """Why it is refused, if it is. All that comes after reading has to cope with what was read."""
    try:
        request = api.read(json.dumps(body).encode())
    except ApiError as error:
        return error
    chat, _ = PrefixCare().tidy(request.chat, Spellings())
    known = Identities()
    claim = known.resolve(Ask(chat=chat, digest=call_digest(chat), origin=Origin(body=request.raw)))
    known.begun(claim)
    known.answered(claim, "text")
    try:
        ByteFrontend(10_000).prepare(chat)
    except RequestRefused as error:
        return refused(error, request.fields)
    return None


def check(api: Api, body: dict[str, Any]) -> None:
    error = outcome(api, body)
    if error is not None:
        assert error.status in (400, 404)
        assert json.loads(api.error(error))["error"]["message"]


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
@given(body=st.fixed_dictionaries({"model": st.just("simulated")}, optional=FIELDS))
@settings(max_examples=60, deadline=None)
def test_whatever_is_sent_is_read_or_refused(api: Api, body: dict[str, Any]) -> None:
    check(api, body)


MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "assistant"]), "content": ITEMS | st.text(max_size=5)},
        optional={"tool_calls": ITEMS | st.none(), "tool_call_id": WORDS, "type": st.just("message")},
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
@given(messages=MESSAGES, tools=ITEMS)
@settings(max_examples=60, deadline=None)
def test_what_is_nearly_right_is_read_or_refused(api: Api, messages: Any, tools: Any) -> None:
    body = {"model": "simulated", "max_tokens": 5, "messages": messages, "input": messages, "tools": tools}
    check(api, body)


@pytest.mark.parametrize("api", APIS, ids=lambda api: api.path)
def test_the_check_itself_reads_what_is_right(api: Api) -> None:
    prompt = {"prompt": "a"} if api.path == "/v1/completions" else {}
    messages = [{"role": "user", "content": "a"}]
    body = {"model": "simulated", "max_tokens": 5, "messages": messages, "input": "a"}
    assert outcome(api, body | prompt) is None
