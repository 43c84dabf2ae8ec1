"""Tells the daemon what the commands of a wrapped agent do, as the tool calls that its model asked for.

A command that begins is looked for among the tool calls without a result, which the daemon lists
(``GET /agentsched/v1/tool-calls``). One that is none of them is the agent's own business (``git status`` at
its start, a server of tools) and is not reported. One thread does all of this, so that nothing waits for it.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO

from agentsched.cgroups.contract import ToolSpec, Usage
from agentsched.cgroups.hints import Hint, hint_of
from agentsched.cgroups.watching import Watch
from agentsched.cgroups.wrapping.agent import Command
from agentsched.cgroups.wrapping.joining import Asked, Joins, Match, Ran
from agentsched.cgroups.wrapping.written import Written
from agentsched.sdk.reporting import KEY_VARIABLE, Reporter
from agentsched.sdk.tool_runs import ToolRun

GIVE_UP_S = 1.5
"""What was executed and is no tool call that is known by then is none."""

SURE_S = 0.3
"""For so long a better match is waited for than that a tool call's text stands somewhere in what runs."""

_AGAIN_S = 0.1
_ASK_TIMEOUT_S = 2.0
_UNKNOWN_STATUS = 0

_log = logging.getLogger("agentsched.sdk")
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(eq=False, slots=True)
class _Seen:
    """One command, what it executed in turn (lastly at ``since_s``), and its tool call once that is known."""

    command: Command
    ran: list[Ran]
    since_s: float
    match: Match | None = None
    run: ToolRun | None = None
    watch: Watch | None = None
    written: Written | None = None
    end: tuple[int | None, float, Usage] | None = None


def _write(log: IO[str] | None, command: Command, words: tuple[str, ...], tool_call: str | None) -> None:
    """What a command executed, the tool call that it was taken for, and how long it ran outside its leaf."""
    if log is not None:
        told = {"pid": command.pid, "words": words, "tool_call": tool_call}
        log.write(json.dumps(told | {"moved_after_s": command.moved_s - command.began_s}) + "\n")
        log.flush()


class Reports:
    """See ``wrapping.agent.Listener``. ``run`` is the agent's name in its base URL. ``log`` gets a line for
    each command once it is known what it is. ``hint``: of commands that have none."""

    def __init__(self, url: str, run: str, log: IO[str] | None = None, hint: Hint | None = None) -> None:
        self._url = f"{url.rstrip('/')}/agentsched/v1/tool-calls?{urllib.parse.urlencode({'run': run})}"
        self._run = run
        self._log, self._hint = log, hint
        self._key = os.environ.get(KEY_VARIABLE)
        self._reporter = Reporter(url, self._key)
        self._joins = Joins()
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._seen: dict[int, _Seen] = {}
        self._warned: set[str] = set()
        self._thread = threading.Thread(target=self._work, name="agentsched-reports", daemon=True)
        self._thread.start()

    def began(self, command: Command) -> None:
        self._queue.put(lambda: self._began(command))

    def became(self, command: Command, words: tuple[str, ...], whole: bool) -> None:
        self._queue.put(lambda: self._became(command.number, words, whole))

    def ended(self, command: Command, status: int | None, wall_s: float, used: Usage) -> None:
        self._queue.put(lambda: self._ended(command.number, (status, wall_s, used)))

    def close(self, timeout_s: float = 3.0) -> None:
        """Everything has ended: join and report what is left, as far as that is quick."""
        self._queue.put(None)
        self._thread.join(timeout_s)
        self._reporter.flush()

    def _work(self) -> None:
        while True:
            try:
                task = self._queue.get(timeout=_AGAIN_S if self._seen else None)
            except queue.Empty:
                self._look()
                continue
            if task is None:
                break
            task()
            self._look()
        self._look(last=True)

    def _began(self, command: Command) -> None:
        self._seen[command.number] = _Seen(command, [Ran(command.words, command.whole)], time.monotonic())

    def _became(self, number: int, words: tuple[str, ...], whole: bool) -> None:
        if (seen := self._seen.get(number)) is not None and seen.match is None:
            seen.ran.append(Ran(words, whole))
            seen.since_s = time.monotonic()

    def _ended(self, number: int, end: tuple[int | None, float, Usage]) -> None:
        if (seen := self._seen.get(number)) is not None:
            seen.end = end

    def _look(self, *, last: bool = False) -> None:
        """Join what is not joined yet, and report what is new of the rest."""
        stale_s = time.monotonic() - GIVE_UP_S
        open_ones = [
            seen for seen in self._seen.values() if seen.match is None and (last or seen.since_s > stale_s)
        ]
        asked = self._asked() if open_ones else []
        for seen in open_ones:
            self._join(seen, asked or [])
        for number, seen in list(self._seen.items()):
            self._tick(seen)
            over = last or (seen.end is not None and seen.since_s <= stale_s)
            if seen.match is None and over:
                _write(self._log, seen.command, seen.command.words, None)
                del self._seen[number]
            elif seen.run is not None and seen.end is not None:
                self._report_end(seen.run, seen.end)
                if seen.written is not None:
                    seen.written.close()
                del self._seen[number]

    def _join(self, seen: _Seen, asked: list[Asked]) -> None:
        began_s = seen.command.began_s
        sure = seen.end is None and time.monotonic() < seen.since_s + SURE_S
        seen.match = self._joins.find(seen.ran, began_s, asked, sure=sure)
        if seen.match is None:
            return
        call, text = seen.match.asked, seen.match.text
        spec = ToolSpec(command=text.replace("\0", ""), tool_call=call.tool_call, tool=call.tool)
        hint, _ = hint_of(spec, {})
        seen.run = ToolRun(self._reporter, self._run, spec, hint or self._hint)
        seen.watch = Watch(spec, {}, seen.run.progressed)
        seen.watch.begin(seen.command.leaf)
        seen.written = Written(seen.command.pid)
        _write(self._log, seen.command, seen.match.ran.words, call.tool_call)

    def _tick(self, seen: _Seen) -> None:
        """Look at a running one, if it is time to."""
        if seen.watch is None or seen.written is None or seen.watch.due_s > time.monotonic():
            return
        if more := seen.written.more():
            seen.watch.output(more)
        seen.watch.tick()

    def _report_end(self, run: ToolRun, end: tuple[int | None, float, Usage]) -> None:
        status, wall_s, used = end
        if status is None:
            self._warn_once("status", "how commands end is not told here: they are reported as ended well")
        run.end(
            _UNKNOWN_STATUS if status is None else status,
            wall_s=wall_s,
            cpu_s=used.cpu_s,
            peak_memory_bytes=used.peak_memory_bytes,
        )

    def _asked(self) -> list[Asked] | None:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        request = urllib.request.Request(self._url, headers=headers)
        before = time.monotonic()
        try:
            with _opener.open(request, timeout=_ASK_TIMEOUT_S) as answer:
                listed = json.load(answer)["tool_calls"]
        except urllib.error.HTTPError as error:
            self._warn_once("asked", f"the daemon does not list tool calls: {error.code} {error.reason}")
            error.close()
            return None
        except (OSError, ValueError, KeyError) as error:
            self._warn_once("asked", f"the daemon does not list tool calls: {error}")
            return None
        after = time.monotonic()
        return [
            Asked(
                tool_call=each["tool_call"],
                tool=each["tool"],
                arguments=each["arguments"],
                asked_s=before - each["age_s"],
                result_s=None if each["result_age_s"] is None else after - each["result_age_s"],
            )
            for each in listed
        ]

    def _warn_once(self, kind: str, text: str) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            _log.warning("%s", text)


class Silence:
    """A listener where there is no daemon."""

    def __init__(self, log: IO[str] | None = None) -> None:
        self._log = log

    def began(self, command: Command) -> None:
        _write(self._log, command, command.words, None)

    def became(self, command: Command, words: tuple[str, ...], whole: bool) -> None:
        """Nobody wants to know."""

    def ended(self, command: Command, status: int | None, wall_s: float, used: Usage) -> None:
        """Nobody wants to know."""

    def close(self) -> None:
        """Nothing is left to say."""
