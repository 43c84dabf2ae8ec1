"""Prompts are what the model's own template says, and an answer comes back as the tokens that it was."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from agentsched.engines.contract import RequestRefused
from agentsched.engines.embedded.frontend import ChatFrontend
from agentsched.engines.embedded.recorded import RecordedTurn
from agentsched.engines.frontend import ChatRequest, Prepared
from tests.engines.folders import FAMILIES, family_folder

BASH: dict[str, Any] = {"type": "function", "function": {"name": "bash", "parameters": {"type": "object"}}}
TURNS = [
    RecordedTurn(thought="Let me look.", command="ls -la | grep 'x' \"a b\".py"),
    RecordedTurn(thought="", command="cat > f.py <<'EOF'\nprint('naïve \\n', \"→ 😀\")\nEOF"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("families")
    return {family: family_folder(folder / family, family) for family in FAMILIES}


@pytest.fixture
def frontends(folders: dict[str, Path]) -> dict[str, ChatFrontend]:
    """New for each test: they remember what was emitted."""
    return {
        family: ChatFrontend(folder, name="model", scripts={"fix": TURNS})
        for family, folder in folders.items()
    }


def prepare(
    frontend: ChatFrontend, messages: list[dict[str, Any]], model: str = "model", *, tools: bool = True
) -> Prepared:
    return frontend.prepare(ChatRequest(model=model, messages=messages, tools=[BASH] * tools))


def answered(
    frontend: ChatFrontend, prepared: Prepared, tokens: list[int], serial: int = 0
) -> dict[str, Any]:
    """The message that a client has of an answer, and sends back."""
    decoder = frontend.decoder(prepared)
    deltas = [*(decoder.feed([token]) for token in tokens), decoder.finish()]
    calls = [
        {
            "id": f"call_{random.random()}_{serial}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for delta in deltas
        for call in delta.tool_calls
    ]
    said: dict[str, Any] = {"role": "assistant", "content": "".join(delta.text for delta in deltas) or None}
    return json.loads(json.dumps(said | ({"tool_calls": calls} if calls else {})))  # type: ignore[no-any-return]


def results(message: dict[str, Any]) -> list[dict[str, Any]]:
    calls = message.get("tool_calls") or []
    return [{"role": "tool", "tool_call_id": call["id"], "content": "a b"} for call in calls] or [
        {"role": "user", "content": "Go on."}
    ]


def tokens_of(frontend: ChatFrontend, answer: str) -> list[int]:
    return list(frontend._tokenizer.encode_prompt(answer, inner=True))


def letter_by_letter(frontend: ChatFrontend, answer: str) -> list[int]:
    """As no tokenizer would encode it, and a model may emit it: characters one by one, marks as tokens."""
    marks = sorted(frontend._tokenizer.added, key=len, reverse=True)
    tokens: list[int] = []
    while answer:
        mark = next((mark for mark in marks if answer.startswith(mark)), answer[0])
        tokens += tokens_of(frontend, mark)
        answer = answer[len(mark) :]
    return tokens


# Prompts

CONVERSATION: list[dict[str, Any]] = [
    {"role": "user", "content": "  List the files, please: naïve → 😀\n\n"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [
            {
                "id": "000000000",
                "type": "function",
                "function": {"name": "bash", "arguments": {"command": "ls 'é'", "n": 3}},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "000000000", "content": '{"a": "b"}\n'},
    {"role": "assistant", "content": "There is one.\n\nIs that all?"},
    {"role": "user", "content": "yes <tool_call> 1 [x]"},
]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tools", [[], [BASH]])
def test_a_prompt_is_what_transformers_makes_of_it(
    folders: dict[str, Path], frontends: dict[str, ChatFrontend], family: str, tools: list[Any]
) -> None:
    reference = AutoTokenizer.from_pretrained(folders[family])
    for length in (1, 3, 5):
        messages = CONVERSATION[:length]
        expected = reference.apply_chat_template(
            messages, tools=tools or None, add_generation_prompt=True, return_dict=False
        )
        request = ChatRequest(model="model", messages=messages, tools=tools)
        assert frontends[family].prepare(request).prompt == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_nobody_forges_a_message_by_writing_special_tokens(
    frontends: dict[str, ChatFrontend], family: str
) -> None:
    frontend = frontends[family]
    tokenizer = frontend._tokenizer
    forged = "".join(tokenizer.specials) + "|im_end|>"
    conversation = json.loads(json.dumps(CONVERSATION).replace("ls 'é'", forged).replace("one.", forged))
    for message in conversation:
        message["content"] += forged
    plain, prompt = (prepare(frontend, messages).prompt for messages in (CONVERSATION, conversation))
    specials = [[token for token in tokens if tokenizer.is_special(token)] for tokens in (plain, prompt)]
    assert specials[0] == specials[1]
    assert tokenizer.text(prompt).count("|im_end|>") >= 5


def test_ids_of_tool_calls_do_not_change_the_prompt(frontends: dict[str, ChatFrontend]) -> None:
    renamed = json.loads(json.dumps(CONVERSATION).replace('"000000000"', '"call_x1"'))
    assert prepare(frontends["mistral"], renamed) == prepare(frontends["mistral"], CONVERSATION)


def test_what_a_template_refuses_is_the_callers_fault(frontends: dict[str, ChatFrontend]) -> None:
    with pytest.raises(RequestRefused, match=r"messages: .*only user, assistant and tool are known"):
        prepare(frontends["mistral"], [{"role": "system", "content": "x"}])


@pytest.mark.parametrize("arguments", ["{", "[1]", "ls"])
def test_arguments_must_be_an_object(frontends: dict[str, ChatFrontend], arguments: str) -> None:
    call = {"id": "a", "function": {"name": "bash", "arguments": arguments}}
    with pytest.raises(RequestRefused, match=r"messages\[1\].tool_calls\[0\].function.arguments: must be"):
        prepare(frontends["qwen"], [CONVERSATION[0], {"role": "assistant", "tool_calls": [call]}])


# Answers that come back

QWEN_CALL = '<tool_call>\n{"name": "bash", "arguments": {"command":  "ls \\u00e9"}}\n</tool_call>'
LLAMA_CALL = '{"name": "bash", "parameters": {"command":"ls",  "n": [1,2]}}'
MISTRAL_CALL = '[TOOL_CALLS] [{"name": "bash", "arguments": {"command": "ls"}}]'
EXACT = [
    ("qwen", "Let me look."),
    ("qwen", "\n\nLet me look.\n\n\n"),
    ("qwen", QWEN_CALL),
    ("qwen", f"I look.\n{QWEN_CALL}"),
    ("qwen", f"I look.\n\n\n{QWEN_CALL}\n{QWEN_CALL}"),
    ("llama", "Let me look: naïve → 😀."),
    ("llama", LLAMA_CALL),
    ("mistral", " Let me look."),
    ("mistral-args", "Let me look.\n"),
    ("mistral-args", 'I look.[TOOL_CALLS]bash[ARGS]{"command":  "ls"}'),
    ("mistral-args", "[TOOL_CALLS]f[ARGS]{}[TOOL_CALLS]g[ARGS]{ }"),
]
# Where the published template writes something else than what was emitted.
CHANGED = [
    ("qwen", f"I look.{QWEN_CALL}", "the template puts a line break between"),
    ("qwen", QWEN_CALL.replace(": {", ":{"), "the template writes the spaces around names itself"),
    ("llama", " Let me look.\n", "the template trims"),
    ("llama", f"I look.<|python_tag|>{LLAMA_CALL}", "the template leaves out texts beside calls"),
    ("mistral", MISTRAL_CALL, "the template adds ids"),
]


@pytest.mark.parametrize("emit", [tokens_of, letter_by_letter])
@pytest.mark.parametrize(("family", "answer"), EXACT)
def test_an_answer_comes_back_as_the_tokens_that_were_emitted(
    frontends: dict[str, ChatFrontend], family: str, answer: str, emit: Any
) -> None:
    frontend = frontends[family]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Repair it."}]
    held: list[int] = []
    for turn in range(3):
        # Mistral's templates put tools before the last user message, which is another one each time.
        prepared = prepare(frontend, messages, tools="{" in answer)
        assert prepared.prompt[: len(held)] == held
        tokens = emit(frontend, answer)
        message = answered(frontend, prepared, tokens, turn)
        held = [*prepared.prompt, *tokens]
        messages = [*messages, message, *results(message)]
        if family == "mistral-args" and answer.startswith("[TOOL_CALLS]f"):
            assert len(message["tool_calls"]) == 2


@pytest.mark.parametrize(("family", "answer", "reason"), CHANGED)
def test_what_a_template_changes_is_as_the_template_has_it(
    frontends: dict[str, ChatFrontend], family: str, answer: str, reason: str
) -> None:
    frontend = frontends[family]
    prepared = prepare(frontend, [{"role": "user", "content": "Repair it."}])
    tokens = tokens_of(frontend, answer)
    message = answered(frontend, prepared, tokens)
    following = prepare(
        frontend, [{"role": "user", "content": "Repair it."}, message, *results(message)]
    ).prompt
    held = [*prepared.prompt, *tokens]
    assert following[: len(held)] != held, reason
    # Up to the answer's own piece, the rest of which stands after the last special token.
    specials = [at for at, token in enumerate(prepared.prompt) if frontend._tokenizer.is_special(token)]
    assert following[: specials[-1] + 1] == prepared.prompt[: specials[-1] + 1]


def test_an_answer_of_invalid_characters_comes_back_as_it_was(frontends: dict[str, ChatFrontend]) -> None:
    frontend = frontends["qwen"]
    prepared = prepare(frontend, CONVERSATION[:1])
    plain = [token for token in range(600) if not frontend._tokenizer.is_special(token)]
    tokens = random.Random(3).choices(plain, k=80)
    message = answered(frontend, prepared, tokens)
    assert "\ufffd" in message["content"]
    following = prepare(frontend, [CONVERSATION[0], message, *results(message)]).prompt
    assert following[: len(prepared.prompt) + 80] == [*prepared.prompt, *tokens]


def test_what_was_emitted_is_remembered_for_its_own_conversation_only(
    frontends: dict[str, ChatFrontend],
) -> None:
    frontend = frontends["qwen"]
    answer = {"role": "assistant", "content": "hello world"}
    other = [{"role": "user", "content": "Another."}, answer, {"role": "user", "content": "x"}]
    before = prepare(frontend, other).prompt
    prepared = prepare(frontend, CONVERSATION[:1])
    answered(frontend, prepared, letter_by_letter(frontend, "hello world"))
    assert prepare(frontend, other).prompt == before


# Recorded agents


@pytest.mark.parametrize("family", FAMILIES)
def test_a_recorded_agent_can_be_played_on_any_model(frontends: dict[str, ChatFrontend], family: str) -> None:
    frontend = frontends[family]
    messages: list[dict[str, Any]] = [{"role": "user", "content": "Repair it."}]
    held: list[int] = []
    for turn in range(3):
        prepared = prepare(frontend, messages, "recorded/fix")
        assert prepared.recorded is not None
        exact = family in ("qwen", "mistral-args") or (family == "llama" and turn == 2)
        assert not exact or prepared.prompt[: len(held)] == held
        message = answered(frontend, prepared, prepared.recorded, turn)
        expected = TURNS[min(turn, 1)]
        [call] = message["tool_calls"]
        assert (message["content"] or "") == expected.thought
        assert json.loads(call["function"]["arguments"]) == {"command": expected.command}
        held = [*prepared.prompt, *prepared.recorded]
        messages += [message, *results(message)]
    assert held[-1] == frontend._tokenizer.end


def test_recorded_agents_need_tool_calls(tmp_path: Path) -> None:
    folder = family_folder(tmp_path, "mistral")
    settings = {"chat_template": "{{ messages[0].content }}"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="its chat template has no tool calls"):
        ChatFrontend(folder, scripts={"fix": TURNS})
