"""Tool calls in the formats that the families publish: read as they stream, written, and demanded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer

from agentsched.engines.contract import RequestRefused
from agentsched.engines.embedded.frontend import ChatFrontend
from agentsched.engines.embedded.tokens import ModelTokenizer
from agentsched.engines.embedded.tool_formats import ToolFormat, tool_format
from agentsched.engines.frontend import ChatRequest, Delta, Prepared, ToolCallText
from tests.engines.folders import FAMILIES, family_folder

BASH: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "bash",
        "parameters": {
            "type": "object",
            "properties": {"command": {"type": "string"}},
            "required": ["command"],
            "additionalProperties": False,
        },
    },
}
SEARCH: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": 'sea"rch\n',
        "parameters": {
            "type": "object",
            "properties": {"query": {"type": "string"}, "count": {"type": "integer"}},
            "required": ["query", "count"],
            "additionalProperties": False,
        },
    },
}
NESTED: dict[str, Any] = {"type": "string"}
for _ in range(5000):
    NESTED = {"anyOf": [NESTED]}
USER = [{"role": "user", "content": "Repair it."}]
LS = ("bash", '{"command": "ls"}')
Found = tuple[str, list[tuple[str, str]]]


@pytest.fixture(scope="module")
def frontends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatFrontend]:
    folder = tmp_path_factory.mktemp("families")
    return {family: ChatFrontend(family_folder(folder / family, family), name="model") for family in FAMILIES}


def prepare(frontend: ChatFrontend, messages: list[dict[str, Any]], **fields: Any) -> Prepared:
    fields = {"tools": [BASH, SEARCH]} | fields
    return frontend.prepare(ChatRequest(model="model", messages=messages, **fields))


def tokens_of(frontend: ChatFrontend, answer: str) -> list[int]:
    """An answer as emitted tokens; names of special tokens are these."""
    return list(frontend._tokenizer.encode_prompt(answer, inner=True))


def joined(deltas: list[Delta]) -> Found:
    calls = [(call.name, call.arguments) for delta in deltas for call in delta.tool_calls]
    return "".join(delta.text for delta in deltas), calls


def read(frontend: ChatFrontend, answer: str, **fields: Any) -> Found:
    """What an answer is found to be, token by token; the same must come of it at once."""
    prepared, tokens = prepare(frontend, USER, **fields), tokens_of(frontend, answer)
    slow, fast = frontend.decoder(prepared), frontend.decoder(prepared)
    found = joined([*(slow.feed([token]) for token in tokens), slow.finish()])
    assert joined([fast.feed(tokens), fast.finish()]) == found
    return found


HERMES_CALL = '<tool_call>\n{"name": "bash", "arguments": {"command": "ls"}}\n</tool_call>'
LLAMA_CALL = '{"name": "bash", "parameters": {"command": "ls"}}'
MISTRAL_CALL = '{"name": "bash", "arguments": {"command": "ls"}}'
WELL_FORMED: list[tuple[str, str, Found]] = [
    ("qwen", HERMES_CALL, ("", [LS])),
    ("qwen", f"I look.\n{HERMES_CALL}\n{HERMES_CALL}", ("I look.", [LS, LS])),
    ("qwen", f"\n\n{HERMES_CALL}\n ", ("\n", [LS])),
    ("qwen", HERMES_CALL.replace("\n", ""), ("", [LS])),
    ("qwen", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', ("", [("f", '{"a": 1}')])),
    ("qwen", f"{HERMES_CALL}\nand so on", ("\nand so on", [LS])),
    ("qwen", "1 < 2, <tool, <tool_calls> and\n\n<", ("1 < 2, <tool, <tool_calls> and\n\n<", [])),
    ("llama", LLAMA_CALL, ("", [LS])),
    ("llama", f"\n {LLAMA_CALL}; {LLAMA_CALL}\n", ("", [LS, LS])),
    ("llama", f"<|python_tag|>{LLAMA_CALL}<|eom_id|>", ("", [LS])),
    ("llama", f"I look.<|python_tag|>{LLAMA_CALL}", ("I look.", [LS])),
    (
        "llama",
        '<|python_tag|>brave_search.call(query="a b", n=3)<|eom_id|>',
        ("", [("brave_search", '{"query": "a b", "n": 3}')]),
    ),
    ("llama", "The {set} is {}.", ("The {set} is {}.", [])),
    ("mistral", f"[TOOL_CALLS] [{MISTRAL_CALL}]", ("", [LS])),
    ("mistral", f"I look.[TOOL_CALLS][{MISTRAL_CALL}, {MISTRAL_CALL}]", ("I look.", [LS, LS])),
    (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {}, "id": "abcdefghi"}]',
        ("", [("f", "{}")]),
    ),
    ("mistral-args", '[TOOL_CALLS]bash[ARGS]{"command": "ls"}', ("", [LS])),
    (
        "mistral-args",
        "So:[TOOL_CALLS]f[CALL_ID]abc[ARGS]{}[TOOL_CALLS]g[ARGS]{ }",
        ("So:", [("f", "{}"), ("g", "{ }")]),
    ),
]


@pytest.mark.parametrize(("family", "answer", "found"), WELL_FORMED)
def test_calls_are_read_as_published(
    frontends: dict[str, ChatFrontend], family: str, answer: str, found: Found
) -> None:
    assert read(frontends[family], answer) == found


MALFORMED = [
    ("qwen", '<tool_call>\n{"name": "bash", "arguments": {"comm'),
    ("qwen", "<tool_call>ls</tool_call> and more"),
    ("qwen", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("qwen", "<tool_call>" + "[" * 5000),
    ("llama", '{"name": "bash", "parameters": {"comm'),
    ("llama", '{"answer": 42}'),
    ("llama", "{1, 2}"),
    ("mistral", "[TOOL_CALLS] [1]"),
    ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {}}'),
    ("mistral", "[TOOL_CALLS][]"),
    ("mistral-args", "[TOOL_CALLS]f[ARGS]{"),
    ("mistral-args", "[TOOL_CALLS]f[ARGS][1]"),
    ("llama", "<|python_tag|>print(1)"),
    ("llama", "<|python_tag|>f.call(a, b=open)"),
    ("llama", "<|python_tag|>" + "(" * 5000),
]


@pytest.mark.parametrize(("family", "answer"), MALFORMED)
def test_malformed_calls_are_text(frontends: dict[str, ChatFrontend], family: str, answer: str) -> None:
    text = answer
    for special in frontends[family]._tokenizer.specials:
        text = text.replace(special, "") if special not in ("[ARGS]", "[CALL_ID]") else text
    if frontends[family]._tokenizer.strips_first_space:
        text = text.removeprefix(" ")
    assert read(frontends[family], answer) == (text, [])


def test_without_tools_all_is_text(frontends: dict[str, ChatFrontend]) -> None:
    for family, answer in (("qwen", HERMES_CALL), ("llama", LLAMA_CALL)):
        assert read(frontends[family], answer, tools=[]) == (answer, [])


def test_the_name_of_a_special_mark_is_text(frontends: dict[str, ChatFrontend]) -> None:
    frontend = frontends["mistral"]
    answer = frontend._tokenizer.as_text(f"[TOOL_CALLS] [{MISTRAL_CALL}]")
    assert read(frontend, answer) == (f"[TOOL_CALLS] [{MISTRAL_CALL}]", [])


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=40)
@given(data=st.data())
def test_no_output_breaks_a_reader(
    frontends: dict[str, ChatFrontend], family: str, data: st.DataObject
) -> None:
    marks = [*FAMILIES[family]["special"], *FAMILIES[family].get("text", ())]
    pieces = st.sampled_from(
        [*marks, "\n", " ", "{", "}", '"name": "f"', ", ", '"arguments": {}', "[", "]", "é"]
    )
    read(frontends[family], "".join(data.draw(st.lists(pieces, max_size=30))))


def test_one_call_at_a_time_ends_the_answer(frontends: dict[str, ChatFrontend]) -> None:
    frontend = frontends["qwen"]
    decoder = frontend.decoder(prepare(frontend, USER, parallel_tool_calls=False))
    deltas = [decoder.feed([token]) for token in tokens_of(frontend, f"{HERMES_CALL}\n{HERMES_CALL}")]
    ended = next(index for index, delta in enumerate(deltas) if delta.ended)
    assert joined(deltas) == ("", [LS])
    assert deltas[ended].tool_calls
    assert all(delta == Delta() for delta in deltas[ended + 1 :])


def test_tools_need_a_format_that_is_known(tmp_path: Path) -> None:
    folder = family_folder(tmp_path, "qwen")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for template in ("{{ messages[0].content }}", settings["chat_template"] + "{# <function= #}"):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
        frontend = ChatFrontend(folder, name="model")
        assert prepare(frontend, USER, tools=[]).tool_calls is False
        with pytest.raises(RequestRefused, match="tools: this model's chat template has no tool calls"):
            prepare(frontend, USER)


# Writing and demanding


def form_of(frontend: ChatFrontend) -> ToolFormat:
    form = tool_format(frontend._template.source, frontend._tokenizer.specials)
    assert form is not None
    return form


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", ["", "I look."])
def test_what_is_spelled_is_read(frontends: dict[str, ChatFrontend], family: str, text: str) -> None:
    calls = [ToolCallText(name="f", arguments='{"a":  "é \\u00e9"}'), ToolCallText(name="g", arguments="{}")]
    answer = form_of(frontends[family]).spell(text, calls)
    assert read(frontends[family], answer) == (text, [(call.name, call.arguments) for call in calls])


class Follower:
    """Whether answers follow a grammar."""

    def __init__(self, tokenizer: ModelTokenizer, grammar: str) -> None:
        self._tokenizer, self._grammar = tokenizer, grammar
        self._known = LLTokenizer(tokenizer.definition, eos_token=list(tokenizer.ends))

    def accepts(self, answer: str) -> bool:
        matcher = LLMatcher(self._known, self._grammar)
        assert not matcher.get_error()
        tokens = list(self._tokenizer.encode_prompt(answer, inner=True))
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_required_call_must_be_one_of_the_tools(frontends: dict[str, ChatFrontend], family: str) -> None:
    frontend, form = frontends[family], form_of(frontends[family])
    names = ["bash", 'sea"rch\n'] if not form.plain_name else ["bash"]
    tools = [BASH, SEARCH][: len(names)]
    sampling = prepare(frontend, USER, tools=tools, tool_choice="required").sampling
    follower = Follower(frontend._tokenizer, sampling.grammar)
    bash = ToolCallText(name="bash", arguments='{"command": "ls \\"x\\" é"}')
    search = ToolCallText(name='sea"rch\n', arguments='{"query": "a", "count": 3}')
    assert follower.accepts(form.spell("", [bash]))
    assert not follower.accepts(form.spell("So: ", [bash]))
    assert not follower.accepts("So be it.")
    assert not follower.accepts(form.spell("", [ToolCallText(name="rm", arguments="{}")]))
    assert not follower.accepts(form.spell("", [ToolCallText(name="bash", arguments="{}")]))
    assert follower.accepts(form.spell("", [search])) == (len(tools) > 1)
    assert follower.accepts(form.spell("", [bash, bash])) == (not form.single)
    once = prepare(frontend, USER, tools=tools, tool_choice="required", parallel_tool_calls=False).sampling
    assert not Follower(frontend._tokenizer, once.grammar).accepts(form.spell("", [bash, bash]))
    named = prepare(frontend, USER, tool_choice="tool:bash", tools=tools).sampling
    assert not Follower(frontend._tokenizer, named.grammar).accepts(form.spell("", [search]))
    assert Follower(frontend._tokenizer, named.grammar).accepts(form.spell("", [bash]))


def test_json_follows_its_schema(frontends: dict[str, ChatFrontend]) -> None:
    frontend = frontends["llama"]
    schema = {"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"]}
    described = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    strict = prepare(frontend, USER, tools=[], response_format=described).sampling.grammar
    free = prepare(frontend, USER, tools=[], response_format={"type": "json_object"}).sampling.grammar
    for answer, follows, is_json in (
        ('{"a": 1}', True, True),
        ('{"a": 3}', False, True),
        ('{"b": [1, {}]}', False, True),
        ("[1]", False, False),
    ):
        assert Follower(frontend._tokenizer, strict).accepts(answer) == follows
        assert Follower(frontend._tokenizer, free).accepts(answer) == is_json


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tool_choice": "tool:rm"}, "tool_choice: 'rm' asks for a tool"),
        ({"tool_choice": "required", "tools": []}, "tool_choice: 'required' asks for a tool"),
        ({"response_format": {"type": "json_object"}}, "response_format: goes with tools only"),
        ({"response_format": {"type": "xml"}, "tools": []}, "response_format.type: must be"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {}}, "tools": []},
            "response_format.json_schema.schema: must be",
        ),
        (
            {
                "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}},
                "tools": [],
            },
            "response_format: its JSON schema cannot be followed: .*Invalid type: strin",
        ),
        (
            {"tools": [{"function": {"name": "f", "parameters": {"type": 5}}}], "tool_choice": "required"},
            "tool_choice: its JSON schema",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"schema": {"enum": ["x" * 60_000]}},
                },
                "tools": [],
            },
            "response_format: its JSON schema cannot be followed: it has 60,.* characters",
        ),
        ({"tools": [{"function": {"name": "f", "parameters": NESTED}}]}, "nested too deeply"),
        (
            {
                "response_format": {"type": "json_schema", "json_schema": {"schema": NESTED}},
                "tools": [],
            },
            "nested too deeply",
        ),
        ({"tools": [{"function": {}}]}, r"tools\[0\].function.name: must be a string"),
        ({"tools": [{"function": {"name": "f", "parameters": 3}}]}, r"tools\[0\].function.parameters"),
    ],
)
def test_what_cannot_be_demanded_names_the_field(
    frontends: dict[str, ChatFrontend], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestRefused, match=message):
        prepare(frontends["qwen"], USER, **fields)
