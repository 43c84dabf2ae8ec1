"""How a tool call is spelled in an answer, and read back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.engines.embedded.tool_formats import HERMES, LLAMA, MISTRAL, OURS, ToolFormat
from agentsched.engines.frontend import ToolCallText


@pytest.mark.parametrize("form", [OURS, HERMES, LLAMA, MISTRAL], ids=lambda form: form.name)
@given(
    name=st.text(), arguments=st.dictionaries(st.text(), st.text() | st.integers()), indent=st.integers(0, 3)
)
def test_a_call_keeps_the_spelling_of_its_arguments(
    form: ToolFormat, name: str, arguments: dict[str, Any], indent: int
) -> None:
    spelled = json.dumps(arguments, indent=indent or None, ensure_ascii=False)
    call = ToolCallText(name=name, arguments=spelled)
    body = form.spell("", [call]).removeprefix(form.opening).removesuffix(form.closing)
    assert form.parse(body) == [call]


def test_a_call_in_another_spelling_is_understood() -> None:
    [call] = OURS.parse('{"arguments":{"command":"ls"},"name":"bash"}') or []
    assert (call.name, json.loads(call.arguments)) == ("bash", {"command": "ls"})
