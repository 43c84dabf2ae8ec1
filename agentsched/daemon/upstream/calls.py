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
from random import getrandbits
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
from agentsched.daemon.tenancy import Tenancy
from agentsched.daemon.upstream.bodies import with_added
from agentsched.daemon.upstream.estimates import Estimates
from agentsched.daemon.upstream.passage import Passage, PassedCall
from agentsched.daemon.upstream.reading import Asked
from agentsched.daemon.upstream.watching import Seen
from agentsched.engines.contract import Engine, EngineGone, Sampling
from agentsched.engines.frontend import Prepared
from agentsched.engines.upstream.dialect import NOTHING
from agentsched.engines.upstream.engine import UpstreamEngine
from agentsched.engines.upstream.pool import Outgoing
from agentsched.engines.upstream.wire import Fault, Header, UpstreamFault

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

    def pass_on(
        self,
        tenancy: Tenancy,
        ask: Ask,
        asked: Asked,
        request: Request,
        *,
        path: str,
        headers: list[Header],
        body: bytes,
        deadline_s: float | None = None,
    ) -> PassedCall:
        """The call of a request: a new one, or the live one that it is a retry of. The caller is attached
        to it until ``leave``. Raises ``ApiError``."""
        if self.unavailable is not None:
            raise self.unavailable
        claim = tenancy.identities.resolve(ask)
        live = self._live.get((claim.program, claim.digest))
        if isinstance(live, PassedCall) and not live.answered:
            live.clients += 1
            live.attached += 1
            return live
        self._check_busy(tenancy, claim)
        name = f"{getrandbits(128):032x}"  # names tell calls apart, and are no secret
        if live is not None:
            claim.digest += name.encode()  # its first copy is being answered, and cannot be joined any more
        call = PassedCall(
            name=name,
            first=self._is_first(claim),
            claim=claim,
            tenancy=tenancy,
            request=request,
            prepared=Prepared(prompt=[], sampling=Sampling(max_output_tokens=asked.max_output_tokens)),
            arrived_s=asyncio.get_running_loop().time(),
            asked=asked,
            asked_tokens=self._estimates.prompt_tokens(claim.program, len(body)),
            kind="" if self._estimates.knows(claim.program) else _kind(asked),
            body=body,
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

    async def _generate(self, call: LiveCall, engine: Engine) -> None:
        assert isinstance(call, PassedCall)
        server = cast("UpstreamEngine", engine)
        begun_s = asyncio.get_running_loop().time()
        sending = _Sending(begun_s)

        def first_token() -> None:
            sending.first_s = asyncio.get_running_loop().time()
            if not call.ended:
                self._host.post(ev.FirstToken(call=call.core_name))

        passage = call.passage = Passage(call, first_token)
        headers, body = call.headers, call.body
        asked = call.asked
        added = server.added(
            asked.path,
            call.program,
            _salt(call),
            engaged=self._host.engaged,
            own_session="session_params" in asked.signals,
        )
        if added is not NOTHING:
            headers, body = with_added(headers, body, added, asked.stated)
        outgoing = Outgoing(path=call.path, headers=headers, body=body)
        try:
            connection = passage.connection = await server.send(outgoing, passage)
        except UpstreamFault as fault:
            self._host.lost(engine)
            raise EngineGone(str(fault)) from fault
        tokens = call.prompt_tokens
        server.began(tokens, added)
        cached = self._estimates.cached_tokens(call.program, call.kind, tokens)
        self._host.post(ev.CallStarted(call=call.core_name, cached_tokens=cached))
        try:
            await passage.over
        except UpstreamFault as fault:
            server.doubt()
            self._fail(call, fault)
        else:
            self._finish(call, passage, server, sending)
        finally:
            server.over(tokens, added)
            server.release(connection)
            passage.close()

    def _fail(self, call: PassedCall, fault: UpstreamFault) -> None:
        _log.warning("call %s: %s", call.name, fault)
        if fault.unsent and not call.answered:
            raise EngineGone(str(fault)) from fault
        status, code = _STATUS.get(fault.fault, (502, "engine_cut_off"))
        error = ApiError(status, str(fault), kind="server_error", code=code, retry_after_s=RETRY_AFTER_S)
        raise error from fault

    def _finish(self, call: PassedCall, passage: Passage, server: UpstreamEngine, sending: _Sending) -> None:
        seen = passage.watch.finish()
        if passage.status >= 400:
            self._end_badly(call, ApiError(passage.status, f"the engine answered {passage.status}"))
            return
        done = self._counted(call, seen, server.name)
        if sending.first_s is not None:
            server.computed(
                prefilled_tokens=done.prompt_tokens - done.cached_tokens,
                output_tokens=done.output_tokens,
                prefill_s=sending.first_s - sending.begun_s,
            )
        if self._host.engines.get(server.name) is server:
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
                len(call.body),
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


class _Sending:
    """When a call was sent, and when its first token came, if it did on a stream."""

    def __init__(self, begun_s: float) -> None:
        self.begun_s = begun_s
        self.first_s: float | None = None


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


def _kind(asked: Asked) -> str:
    """First calls of one model that begin alike have as much of their prompt in common."""
    content = asked.transcript.first().get("content")
    first = content[0] if isinstance(content, list) and content else content
    text = first.get("text") if isinstance(first, dict) else first
    return f"{asked.chat.model} {len(asked.chat.tools)} {str(text)[:KIND_CHARS]}"
