"""How a tool call is spelled in an answer, and read back."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentsched.engines.embedded.answers import call_text, parse_call


@given(
    name=st.text(), arguments=st.dictionaries(st.text(), st.text() | st.integers()), indent=st.integers(0, 3)
)
def test_a_call_keeps_the_spelling_of_its_arguments(
    name: str, arguments: dict[str, Any], indent: int
) -> None:
    spelled = json.dumps(arguments, indent=indent or None, ensure_ascii=False)
    call = parse_call(call_text(name, spelled))
    assert call is not None
    assert (call.name, call.arguments) == (name, spelled)


def test_a_call_in_another_spelling_is_understood() -> None:
    call = parse_call('{"arguments":{"command":"ls"},"name":"bash"}')
    assert call is not None
    assert (call.name, json.loads(call.arguments)) == ("bash", {"command": "ls"})
