"""A conversation whose beginning is known is the same conversation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.daemon.errors import ApiError
from agentsched.daemon.identity import Ask, Identities
from agentsched.daemon.talks import FEW_PIECES, Prefix, Talk, Transcript, listed
from agentsched.daemon.upstream.reading import read
from agentsched.engines.upstream.paths import PATHS

ID = "call_0123456789abcdefghijkl"
CONTENT = st.sampled_from(["a", "b", f"see {ID}", "", None, [{"type": "text", "text": "c"}]])
CALLS = st.lists(
    st.sampled_from([{"id": ID, "function": {"name": "f"}}, {"id": "x"}, {"id": 3}, 5]), max_size=2
)
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "assistant", "tool"]), "content": CONTENT},
    optional={"tool_calls": CALLS | st.integers(), "tool_call_id": st.sampled_from([ID, "y", 4])},
)
TALK = st.lists(MESSAGE, min_size=1, max_size=2 * FEW_PIECES)


def transcript(messages: list[dict[str, Any]]) -> Transcript:
    return Transcript([json.dumps(each).encode() for each in messages], lambda each: (each,))


def seen(talk: Talk) -> list[Any]:
    """All that anybody asks of it; the last two read it as a whole."""
    first = [talk.chain, talk.opens, talk.system, talk.tool_calls()]
    return [*first, list(talk.answers()), list(talk.messages), list(talk.chains)]


@given(before=TALK, after=TALK, others=TALK)
def test_what_is_known_of_a_beginning_changes_nothing(
    before: list[Any], after: list[Any], others: list[Any]
) -> None:
    known: dict[int, Prefix] = {}
    for messages in (before, before + others, before + after, before + after + others, before):
        found = transcript(messages)
        prefix = next((known[key] for key in reversed(found.keys) if key in known), None)
        talk = Talk(found, prefix)
        known |= dict(talk.prefixes())
        assert seen(talk) == seen(listed(messages))


def test_only_what_is_new_is_read() -> None:
    reads: list[str] = []

    def counted(message: dict[str, Any]) -> tuple[dict[str, Any]]:
        reads.append(message["content"])
        return (message,)

    def call(count: int) -> Ask:
        found = Transcript([json.dumps(each).encode() for each in said[:count]], counted)
        return Ask(chat=chat, digest=b"%d" % count, transcript=found)

    said = [{"role": ["assistant", "user"][n % 2], "content": f"{n}"} for n in range(22)]
    chat = read(PATHS[0], b'{"messages": []}', care=True)[0].chat
    identities = Identities()
    first = identities.resolve(call(20))
    identities.begun(first)
    identities.answered(first, "20")
    reads.clear()
    second = identities.resolve(call(22))
    assert (second.program, second.known_by) == (first.program, "conversation")
    assert second.chain == listed(said).chain
    assert reads == ["20", "21"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [{"role": "user", "content": "\xff"}], "input": "\xff", "prompt": "\xff"}',
        b'{"messages": [{"role": "user", "content": "\\ud8"}], "input": [{"a": "\\ud8"}], "prompt": "\\ud8"}',
        b'{"messages": [{"a": ' + b"[" * 5000 + b"]" * 5000 + b'}], "input": "", "prompt": 1',
        b'{"messages": [1], "input": [1], "prompt": 1',
        b'{"messages": {}, "input": 7, "prompt": 1',
    ],
)
def test_what_cannot_be_read_is_the_clients_fault(path: str, body: bytes) -> None:
    with pytest.raises(ApiError) as failed:
        Talk(read(path, body, care=True)[1])
    assert failed.value.status == 400


def test_what_means_nothing_to_an_api_is_not_looked_at() -> None:
    _, found = read("/v1/completions", b'{"prompt": "a", "messages": 5}', care=True)
    assert Talk(found).messages == [{"role": "user", "content": "a"}]


@pytest.mark.parametrize("before", [0, FEW_PIECES])
def test_an_item_that_is_no_object_is_refused(before: int) -> None:
    pieces = [b'{"role": "user", "content": "a"}'] * before
    identities = Identities()
    chat = read(PATHS[0], b'{"messages": []}', care=True)[0].chat
    for known in (pieces, [*pieces, b"7"]):
        found = Transcript(known, lambda each: (each,), field="input")
        ask = Ask(chat=chat, digest=b"%d" % len(known), transcript=found)
        if known is pieces:
            identities.resolve(ask)  # what is known of them hides nothing that comes after
        else:
            with pytest.raises(ApiError, match="input: must be a list of objects"):
                identities.resolve(ask)


def test_a_beginning_is_told_from_another_by_all_of_its_pieces() -> None:
    said = [{"role": "user", "content": f"{number}"} for number in range(FEW_PIECES)]
    keys = transcript(said).keys
    assert len(set(keys)) == len(said) + 1
    for changed in range(len(said)):
        others = transcript([*said[:changed], {"role": "user", "content": "b"}, *said[changed + 1 :]]).keys
        assert others[: changed + 1] == keys[: changed + 1]
        assert set(others[changed + 1 :]).isdisjoint(keys)
