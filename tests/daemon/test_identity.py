"""Whose call is it: from stated ids, ids that we minted, and conversations."""

from __future__ import annotations

import itertools
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from agentsched.daemon.identity import Ask, Claim, Identities, call_digest
from agentsched.engines.frontend import ChatRequest

TASK = [{"role": "system", "content": "You repair code."}, {"role": "user", "content": "Repair it."}]


def identities(**options: Any) -> Identities:
    numbers = itertools.count(1)
    return Identities(new_program=lambda: f"p{next(numbers)}", **options)


def ask(messages: list[dict[str, Any]], **options: Any) -> Ask:
    return Ask(messages=messages, digest=call_digest(ChatRequest(model="m", messages=messages)), **options)


def answered(known: Identities, messages: list[dict[str, Any]], text: str, **options: Any) -> Claim:
    claim = known.resolve(ask(messages, **options))
    known.answered(claim, text)
    return claim


def tool_turn(tool_call: str, text: str = "", result: str = "ok") -> list[dict[str, Any]]:
    call = {"id": tool_call, "type": "function", "function": {"name": "bash", "arguments": "{}"}}
    return [
        {"role": "assistant", "content": text, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": tool_call, "content": result},
    ]


def test_a_stated_program_is_believed_and_the_same_every_time() -> None:
    known = identities()
    first = known.resolve(ask(TASK, stated="mine"))
    second = known.resolve(ask([*TASK, {"role": "user", "content": "more"}], stated="mine"))
    assert (first.program, second.program) == ("mine", "mine")


def test_two_equal_first_calls_are_two_programs_at_once_and_one_after_the_other() -> None:
    known = identities()
    first, second = known.resolve(ask(TASK)), known.resolve(ask(TASK))
    known.answered(first, "a")
    third = known.resolve(ask(TASK))
    assert len({first.program, second.program, third.program}) == 3


def test_a_minted_tool_call_leads_back_to_its_program_and_is_answered_once() -> None:
    known = identities()
    first = answered(known, TASK, "")
    tool_call = known.mint(first.program, "c1")
    messages = [*TASK, *tool_turn(tool_call)]
    second = answered(known, messages, "so")
    third = known.resolve(ask([*messages, {"role": "assistant", "content": "so"}]))
    assert second.program == third.program == first.program
    assert (second.answers, third.answers) == ((tool_call,), ())
    minted = known.minted(tool_call)
    assert minted is not None
    assert minted.call == "c1"


def test_a_call_that_failed_has_not_taken_the_results_with_it() -> None:
    known = identities()
    tool_call = known.mint(answered(known, TASK, "").program, "c1")
    messages = [*TASK, *tool_turn(tool_call)]
    known.given_up(known.resolve(ask(messages)))
    assert known.resolve(ask(messages)).answers == (tool_call,)


def test_ids_are_found_in_text_of_clients_that_rewrite_the_answer() -> None:
    known = identities()
    first = answered(known, TASK, "")
    tool_call = known.mint(first.program, "c1")
    rewritten: list[dict[str, Any]] = [
        {
            "role": "assistant",
            "content": [{"type": "text", "text": f"Calling tools:\n[{{'id': '{tool_call}'}}]"}],
        },
        {"role": "user", "content": [{"type": "text", "text": "Observation:\nok"}]},
    ]
    second = known.resolve(ask([*TASK, *rewritten]))
    assert (second.program, second.answers) == (first.program, (tool_call,))


def test_an_id_that_a_user_merely_quotes_says_nothing() -> None:
    known = identities()
    first = answered(known, TASK, "")
    tool_call = known.mint(first.program, "c1")
    other = known.resolve(ask([{"role": "user", "content": f"What is {tool_call}?"}]))
    assert other.program != first.program


def test_a_conversation_goes_on_whatever_clients_add_to_its_messages() -> None:
    known = identities()
    first = answered(known, TASK, "I will look at the tests first.")
    returned: dict[str, Any] = {
        "role": "assistant",
        "content": [{"type": "text", "text": "I will look at the tests first."}],
        "provider_specific_fields": {"refusal": None},
        "tool_calls": None,
    }
    marked: list[dict[str, Any]] = [TASK[0] | {"cache_control": {"type": "ephemeral"}}, TASK[1]]
    second = answered(known, [*marked, returned, {"role": "user", "content": "go on"}], "done")
    assert (second.program, second.known_by) == (first.program, "conversation")


def test_an_answer_may_come_back_with_something_appended() -> None:
    known = identities()
    text = "Thought: the parser drops the last element of the list."
    first = answered(known, TASK, text)
    returned = {"role": "assistant", "content": text + "\nCalling tools: []"}
    assert known.resolve(ask([*TASK, returned])).program == first.program


def test_a_conversation_is_not_continued_without_our_answer_in_it() -> None:
    known = identities()
    first = answered(known, TASK, "short")
    more = {"role": "user", "content": "and quickly"}
    foreign = {"role": "assistant", "content": "short, but another one's words"}
    assert known.resolve(ask([*TASK, more])).program != first.program
    assert known.resolve(ask([*TASK, foreign, more])).program != first.program


def test_only_the_end_of_a_conversation_is_continued() -> None:
    known = identities()
    first = answered(known, TASK, "one")
    longer = [*TASK, {"role": "assistant", "content": "one"}, {"role": "user", "content": "x"}]
    assert answered(known, longer, "two").program == first.program
    branch = [*longer[:-1], {"role": "user", "content": "y"}]
    assert known.resolve(ask(branch)).program != first.program


def test_equal_conversations_of_two_programs_are_continued_one_each() -> None:
    known = identities()
    a, b = known.resolve(ask(TASK)), known.resolve(ask(TASK))
    known.answered(a, "same")
    known.answered(b, "same")
    further = [*TASK, {"role": "assistant", "content": "same"}, {"role": "user", "content": "x"}]
    two = {known.resolve(ask(further)).program for _ in range(2)}
    assert two == {a.program, b.program}
    assert known.resolve(ask(further, retry=True)).program in two


def test_a_first_call_that_was_given_up_keeps_its_program_for_the_next_try() -> None:
    known = identities()
    first = known.resolve(ask(TASK))
    known.given_up(first)
    assert known.resolve(ask(TASK)).program == first.program
    assert known.resolve(ask(TASK)).program != first.program


def test_a_declared_retry_of_a_live_first_call_is_the_same_program_only_if_there_is_one() -> None:
    known = identities()
    first = known.resolve(ask(TASK))
    assert known.resolve(ask(TASK, retry=True)).program == first.program
    second = known.resolve(ask(TASK))
    assert known.resolve(ask(TASK, retry=True)).program not in {first.program, second.program}


def test_what_was_not_used_for_longest_is_forgotten() -> None:
    known = identities(remembered=3)
    ids = [known.mint("p", f"c{i}") for i in range(5)]
    assert [known.minted(i) is not None for i in ids] == [False, False, True, True, True]


def test_a_digest_is_of_what_is_asked_not_of_how_it_is_sent() -> None:
    asked = ChatRequest(model="m", messages=TASK)
    again = ChatRequest(messages=[dict(reversed(message.items())) for message in TASK], model="m")
    assert call_digest(asked) == call_digest(again)
    assert call_digest(asked) != call_digest(ChatRequest(model="m", messages=TASK, temperature=1.0))
    assert call_digest(asked) != call_digest(asked, ["END"])


@given(st.lists(st.tuples(st.integers(0, 3), st.text(max_size=40)), max_size=30))
def test_interleaved_conversations_never_mix(turns: list[tuple[int, str]]) -> None:
    """Whatever is said, each client stays one program, and no two clients are the same one."""
    known = identities()
    talks: dict[int, list[dict[str, Any]]] = {}
    programs: dict[int, str] = {}
    for client, text in turns:
        talk = talks.setdefault(client, [{"role": "user", "content": f"I am {client}"}])
        claim = answered(known, talk, text)
        assert programs.setdefault(client, claim.program) == claim.program
        talk += [{"role": "assistant", "content": text}, {"role": "user", "content": "go on"}]
    assert len(set(programs.values())) == len(programs)
