"""Live calls whose answers other servers give: ``Calls``, but that requests and answers pass as they are.

What can go wrong with the server, and what the client is told:

* It refuses connections, or closes an idle one as it is used again: nothing was computed, so the call
  begins once more where the core lets it; the server counts as gone until it answers again. The second
  time: 503. What runs there goes on for as long as its connection does, so a server that shuts down in
  order can finish.
* It breaks off, or answers what is no HTTP, before its answer has begun: 502. It was perhaps computed, so
  it is not sent again; clients do that if they wish.
* It is silent for too long: 504.
* Any of these after the answer has begun: the client's stream ends with an error event if it stands between
  two events, and is broken off else, as is an answer that is no stream.
* It answers with an error: that is the answer.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from typing import Any, cast

from agentsched.core import events as ev
from agentsched.daemon.accounts import DEFAULT
from agentsched.daemon.answers import Ending, Usage
from agentsched.daemon.apis import Request
from agentsched.daemon.calls import Calls
from agentsched.daemon.errors import ApiError
from agentsched.daemon.identity import Ask
from agentsched.daemon.livecall import LiveCall
from agentsched.daemon.recent import Recent
from agentsched.daemon.talks import Transcript
from agentsched.daemon.tenancy import Tenancy
from agentsched.daemon.upstream.bodies import PassedHeaders, with_added
from agentsched.daemon.upstream.estimates import Estimates
from agentsched.daemon.upstream.passage import Passage, PassedCall
from agentsched.daemon.upstream.reading import Asked
from agentsched.daemon.upstream.watching import Seen
from agentsched.engines.contract import EngineGone, Sampling
from agentsched.engines.frontend import Prepared
from agentsched.engines.upstream.dialect import NOTHING, Added
from agentsched.engines.upstream.engine import UpstreamEngine
from agentsched.engines.upstream.pool import Outgoing, header_lines
from agentsched.engines.upstream.wire import Connection, Fault, UpstreamFault

_log = logging.getLogger(__name__)

_STATUS = {Fault.SILENT: (504, "engine_timeout"), Fault.MALFORMED: (502, "engine_malformed")}
RETRY_AFTER_S = 2.0
MOST_AMBIGUOUS = 50_000
KIND_CHARS = 256
_TELLING = re.compile(r"[A-Za-z0-9_-]{9,}")
"""Ids of tool calls that no other answer is likely to have. Some servers number them within an answer instead
(``functions.bash:0``)."""


class PassedCalls(Calls):
    """See ``Calls``; ``pass_on`` is in the place of ``join``."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._estimates = Estimates()
        self._ambiguous: Recent[str, None] = Recent(MOST_AMBIGUOUS)
        self._under_way = 0
        """Calls whose answers are on their way."""
        self._released = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        """Kept, as asking for it costs a system call."""

    def pass_on(
        self,
        tenancy: Tenancy,
        ask: Ask,
        asked: Asked,
        request: Request,
        *,
        path: str,
        headers: PassedHeaders,
        body: bytes,
        deadline_s: float | None = None,
    ) -> PassedCall:
        """The call of a request: a new one, or the live one that it is a retry of. The caller is attached
        to it until ``leave``. Raises ``ApiError``."""
        claim = self._claim(tenancy, ask)
        if isinstance(claim, LiveCall):
            return cast("PassedCall", claim)
        call = PassedCall(
            first=self._is_first(claim),
            claim=claim,
            tenancy=tenancy,
            request=request,
            prepared=Prepared(prompt=[], sampling=Sampling(max_output_tokens=asked.max_output_tokens)),
            arrived_s=self._loop.time(),
            asked=asked,
            asked_tokens=self._estimates.prompt_tokens(claim.program, len(body)),
            kind="" if self._estimates.knows(claim.program) else _kind(asked, ask.transcript),
            body=body,
            body_bytes=len(body),
            path=path,
            headers=headers,
        )
        self._begin(call, deadline_s)
        return call

    def leave(self, call: LiveCall) -> None:
        """See ``Calls.leave``. An answer that has come in full is no longer to be cancelled."""
        if isinstance(call, PassedCall) and call.complete:
            call.attached -= 1
        else:
            super().leave(call)

    async def settle(self) -> None:
        """See ``Calls.settle``."""
        while self._tasks or self._under_way:
            self._released.clear()
            released = asyncio.create_task(self._released.wait())
            await asyncio.wait([*self._tasks, released], return_when=asyncio.FIRST_COMPLETED)
            released.cancel()

    # On its way. A call takes a task only where it has to wait: for its turn, or for a new connection.

    def _start(self, call: LiveCall) -> None:
        assert isinstance(call, PassedCall)
        engine = None if call.ticket is None else self._host.engine(call.ticket.engine)
        if engine is None:
            super()._start(call)
            return
        server = cast("UpstreamEngine", engine)
        passage = self._passage(call, server)
        connection = server.send_at_once(_outgoing(call, passage.added), passage)
        if connection is None:
            super()._start(call)
        else:
            self._sent(call, passage, connection)

    async def _run(self, call: LiveCall) -> None:
        assert isinstance(call, PassedCall)
        try:
            while not (call.ended or call.passage):
                try:
                    await self._send(call, cast("UpstreamEngine", await self._pass_gate(call)))
                except EngineGone as error:
                    self._try_again(call, error)
        except Exception as error:
            self._fail(call, error)

    async def _send(self, call: PassedCall, server: UpstreamEngine) -> None:
        passage = self._passage(call, server)
        try:
            connection = await server.send(_outgoing(call, passage.added), passage)
        except UpstreamFault as fault:
            self._host.lost(server)
            raise EngineGone(str(fault)) from fault
        self._sent(call, passage, connection)

    def _passage(self, call: PassedCall, server: UpstreamEngine) -> Passage:
        asked = call.asked
        added = server.added(
            asked.path,
            call.program,
            _salt(call),
            engaged=self._host.engaged,
            own_session="session_params" in asked.signals,
        )
        return Passage(call, server, added, self._first_token, self._over, self._loop)

    def _sent(self, call: PassedCall, passage: Passage, connection: Connection) -> None:
        if call.ended:  # while a connection was made
            passage.server.release(connection)
            return
        call.passage = passage
        passage.connection, passage.since_s = connection, self._loop.time()
        self._under_way += 1
        passage.server.began(call.prompt_tokens, passage.added)
        cached = self._estimates.cached_tokens(call.program, call.kind, call.prompt_tokens)
        self._host.post(ev.CallStarted(call=call.core_name, cached_tokens=cached))

    def _first_token(self, call: PassedCall) -> None:
        if call.passage is not None:
            call.first_s = self._loop.time()
            self._host.post(ev.FirstToken(call=call.core_name))

    def _over(self, call: PassedCall, fault: UpstreamFault | None) -> None:
        """All of the answer has come, or it never will."""
        passage = call.passage
        if passage is None:
            return  # it was cancelled
        try:
            if fault is None:
                self._finish(call, passage)
            else:
                passage.server.doubt()
                self._broke_off(call, fault)
        except Exception as error:
            self._fail(call, error)
        finally:
            if call.passage is passage:
                self._release(call)

    def _cancel(self, call: LiveCall, error: ApiError) -> None:
        super()._cancel(call, error)
        assert isinstance(call, PassedCall)
        self._release(call)

    def _release(self, call: PassedCall) -> None:
        """Its connection is free, or is closed where the answer has not come to its end."""
        passage = call.passage
        if passage is None:
            return
        assert passage.connection is not None, "it was sent"
        call.passage = None
        self._under_way -= 1
        passage.server.over(call.prompt_tokens, passage.added)
        passage.server.release(passage.connection)
        passage.close()
        self._released.set()

    def _broke_off(self, call: PassedCall, fault: UpstreamFault) -> None:
        _log.warning("call %s: %s", call.name, fault)
        if fault.unsent and not call.answered:
            self._release(call)
            self._try_again(call, EngineGone(str(fault)))
            self._start(call)
            return
        status, code = _STATUS.get(fault.fault, (502, "engine_cut_off"))
        raise ApiError(status, str(fault), kind="server_error", code=code, retry_after_s=RETRY_AFTER_S)

    def _finish(self, call: PassedCall, passage: Passage) -> None:
        server = passage.server
        assert passage.watch is not None, "an answer begins with its head"
        if passage.status >= 400:
            self._end_badly(call, ApiError(passage.status, f"the engine answered {passage.status}"))
            return
        seen = passage.watch.finish()
        done = self._counted(call, seen, server.name)
        if call.first_s is not None:
            server.computed(
                prefilled_tokens=done.prompt_tokens - done.cached_tokens,
                output_tokens=done.output_tokens,
                prefill_s=call.first_s - passage.since_s,
            )
        if self._host.engine(server.name) is server:
            self._host.post(done)
        else:  # it went on answering after it had been lost: for the core this call is waiting again
            self._host.post(ev.CallAborted(call=call.core_name, reason="its engine was lost as it answered"))
        self._forget(call)
        call.tenancy.identities.answered(call.claim, seen.text)
        usage = Usage(
            prompt_tokens=done.prompt_tokens,
            cached_tokens=done.cached_tokens,
            output_tokens=done.output_tokens,
        )
        call.ending = Ending("tool_calls" if seen.tools else "stop", usage)
        call.notify()

    def _counted(self, call: PassedCall, seen: Seen, server: str) -> ev.CallFinished:
        """The end of a call, with the server's figures where it gave them; its tool calls lead back here."""
        prompt = call.prompt_tokens if seen.prompt_tokens is None else seen.prompt_tokens
        output = self._estimates.text_tokens(seen.text) if seen.output_tokens is None else seen.output_tokens
        if seen.prompt_tokens is not None:
            self._estimates.learn(
                call.program,
                call.kind,
                call.body_bytes,
                prompt=prompt,
                cached=seen.cached_tokens,
                output=output,
            )
        refs = []
        for identifier, tool in seen.tools.items():
            if self._adopt(identifier, call):
                refs.append(ev.ToolCallRef(tool_call=identifier, tool=tool))
                call.note_asked(identifier, tool, "".join(seen.arguments.get(identifier, ())))
        return ev.CallFinished(
            call=call.core_name,
            prompt_tokens=prompt,
            cached_tokens=min(prompt, seen.cached_tokens or 0),
            output_tokens=output,
            recomputed_tokens=self._estimates.recomputed_tokens(
                call.program, server, prompt=prompt, cached=seen.cached_tokens
            ),
            tool_calls=tuple(refs),
        )

    def _adopt(self, identifier: str, call: PassedCall) -> bool:
        """Whether the id of a tool call leads back to the program: not if another program has it, too."""
        if not _TELLING.fullmatch(identifier) or identifier in self._ambiguous:
            return False
        identities = call.tenancy.identities
        known = identities.minted(identifier)
        if known is not None and known.program != call.program:
            self._ambiguous[identifier] = None
            identities.disown(identifier)
            return False
        identities.adopt(identifier, call.program, call.name)
        return True


def _outgoing(call: PassedCall, added: Added) -> Outgoing:
    lines, body = call.headers.lines, call.body
    if added is not NOTHING:
        headers, body = with_added(call.headers.headers, body, added, call.asked.stated)
        lines = header_lines(headers)
    return Outgoing(path=call.path, lines=lines, body=body)


def _salt(call: PassedCall) -> str:
    """Names whose KV the call may find where the server is shared by tenants; "" if it is not. A client's own
    word for that tells apart what is within its tenant."""
    tenant = call.tenancy.tenant
    if tenant.name == DEFAULT:
        return ""
    own = call.asked.stated.get("cache_salt")
    if own is None:
        return tenant.salt
    return hashlib.sha256(f"{tenant.salt}\0{own}".encode()).hexdigest()


def _kind(asked: Asked, transcript: Transcript | None) -> str:
    """First calls of one model that begin alike have as much of their prompt in common."""
    content = None if transcript is None else transcript.first().get("content")
    first = content[0] if isinstance(content, list) and content else content
    text = first.get("text") if isinstance(first, dict) else first
    return f"{asked.chat.model} {len(asked.chat.tools)} {str(text)[:KIND_CHARS]}"
