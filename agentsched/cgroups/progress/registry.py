"""Which readers look at which command.

Others add theirs with ``register``, or by an entry point of the group ``agentsched.progress`` whose
object is a function ``(words) -> Reader | None`` of the program's words; theirs come first.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from agentsched.cgroups.commands import Words
from agentsched.cgroups.progress.builds import Build
from agentsched.cgroups.progress.compiled_tests import Cargo, GoTest
from agentsched.cgroups.progress.counters import GIT_PHASES, Counters, Curl, Phases
from agentsched.cgroups.progress.node import Install, NodeTests
from agentsched.cgroups.progress.packages import Apt, Pip
from agentsched.cgroups.progress.python_tests import Pytest, Unittest
from agentsched.cgroups.progress.reading import Reader

GROUP = "agentsched.progress"

Expected = Callable[[str], int]
"""How many units a reader of this name counted when the same command ran before; 0: not known."""

Choice = Callable[[Words], Reader | None]

_log = logging.getLogger(__name__)
_added: list[Choice] = []
_plugged: list[Choice] | None = None


def register(choice: Choice) -> None:
    """Let ``choice`` look at every program that a command runs, before all that are known; the reader
    that it answers with is made anew for each call."""
    _added.insert(0, choice)


def readers_for(words: Words, expected: Expected) -> list[Reader]:
    """The readers of one program, best first; empty if its class is not known."""
    for choice in (*_added, *_plugins()):
        try:
            chosen = choice(words)
        except Exception:
            _log.exception("a progress reader of %s could not be chosen", words[0])
            continue
        if chosen is not None:
            chosen.expected = chosen.expected or expected(chosen.name)
            return [chosen]
    return _known(words[0], words[1:], expected)


def is_known(words: Words) -> bool:
    """Whether there are readers for this program."""
    return bool(readers_for(words, lambda _: 0))


def unknown(expected: Expected) -> list[Reader]:
    """The readers of a command of which nothing is known: a script may run anything."""
    return [Pytest(sure=False), Build(), NodeTests(), Cargo(), Counters()]


def _known(name: str, words: Sequence[str], expected: Expected) -> list[Reader]:
    action = next((word for word in words if not word.startswith(("-", "+"))), "")
    match name:
        case "pytest" | "py.test":
            return [Pytest(expected("pytest"))]
        case "unittest" | "trial" | "nose2":
            return [Unittest(expected("unittest"))]
        case "manage.py" | "django" | "django-admin" if "test" in words:
            return [Unittest(expected("unittest"))]
        case "pip" | "pip3" if action in ("install", "wheel", "download"):
            return [Pip()]
        case "apt" | "apt-get" if action:
            return [Apt()]
        case "dpkg" if "-i" in words or "--install" in words:
            return [Apt(packages=sum(word.endswith(".deb") for word in words))]
        case "cargo":
            tests = action in ("test", "t")
            return [Cargo(expected("cargo") if tests else 0, tests=tests)]
        case "go" if action == "test":
            return [GoTest(expected("go"))]
        case "ninja" | "samu":
            return [Build()]
        case _:
            return _of_node(name, action, expected) or _of_others(name)


def _of_node(name: str, action: str, expected: Expected) -> list[Reader]:
    if name in ("npm", "yarn", "pnpm", "bun") and action in ("", "install", "i", "add", "ci"):
        return [Install()]
    if name in ("jest", "vitest", "mocha", "ava", "tap", "prove", "node") or (
        name in ("npm", "yarn", "pnpm", "bun") and action in ("test", "t")
    ):
        return [NodeTests(expected("node-tests")), Counters()]
    return []


def _of_others(name: str) -> list[Reader]:
    match name:
        case "curl":
            return [Curl(), Counters(believed_after=1)]
        case "git":
            return [Phases(GIT_PHASES)]
        case "wget" | "rsync" | "docker" | "podman" | "aria2c" | "pv":
            return [Counters(believed_after=1)]
        case _:
            return []


def _plugins() -> list[Choice]:
    global _plugged
    if _plugged is None:
        from importlib.metadata import entry_points  # not before it is needed: it takes 15 ms

        _plugged = []
        for entry in entry_points(group=GROUP):
            try:
                _plugged.append(entry.load())
            except Exception:
                _log.exception("the progress reader %s cannot be loaded", entry.name)
    return _plugged
