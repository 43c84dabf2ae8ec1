"""The measurement of identity: its figures, its replay, and one real client run through all of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from agentsched.daemon.identity import Ask, Identities, call_digest
from agentsched.daemon.signals import KINDS, Origin
from agentsched.engines.frontend import ChatRequest
from agentsched.workloads.acting import ActingMind
from agentsched.workloads.bench.identity import (
    ALL_CLIENTS,
    DELEGATE,
    Listening,
    drive,
    replayed,
    scores,
    served,
    table,
    without_ids,
)
from agentsched.workloads.live_clients import mini_swe_agent


@pytest.mark.parametrize(
    ("pairs", "precision", "recall"),
    [
        ([("p", 1), ("p", 1), ("q", 2)], 1.0, 1.0),
        ([("p", 1), ("p", 1), ("p", 2), ("p", 2)], 0.5, 1.0),  # two runs taken for one
        ([("p", 1), ("q", 1)], 1.0, 0.5),  # one run taken for two
    ],
)
def test_scores_are_means_over_calls(pairs: list[tuple[str, int]], precision: float, recall: float) -> None:
    assert scores(list(pairs)) == (precision, recall)


def ask(*texts: str, **headers: str) -> Ask:
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    chat = ChatRequest(model="m", messages=messages)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Ask(chat=chat, digest=call_digest(chat), origin=Origin(headers=named))


def answer(known: Identities, asked: Ask, text: str) -> None:
    claim = known.resolve(asked)
    known.begun(claim)
    known.answered(claim, text)


def test_a_replay_believes_only_what_it_is_asked_to() -> None:
    known = Listening()
    for session in ("a", "b"):
        answer(known, ask("go", x_session_id=session), f"answer to {session}")
    for session in ("a", "b"):
        answer(known, ask("go", f"answer to {session}", "on", x_session_id=session), "done")
    answer(known, ask("something else", x_session_id="a"), "done")
    by_all = replayed(known.calls, KINDS, lambda asked: asked)
    assert [claim.program for claim in by_all] == [f"session:{s}" for s in "ababa"]
    by_words = [claim.program for claim in replayed(known.calls, ("conversation",), without_ids)]
    assert by_words[:2] == by_words[2:4]
    assert len(set(by_words)) == 3


def test_ids_of_tool_calls_are_taken_out_everywhere() -> None:
    identifier = "call_" + "x" * 22
    assert without_ids(ask(f"the id is {identifier}.")).chat.messages[0]["content"] == "the id is ."


def test_a_real_client_is_driven_heard_and_told_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MSWEA_CONFIGURED", "MSWEA_SILENT_STARTUP", "LITELLM_LOCAL_MODEL_COST_MAP"):
        monkeypatch.setenv(name, "True")
    monkeypatch.setenv("MSWEA_GLOBAL_CONFIG_DIR", str(tmp_path / "config"))
    known = Listening()
    with served(ActingMind(2, delegate=DELEGATE), known) as url:
        assert drive({"mini-swe-agent": mini_swe_agent}, 3, url, 3, tmp_path) == []
    assert len(known.calls) == 9
    rows = table(known.calls)
    assert [row["signal"] for row in rows] == list(KINDS)
    assert all(row["scores"][ALL_CLIENTS] == (1.0, 1.0) for row in rows)
    assert rows[0]["known_by"] == {"stated": 9}
    assert rows[-1]["known_by"] == {"conversation": 6, "new": 3}
