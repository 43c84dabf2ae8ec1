"""Which programs a command runs, as far as its text tells: ``cd x && python -m pytest -q`` runs pytest.

A reading of text, not a shell: quotes are honoured by words, here-documents are left out, substitutions
are not followed. Only for choosing how to look at a command, never for running one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

Words = tuple[str, ...]

MOST_TEXT = 4096
"""Characters that are looked at, here-documents aside."""

MOST_DOCUMENTS = 1 << 16
MOST_PROGRAMS = 8

_WORD = re.compile(
    r"""(?:[^\s'"\\;|&<>()]|\\.|'[^']*'|"(?:[^"\\]|\\.)*")+|&&|\|\||[;|&\n()]|[<>]+&?""", re.DOTALL
)
_DOCUMENT = re.compile(r"""<<-?[ \t]*(['"]?)(\w+)\1([^\n]*\n)(?:.*?\n)??[ \t]*\2[ \t]*(?=\n|$)""", re.DOTALL)
_ENDS = frozenset({"&&", "||", ";", "|", "&", "\n", "(", ")"})
_QUOTES = re.compile(r"""'([^']*)'|"((?:[^"\\]|\\.)*)"|\\(.)""", re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Za-z_]\w*=")
_PYTHON = re.compile(r"(?:python|pypy)[\d.]*")
_SETTING_UP = frozenset({"cd", "pushd", "export", "source", ".", "set", "unset", "exit", "ulimit", "umask"})
_SHELLS = frozenset({"sh", "bash", "dash", "zsh"})
_WRAPPERS = frozenset(
    {"env", "time", "nice", "ionice", "nohup", "sudo", "exec", "command", "stdbuf", "timeout", "xvfb-run"}
    | {"npx", "bunx", "setsid"}
)
_RUNNERS = {"poetry": "run", "uv": "run", "pipenv": "run", "hatch": "run", "pdm": "run", "pnpm": "exec"}


def programs(argv: Sequence[str], command: str) -> list[Words]:
    """The programs in order, each with its arguments; its own name comes without a folder. At most
    ``MOST_PROGRAMS``; those that only set the shell up (``cd``, ``export``) are left out."""
    found = [words for part in (_parts(command) if command else [tuple(argv)]) for words in _programs(part)]
    return found[:MOST_PROGRAMS]


def assignments(argv: Sequence[str], command: str) -> dict[str, str]:
    """Variables that a shell command sets for its programs, as in ``cd x && A=1 pytest``; of a name the
    first."""
    if not command and argv and is_script(argv):
        command = argv[2]
    found: dict[str, str] = {}
    for part in _parts(command):
        for word in part:
            if not _ASSIGNMENT.match(word):
                break
            name, _, value = word.partition("=")
            found.setdefault(name, value)
    return found


def is_script(words: Sequence[str]) -> bool:
    """A shell with a script on its command line."""
    return (
        os.path.basename(words[0]) in _SHELLS
        and len(words) > 2
        and words[1].startswith("-")
        and words[1].endswith("c")
    )


def pipes(command: str) -> list[tuple[int, Words, str]]:
    """The pipes of a command: where in its text, the program before each, and the name after it."""
    text = _DOCUMENT.sub(_blank, command[:MOST_DOCUMENTS]).partition("<<")[0]
    tokens = list(_WORD.finditer(text))
    found: list[tuple[int, Words, str]] = []
    begin = 0
    for index, match in enumerate(tokens):
        if match.group() not in _ENDS:
            continue
        if match.group() == "|" and index + 1 < len(tokens):
            ran = programs((), text[tokens[begin].start() : match.start()]) if begin < index else []
            found.append((match.start(), ran[-1] if ran else (), os.path.basename(tokens[index + 1].group())))
        begin = index + 1
    return found


def _parts(command: str) -> list[Words]:
    text = _DOCUMENT.sub(r"\3", command[:MOST_DOCUMENTS]).partition("<<")[0][:MOST_TEXT]
    parts: list[Words] = []
    words: list[str] = []
    redirected = False
    for match in _WORD.finditer(text + "\n"):
        word = match.group()
        if word in _ENDS:
            # of "a 2>&1 | b" only the bars and semicolons end a program
            if words:
                parts.append(tuple(words))
            words, redirected = [], False
        elif word[0] in "<>":
            if words and words[-1].isdigit():
                words.pop()
            redirected = True
        elif redirected:
            redirected = False
        else:
            words.append(_QUOTES.sub(lambda quoted: next(filter(None, quoted.groups()), ""), word))
    return parts


def _blank(document: re.Match[str]) -> str:
    """As long as the document, with what stands behind its mark on the first line."""
    line = document[3]
    at = document.start(3) - document.start()
    return " " * at + line + " " * (len(document[0]) - at - len(line))


def _programs(words: Words) -> list[Words]:
    """The program that these words run, wrappers taken off; several for a shell with a script."""
    rest = list(words)
    while rest:
        name = os.path.basename(rest[0])
        if _ASSIGNMENT.match(rest[0]):
            del rest[0]
        elif name in _WRAPPERS:
            rest = _unwrapped(rest)
        elif len(rest) > 1 and _RUNNERS.get(name) == rest[1]:
            rest = _unwrapped(rest[1:])
        elif is_script(rest):
            return [inner for part in _parts(rest[2]) for inner in _programs(part)]
        elif _PYTHON.fullmatch(name) and "-m" in rest[1:3]:
            rest = rest[rest.index("-m") + 1 :]
        elif name in _SETTING_UP:
            return []
        else:
            name = name.partition("@")[0] or name  # npx takes a version with it: yarn@1
            return [(name, *rest[1:])] if name else []
    return []


def _unwrapped(words: list[str]) -> list[str]:
    """Without the wrapper, its options, and the one number that ``timeout 60`` or ``nice -n 5`` takes."""
    rest = words[1:]
    while rest and (rest[0].startswith("-") or re.fullmatch(r"[\d.]+[smhd]?", rest[0])):
        del rest[0]
    return rest
