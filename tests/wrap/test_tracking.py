"""Which processes are the agent and which are its commands: events in, moves out."""

from __future__ import annotations

from agentsched.cgroups.bpf import Event, Executed, Exited, Forked
from agentsched.cgroups.wrapping.tracking import Became, Began, Ended, Joined, Move, Tracker

AGENT, HOME, LEAF = 100, 7, 8


def forked(parent: int, pid: int, leaf: int = HOME) -> Event:
    return Forked(at_s=1.0, leaf=leaf, pid=pid, parent=parent)


def executed(pid: int, *words: str, leaf: int = HOME) -> Event:
    return Executed(at_s=2.0, leaf=leaf, pid=pid, words=words, whole=True)


def exited(pid: int, status: int | None = 0, leaf: int = HOME) -> Event:
    return Exited(at_s=3.0, leaf=leaf, pid=pid, status=status)


def moves(tracker: Tracker, *events: Event) -> list[Move]:
    return [move for event in events for move in tracker.heard(event)]


def tracker(argv0: str = "myagent", *names: str) -> Tracker:
    return Tracker(AGENT, HOME, argv0, names)


def test_what_a_child_of_the_agent_executes_is_a_command_until_it_ends() -> None:
    told = moves(
        tracker(),
        executed(AGENT, "myagent"),
        forked(AGENT, 101),
        executed(101, "bash", "-c", "ls"),
        exited(101, 3, LEAF),
    )
    assert told == [Began(1, 101, ("bash", "-c", "ls"), True, 2.0), Ended(1, 3, 3.0)]


def test_all_that_a_command_makes_is_of_it_and_follows_if_it_was_too_early() -> None:
    told = moves(
        tracker(),
        forked(AGENT, 101),
        executed(101, "make"),
        forked(101, 102, HOME),  # before 101 was moved
        forked(102, 103, LEAF),  # after 102 was
        executed(103, "cc", leaf=LEAF),
        exited(103, leaf=LEAF),
        exited(101, leaf=LEAF),
        forked(103, 104, HOME),
    )
    assert told[1:] == [Joined(1, 102), Ended(1, 0, 3.0)]


def test_a_child_that_executes_nothing_is_the_agent_and_its_children_commands() -> None:
    told = moves(tracker(), forked(AGENT, 101), forked(101, 102), executed(102, "true"), exited(101))
    assert told == [Began(1, 102, ("true",), True, 2.0)]


def test_the_agents_own_program_is_no_command() -> None:
    for argv0, names in (("codex", ()), ("/opt/x/codex", ()), ("npx", ("codex",)), ("anything", ())):
        told = moves(
            tracker(argv0, *names),
            executed(AGENT, "node", "codex.js"),
            forked(AGENT, 101),
            executed(101, "/vendor/codex", "exec"),
            forked(101, 102),
            executed(102, "bash", "-lc", "ls"),
        )
        assert told == [Began(1, 102, ("bash", "-lc", "ls"), True, 2.0)]


def test_an_agent_in_python_or_a_shell_may_run_python_or_a_shell() -> None:
    for program in ("python3.12", "bash", "node"):
        told = moves(tracker(program), forked(AGENT, 101), executed(101, program, "x"))
        assert [type(move) for move in told] == [Began]


def test_a_command_may_become_another_program() -> None:
    told = moves(
        tracker(), forked(AGENT, 101), executed(101, "env", "A=1", "ls"), executed(101, "ls", leaf=LEAF)
    )
    assert told[1:] == [Became(1, ("ls",), True)]


def test_a_child_whose_parent_was_missed_is_the_agents() -> None:
    told = moves(tracker(), forked(999, 101), executed(101, "ls"))
    assert [type(move) for move in told] == [Began]


def test_numbers_of_processes_come_again() -> None:
    told = moves(
        tracker(),
        *(forked(AGENT, 101), executed(101, "ls"), exited(101, leaf=LEAF)),
        *(forked(AGENT, 101), executed(101, "pwd"), exited(101, 1, LEAF)),
    )
    assert [move.command for move in told] == [1, 1, 2, 2]


def test_a_process_that_announces_itself_is_a_command_once() -> None:
    known = tracker()
    assert known.claim(101, ("bash", "-c", "ls"), 1.5) == [Began(1, 101, ("bash", "-c", "ls"), True, 1.5)]
    assert moves(known, forked(AGENT, 101, LEAF), executed(101, "ls", leaf=LEAF)) == [
        Became(1, ("ls",), True)
    ]
    assert known.claim(101, ("sh", "-c", "pwd"), 1.6) == [Became(1, ("sh", "-c", "pwd"), True)]
    assert moves(known, forked(101, 102, LEAF)) == []
    assert known.claim(102, ("sh",), 1.7) == []
    assert tracker("npx", "sh").claim(103, ("/bin/sh", "-c", "claude"), 1.0) == []
