"""Whose call is this? Program identity from what unmodified clients send.

Signals, the strongest first (``signals.KINDS``):

1. an id that the client states;
2. what known clients say by themselves: session, agent and parent;
3. any header by the convention ``*-session-id``;
4. the fields of other serving systems for the same;
5. a W3C trace, and 6. a path in the base URL: a run, which may hold several agents;
7. ids of tool calls that we minted: every client returns them byte for byte, in a message's
   ``tool_calls`` or ``tool_call_id``, some only inside the text of an assistant's message;
8. the conversation so far (``conversations.py``);
9. nothing: a new program. Two equal first calls are two programs.

A call that goes on from the middle of a known conversation is a fork: a program of its own, child of the
first. So is, within a trace or a path, an agent with another system prompt or other tools, and one that
begins while the first is busy or waits for a tool. A call without tools in a program whose calls have
tools is a side request (a title, a summary): it belongs to the program, and the conversation does not go
on from it unless the next call does.

A retry looks like a second copy of a call. It belongs to the program of the first copy if that
program is known by an id; if it continues a conversation that the first copy has claimed; or if nobody
waits for the first copy any more, so that nobody else can be its program.

Pure logic: no I/O, no clock. Memory is bounded: what was not used for longest is forgotten, and a
client that comes back after that is a new program.
"""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from agentsched.daemon.conversations import Conversations, Turn
from agentsched.daemon.recent import Recent, Table
from agentsched.daemon.signals import KINDS, Origin, Signal, read
from agentsched.daemon.talks import Beginnings, Talk, Transcript, digest, listed
from agentsched.engines.frontend import ChatRequest

_MOST_GENERATIONS = 32
_MOST_MEMBERS = 250
"""Agents of one run that are told apart."""

_encoder = msgspec.json.Encoder(order="deterministic")


@dataclass(slots=True)
class Minted:
    """A tool call that we gave an id: by which call of which program, and whether its result came."""

    program: str
    call: str
    answered: bool = False


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What identity needs of a request. ``digest`` is equal for a retry; where it is not so in a next life
    (``call_digest`` is), ``lasting`` gives one that is. ``retry`` says that the client itself calls this a
    retry. ``transcript``: its messages, where they are not in ``chat``."""

    chat: ChatRequest
    digest: bytes
    origin: Origin = msgspec.field(default_factory=Origin)
    retry: bool = False
    transcript: Transcript | None = None
    lasting: Callable[[], bytes] | None = None


class Claim(msgspec.Struct, kw_only=True):
    """A call's tie to its program, until ``answered`` or ``given_up`` ends it.

    ``answers``: tool calls of ours whose results are new in this call. ``known_by`` is the signal.
    ``parent``: the program that this one came from, if it is known. ``side``: see above. ``run``: what
    stands for a program in the call's URL, "" for nothing.
    """

    program: str
    known_by: str
    digest: bytes
    chain: bytes
    answers: tuple[str, ...] = ()
    parent: str | None = None
    side: bool = False
    run: str = ""
    turn: Turn | None = None
    opening: bytes | None = None
    """The digest by which others that are equal find it, where nothing else tells whose it is."""


class _Profile(msgspec.Struct):
    """What kind of agent a program is: its system prompt and tools. ``asked``: the tool calls of its
    last answer, which was to call ``asked_by``."""

    kind: bytes
    tools: bool
    calls: int = 0
    asked_by: str = ""
    asked: list[str] = []


class _Found(msgspec.Struct, frozen=True):
    program: str
    known_by: str
    parent: str | None = None
    turn: Turn | None = None
    opening: bytes | None = None


class Identities:
    """Knows the programs of one tenant by what their calls say. All their names begin with ``scope``.
    ``remembered`` bounds each of its tables; only signals of ``kinds`` are believed."""

    def __init__(
        self,
        scope: str = "",
        *,
        remembered: int = 50_000,
        kinds: Collection[str] = KINDS,
        new_program: Callable[[], str] = lambda: str(uuid.uuid4()),
    ) -> None:
        self._kinds = frozenset(kinds)
        self._scope = scope
        self._make_name = new_program
        self._minted: Recent[str, Minted] = Recent(remembered)
        self._conversations = Conversations(remembered)
        self._profiles: Recent[str, _Profile] = Recent(remembered)
        self._parents: Recent[str, str] = Recent(remembered)
        self._beginnings = Beginnings()
        self._scopes: Recent[str, list[str]] = Recent(remembered)
        self._opening: Recent[bytes, list[str]] = Recent(remembered)  # live first calls, by digest
        self._given_up: Recent[bytes, list[str]] = Recent(remembered)
        self._live: dict[str, list[bytes]] = {}

    def tables(self) -> dict[str, Table]:
        """All that is worth keeping for a next life: hashes and ids, never a text."""
        return {
            "minted": Table(self._minted, str, Minted),
            "profile": Table(self._profiles, str, _Profile),
            "parent": Table(self._parents, str, str),
            "scope": Table(self._scopes, str, list[str]),
            "opening": Table(self._opening, bytes, list[str]),
            "given up": Table(self._given_up, bytes, list[str]),
            "turn": Table(self._conversations.turns, bytes, tuple[Turn, ...]),
            "quotation": Table(self._conversations.openings, bytes, Turn),
        }

    def recover(self) -> None:
        """The tables are those of an earlier life. Calls that were live then are given up, and come again."""
        self._conversations.recover()
        for call, programs in self._opening.items():
            self._given_up[call] = list(dict.fromkeys([*(self._given_up.get(call) or ()), *programs]))
            self._opening.pop(call)

    def resolve(self, ask: Ask) -> Claim:
        """Find the call's program, or make one up.

        A claim that becomes a live call (``begun``) is ended once, with its call. The claim of a retry
        that attaches to a live call is not: it says the same as that call's.
        """
        chat, transcript = ask.chat, ask.transcript
        talk = self._beginnings.read(transcript) if transcript else listed(chat.messages, chat.prompt)
        ids, in_text = self._known_ids(talk)
        found = self._find(ask, talk, ids, "tool text" if in_text else "tool call")
        profile = _profile(ask, talk)
        known = self._profiles.get(found.program)
        if known is None:
            known = self._profiles[found.program] = profile
        side = known.tools and not profile.tools
        if not side:
            known.kind, known.tools = profile.kind, profile.tools
        known.calls += 1
        self._profiles.touch(found.program)
        if found.parent is not None:
            self._parents[found.program] = found.parent
        if found.turn is not None and not side:
            found.turn.claimed = ask.digest
        asked = [i for i in ids if self._minted[i].program == found.program]
        new = tuple([i for i in asked if not self._minted[i].answered])
        return Claim(
            program=found.program,
            known_by=found.known_by,
            digest=ask.digest,
            chain=talk.chain,
            answers=new,
            parent=found.parent,
            side=side,
            run=ask.origin.path or "",
            turn=None if side else found.turn,
            opening=found.opening,
        )

    def new_name(self) -> str:
        """For a program that nobody has named."""
        return self._scope + self._make_name()

    def begun(self, claim: Claim) -> None:
        """A call of this claim is live now."""
        self._live.setdefault(claim.program, []).append(claim.digest)

    def mint(self, program: str, call: str) -> str:
        """A new tool call id that leads back to the program."""
        tool_call = f"call_{secrets.token_urlsafe(16)}"
        self.adopt(tool_call, program, call)
        return tool_call

    def adopt(self, tool_call: str, program: str, call: str) -> None:
        """This tool call id, which was minted before, leads back to the program."""
        self._minted[tool_call] = Minted(program, call)
        if (known := self._profiles.get(program)) is not None:
            if known.asked_by != call:
                known.asked_by, known.asked = call, []
            known.asked.append(tool_call)
            self._profiles.touch(program)

    def disown(self, tool_call: str) -> None:
        """This tool call id leads nowhere: several programs have it."""
        self._minted.pop(tool_call)

    def minted(self, tool_call: str) -> Minted | None:
        """Which call asked for this tool call, if we minted its id and still know."""
        return self._minted.get(tool_call)

    def answered(self, claim: Claim, text: str) -> None:
        """The call ended well with this text: its program's conversation goes on from there."""
        self._end(claim)
        for tool_call in claim.answers:
            if (minted := self._minted.get(tool_call)) is not None:
                minted.answered = True
                self._minted.touch(tool_call)
        if claim.turn is not None:
            self._conversations.went_on(claim.turn, claim.chain)
        self._conversations.answered(claim.program, claim.chain, text)

    def left(self, claim: Claim) -> None:
        """Nobody waits for the call any more: the same call may come again, for the same program."""
        if claim.known_by == "new" and claim.opening is not None:
            programs = self._given_up.get(claim.opening) or []
            if claim.program not in programs:
                self._given_up[claim.opening] = [*programs, claim.program]

    def given_up(self, claim: Claim) -> None:
        """The call ended without an answer."""
        self._end(claim)
        self.left(claim)

    def _end(self, claim: Claim) -> None:
        if claim.turn is not None:
            claim.turn.claimed = None
        if claim.opening is not None:
            opening = self._opening.get(claim.opening) or []
            if claim.program in opening:
                rest = [program for program in opening if program != claim.program]
                _put(self._opening, claim.opening, rest)
        live = self._live.get(claim.program)
        if live is not None and claim.digest in live:
            live.remove(claim.digest)
            if not live:
                del self._live[claim.program]

    def _line(self, program: str) -> Iterator[str]:
        """The program and those that it descends from."""
        above: str | None = program
        for _ in range(_MOST_GENERATIONS):
            if above is not None:
                yield above
                above = self._parents.get(above)

    # Finding

    def _find(self, ask: Ask, talk: Talk, ids: list[str], by_id: str) -> _Found:
        scope = None
        for signal in read(ask.origin, self._kinds, self._scope):
            if not signal.scope:
                return _Found(signal.program, signal.kind, signal.parent)
            scope = scope or signal
        members = self._scopes.get(scope.program) if scope else None
        found = self._by_conversation(ask, talk, ids, by_id, members)
        if found is None and scope is not None and members:
            found = self._in_scope(ask, talk, scope, members)
        if found is None:
            found = self._recalled(ask, talk) or self._first(ask, scope)
        if scope is not None and found.program not in (members := members or []):
            # The first one stays: it has the run's name.
            newest = members[1:][-_MOST_MEMBERS:]
            self._scopes[scope.program] = [*members[:1], *newest, found.program]
        return found

    def _known_ids(self, talk: Talk) -> tuple[list[str], bool]:
        """Ids of ours in the messages, in order; and whether they had to be read out of texts."""
        stated, in_text = talk.tool_calls()
        if not stated and not in_text:
            return [], False
        plain = [i for i in stated if i in self._minted]
        texts = () if plain else [i for i in in_text if i in self._minted]
        return list(dict.fromkeys(plain or texts)), not plain

    def _by_conversation(
        self, ask: Ask, talk: Talk, ids: list[str], by_id: str, members: Collection[str] | None
    ) -> _Found | None:
        owners = [self._minted[i].program for i in ids] if "tool call" in self._kinds else []
        owners = [owner for owner in owners if members is None or owner in members]
        owner = owners[-1] if owners else None
        if "conversation" not in self._kinds:
            return None if owner is None else _Found(owner, by_id)

        def allowed(program: str) -> bool:
            if owner is not None:
                return owner in self._line(program)
            return members is None or program in members

        known_by = "conversation" if owner is None else by_id
        found = self._conversations.continued(talk, ask.digest, retry=ask.retry, allowed=allowed)
        if found is None:
            return None if owner is None else _Found(owner, known_by)
        program = found.turn.program
        if not found.fork:
            return _Found(program, known_by, turn=found.turn)
        known = self._profiles.get(program)
        if known is not None and known.tools and not ask.chat.tools:
            return _Found(program, known_by)  # a side request in between
        return _Found(self.new_name(), "fork", parent=program)

    def _in_scope(self, ask: Ask, talk: Talk, scope: Signal, members: Sequence[str]) -> _Found:
        """No conversation of the run is continued: a side request, a rewritten history, or a new agent."""
        main, profile = members[0], _profile(ask, talk)
        alike = [m for m in members if (known := self._profiles.get(m)) and known.kind == profile.kind]
        above = self._profiles.get(main)
        if not talk.opens or (above is not None and above.tools and not profile.tools):
            return _Found(alike[-1] if alike else main, scope.kind)
        repeated = [m for m in alike if ask.digest in self._live.get(m, ())]
        if ask.retry and repeated:
            return _Found(repeated[0], scope.kind)
        if profile.tools and above is not None and above.calls == 1 and not above.tools:
            return _Found(main, scope.kind)  # that first call was a side request, then
        idle = [m for m in alike if m not in self._live and not self._waits(m)]
        if idle:
            return _Found(idle[0], scope.kind)
        parents = [m for m in members if self._waits(m)]
        return _Found(self.new_name(), scope.kind, parent=parents[-1] if parents else main)

    def _waits(self, program: str) -> bool:
        """Whether a tool call of its last answer is still without a result: a sub-agent may be running."""
        known = self._profiles.get(program)
        asked = known.asked if known is not None else ()
        return any(not minted.answered for i in asked if (minted := self._minted.get(i)) is not None)

    def _recalled(self, ask: Ask, talk: Talk) -> _Found | None:
        """A history that was rewritten, by an agent of the same kind, still has the program's own words."""
        if "conversation" not in self._kinds:
            return None
        kind = _profile(ask, talk).kind

        def allowed(program: str) -> bool:
            known = self._profiles.get(program)
            return known is not None and known.kind == kind

        program = self._conversations.recalled(talk, allowed)
        return None if program is None else _Found(program, "quotation")

    def _first(self, ask: Ask, scope: Signal | None) -> _Found:
        asked = ask.digest if ask.lasting is None else ask.lasting()
        opening = self._opening.get(asked) or []
        if given_up := self._given_up.get(asked):
            program = given_up[0]
            _put(self._given_up, asked, given_up[1:])
        elif ask.retry and len(opening) == 1:
            return _Found(opening[0], "retry", opening=asked)
        else:
            program = scope.program if scope else self.new_name()
        if program not in opening:
            self._opening[asked] = [*opening, program]
        return _Found(program, "new", opening=asked)


def call_digest(chat: ChatRequest, stop: Sequence[str] = ()) -> bytes:
    """Canonical hash of what is asked: equal for a retry, by whatever API and transport it comes."""
    return digest(_encoder.encode([msgspec.to_builtins(chat, str_keys=True), stop]))


def _put(table: Recent[bytes, list[str]], call: bytes, programs: list[str]) -> None:
    if programs:
        table[call] = programs
    else:
        table.pop(call)


def _profile(ask: Ask, talk: Talk) -> _Profile:
    functions = [tool.get("function", tool) for tool in ask.chat.tools]
    names = [function.get("name") for function in functions if isinstance(function, dict)]
    return _Profile(digest(talk.system + _encoder.encode(names)), bool(names))
