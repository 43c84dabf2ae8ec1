"""Whose call is it: from stated ids, ids that we minted, and conversations."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.daemon.identity import Ask, Claim, Identities, call_digest
from agentsched.daemon.signals import Origin
from agentsched.engines.frontend import ChatRequest

TASK = [{"role": "system", "content": "You repair code."}, {"role": "user", "content": "Repair it."}]


def identities(**options: Any) -> Identities:
    numbers = itertools.count(1)
    return Identities(new_program=lambda: f"p{next(numbers)}", **options)


def ask(
    messages: list[dict[str, Any]], *, retry: bool = False, tools: str = "", body: Any = None, **headers: str
) -> Ask:
    """``tools``: one letter each. Names of headers have underscores here."""
    chat = ChatRequest(model="m", messages=messages, tools=[{"function": {"name": tool}} for tool in tools])
    path = headers.pop("path", None)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    origin = Origin(headers=named, body=body or {}, path=path)
    return Ask(chat=chat, digest=call_digest(chat), origin=origin, retry=retry)


def answered(known: Identities, messages: list[dict[str, Any]], text: str, **options: Any) -> Claim:
    claim = known.resolve(ask(messages, **options))
    known.begun(claim)
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
    first = known.resolve(ask(TASK, x_agentsched_program="mine"))
    second = known.resolve(ask([*TASK, {"role": "user", "content": "more"}], x_agentsched_program="mine"))
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


def test_equal_conversations_that_are_continued_one_after_the_other_are_continued_one_each() -> None:
    """Whatever was answered meanwhile: an equal call is the next run's, before it is one that came twice."""
    known = identities()
    runs = [answered(known, TASK, "same").program for _ in range(3)]
    for turn in range(2):
        messages = [*TASK, *(part for _ in range(turn + 1) for part in said("same"))]
        assert {answered(known, messages, "same").program for _ in runs} == set(runs)


# Forks, side requests, rewritten histories

LONG_ANSWER = "I have looked at all of the files; the bug is in the parser of dates."


def said(text: str, then: str = "go on") -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}, {"role": "user", "content": then}]


def test_another_way_from_the_middle_is_a_child_and_goes_on_as_such() -> None:
    known = identities()
    first = answered(known, TASK, "one")
    answered(known, [*TASK, *said("one")], "two")
    branch = [*TASK, *said("one", "no, otherwise")]
    fork = answered(known, branch, "three")
    assert (fork.program != first.program, fork.parent, fork.known_by) == (True, first.program, "fork")
    assert answered(known, [*branch, *said("three")], "four").program == fork.program
    trunk = [*TASK, *said("one"), *said("two")]
    assert answered(known, trunk, "five").program == first.program


def test_a_fork_is_seen_while_the_first_way_is_still_being_answered() -> None:
    known = identities()
    first = answered(known, TASK, "one")
    on = known.resolve(ask([*TASK, *said("one")]))
    known.begun(on)
    fork = known.resolve(ask([*TASK, *said("one", "otherwise")]))
    assert (on.program, fork.parent) == (first.program, first.program)
    assert fork.program != first.program


def test_a_fork_of_a_program_that_is_known_by_tool_calls_is_a_child_too() -> None:
    known = identities()
    first = answered(known, TASK, "")
    tool_call = known.mint(first.program, "c1")
    turn = tool_turn(tool_call)
    answered(known, [*TASK, *turn], "so")
    answered(known, [*TASK, *turn, *said("so")], "two")
    branch = [*TASK, *turn, *said("so", "otherwise")]
    fork = answered(known, branch, "three")
    assert (fork.parent, fork.known_by) == (first.program, "fork")
    # Its newest id is still one of its parent's.
    assert answered(known, [*branch, *said("three")], "four").program == fork.program


def test_two_answers_to_one_prompt_that_both_go_on_are_two_ways() -> None:
    known = identities()
    first = answered(known, [*TASK], "one")
    prompt = [*TASK, *said("one")]
    a, b = answered(known, prompt, "a"), answered(known, prompt, "b")
    assert a.program == b.program == first.program
    assert answered(known, [*prompt, *said("a")], "x").program == first.program
    assert known.resolve(ask([*prompt, *said("b")])).parent == first.program


def test_the_same_call_again_after_its_answer_is_no_fork() -> None:
    """The client has lost the answer, or asks for another one."""
    known = identities()
    first = answered(known, TASK, "one")
    for _ in range(2):
        assert answered(known, [*TASK, *said("one")], "two").program == first.program


def test_side_requests_do_not_move_the_conversation() -> None:
    known = identities()
    first = answered(known, TASK, "one", tools="ab")
    asked = [*TASK, *said("one", "Summarise this in five words.")]
    side = answered(known, asked, "a title of five words")
    assert (side.program, side.side) == (first.program, True)
    trunk = [*TASK, *said("one")]
    assert answered(known, trunk, "two", tools="ab").program == first.program
    # Also after the conversation has gone on, and for the next call, which goes on from there.
    assert answered(known, asked, "another title").program == first.program
    assert answered(known, [*trunk, *said("two")], "three", tools="ab").program == first.program


def test_a_conversation_may_go_on_from_a_side_request_after_all() -> None:
    known = identities()
    first = answered(known, TASK, "one", tools="ab")
    side = [*TASK, *said("one", "No tools now.")]
    answered(known, side, "well")
    assert answered(known, [*side, *said("well")], "two", tools="ab").program == first.program


def test_a_history_that_was_summed_up_goes_on_in_its_program() -> None:
    known = identities()
    first = answered(known, TASK, "one", tools="ab")
    answered(known, [*TASK, *said("one", "Sum up.")], LONG_ANSWER, tools="ab")
    summed = [TASK[0], {"role": "user", "content": f"Summary so far:\n{LONG_ANSWER}\nGo on."}]
    claim = answered(known, summed, "two", tools="ab")
    assert (claim.program, claim.known_by) == (first.program, "quotation")
    assert answered(known, [*summed, *said("two")], "three", tools="ab").program == first.program
    # An agent of another kind that is told the same is another program.
    assert known.resolve(ask(summed, tools="c")).program != first.program


def test_a_history_whose_beginning_was_cut_off_goes_on_in_its_program() -> None:
    known = identities()
    first = answered(known, TASK, "one")
    answered(known, [*TASK, *said("one")], LONG_ANSWER)
    assert known.resolve(ask([TASK[0], *said(LONG_ANSWER)])).program == first.program
    tool_call = known.mint(first.program, "c1")
    assert known.resolve(ask([TASK[0], *tool_turn(tool_call)])).program == first.program


def test_words_that_are_not_all_of_an_answer_say_nothing() -> None:
    known = identities()
    first = answered(known, TASK, LONG_ANSWER)
    part = {"role": "user", "content": f"Look:\n{LONG_ANSWER[:60]} And so on."}
    assert known.resolve(ask([TASK[0], part])).program != first.program


# Runs that may hold several agents

OTHER = [{"role": "system", "content": "You search."}, {"role": "user", "content": "Search."}]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SCOPES: tuple[Any, ...] = ({"traceparent": TRACE}, {"path": "run-17"})


@pytest.mark.parametrize("scope", SCOPES)
def test_agents_of_one_run_come_apart(scope: dict[str, str]) -> None:
    known = identities()
    main = answered(known, TASK, "one", tools="ab", **scope)
    child = answered(known, OTHER, "found", tools="c", **scope)
    assert (child.parent, child.program != main.program) == (main.program, True)
    assert answered(known, [*TASK, *said("one")], "two", tools="ab", **scope).program == main.program
    assert answered(known, [*OTHER, *said("found")], "x", tools="c", **scope).program == child.program


@pytest.mark.parametrize("scope", SCOPES)
def test_side_requests_and_rewritten_histories_stay_in_a_runs_program(scope: dict[str, str]) -> None:
    known = identities()
    main = answered(known, TASK, "one", tools="ab", **scope)
    title = [{"role": "system", "content": "You make titles."}, {"role": "user", "content": "Repair it."}]
    assert answered(known, title, "t", **scope).program == main.program
    summed = [TASK[0], {"role": "user", "content": "What was done: nothing."}]
    assert answered(known, summed, "two", tools="ab", **scope).program == main.program


@pytest.mark.parametrize("scope", SCOPES)
def test_an_equal_agent_that_begins_while_the_first_is_busy_is_a_child(scope: Any) -> None:
    known = identities()
    main = known.resolve(ask(TASK, **scope))
    known.begun(main)
    other = [TASK[0], {"role": "user", "content": "Repair something else."}]
    child = known.resolve(ask(other, **scope))
    assert (child.program != main.program, child.parent) == (True, main.program)
    assert known.resolve(ask(TASK, retry=True, **scope)).program == main.program


@pytest.mark.parametrize("scope", SCOPES)
def test_an_equal_agent_that_begins_while_the_first_waits_for_a_tool_is_its_child(scope: Any) -> None:
    known = identities()
    main = answered(known, TASK, "", tools="ab", **scope)
    tool_call = known.mint(main.program, "c1")
    inner = [TASK[0], {"role": "user", "content": "Repair this part."}]
    child = answered(known, inner, "", tools="ab", **scope)
    assert (child.program != main.program, child.parent) == (True, main.program)
    deeper = known.mint(child.program, "c2")
    innermost = [TASK[0], {"role": "user", "content": "Repair that part."}]
    assert answered(known, innermost, "done", tools="ab", **scope).parent == child.program
    for program, asked, call in ((child, inner, deeper), (main, TASK, tool_call)):
        on = answered(known, [*asked, *tool_turn(call)], "well", tools="ab", **scope)
        assert on.program == program.program


@pytest.mark.parametrize("scope", SCOPES)
def test_a_title_that_is_asked_for_first_is_of_the_agent_that_comes_next(scope: Any) -> None:
    known = identities()
    title = answered(known, OTHER, "t", **scope)
    assert answered(known, TASK, "one", tools="ab", **scope).program == title.program
    assert answered(known, OTHER, "found", tools="c", **scope).parent == title.program


def test_clients_that_begin_a_trace_for_each_request_are_known_by_their_conversation() -> None:
    known = identities()
    first = answered(known, TASK, "one", traceparent=TRACE)
    other = TRACE.replace("0af7", "1bf8")
    assert answered(known, [*TASK, *said("one")], "two", traceparent=other).program == first.program


def test_only_signals_that_are_asked_for_are_believed() -> None:
    known = identities(kinds=["conversation"])
    first = answered(known, TASK, "one", x_agentsched_program="p", traceparent=TRACE)
    second = answered(known, TASK, "one", x_agentsched_program="p", traceparent=TRACE)
    assert (first.known_by, first.program != second.program) == ("new", True)
