"""Live calls: from their arrival through the gate and the engine to everybody who waits for them.

A ``LiveCall`` is one call as clients see it. Any number of clients may be attached: the one that sent
it, and retries of it. It goes on while somebody is attached. What runs in an engine ends there as soon as
nobody is; what still waits for its turn is kept for a moment, since a client whose patience ends comes
back with the same call, and finds its place again. When its engine is lost before any of its answer
left, a call begins once more on the next engine. The core knows each beginning by an id of its own, so
that what it hears of one never mixes with the other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from random import randbytes
from typing import cast

import msgspec

from agentsched.core import events as ev
from agentsched.daemon.answers import Ending, Piece, ToolCall, Usage
from agentsched.daemon.apis.contract import Request
from agentsched.daemon.engine_accounts import honest
from agentsched.daemon.errors import ApiError, engine_gone, overloaded, refused
from agentsched.daemon.fitting import fitted
from agentsched.daemon.gate import Gate, TurnedAway
from agentsched.daemon.host import Host
from agentsched.daemon.identity import Ask, Claim
from agentsched.daemon.livecall import LiveCall
from agentsched.daemon.patience import Patience
from agentsched.daemon.programs import Programs
from agentsched.daemon.stopping import StopStrings
from agentsched.daemon.tenancy import Tenancy
from agentsched.engines.contract import (
    Engine,
    EngineGone,
    GenerateRequest,
    RequestRefused,
    TokenEngine,
    TokensOut,
)
from agentsched.engines.frontend import Delta, Frontend, Prepared, ToolCallText
from agentsched.engines.streams import CallItem

_log = logging.getLogger(__name__)

HELD_RETRY_AFTER_S = 30.0


class Calls:
    """All live calls. ``unavailable``, once set, is what every further call is answered with."""

    def __init__(
        self,
        host: Host,
        gate: Gate,
        programs: Programs,
        frontend: Frontend,
        patience: Patience,
    ) -> None:
        self.unavailable: ApiError | None = None
        self._host = host
        self._gate = gate
        self._programs = programs
        self._frontend = frontend
        self._patience = patience
        self._live: dict[tuple[str, bytes], LiveCall] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def live(self) -> list[LiveCall]:
        return list(self._live.values())

    def join(
        self,
        tenancy: Tenancy,
        ask: Ask,
        request: Request,
        prepared: Prepared,
        *,
        shared_tokens: int = 0,
        deadline_s: float | None = None,
    ) -> LiveCall:
        """The call of a request: a new one, or the live one that it is a retry of. The caller is
        attached to it until ``leave``. The prompt's first ``shared_tokens`` are shared with all tenants.
        ``deadline_s`` is of the program, and counts where that is new. Raises ``ApiError``."""
        prepared = fitted(prepared, self.room_tokens)
        claim = self._claim(tenancy, ask)
        if isinstance(claim, LiveCall):
            return claim
        call = LiveCall(
            first=self._is_first(claim),
            claim=claim,
            tenancy=tenancy,
            request=request,
            prepared=prepared,
            shared_tokens=shared_tokens,
            arrived_s=asyncio.get_running_loop().time(),
        )
        self._begin(call, deadline_s)
        return call

    def _claim(self, tenancy: Tenancy, ask: Ask) -> Claim | LiveCall:
        """The live call that a request is a retry of, to which it is attached now; or the claim of a new
        call, for which its tenant has room. Raises ``ApiError``."""
        if self.unavailable is not None:
            raise self.unavailable
        claim = tenancy.identities.resolve(ask)
        live = self._live.get((claim.program, claim.digest))
        if live is not None and live.can_be_joined:
            live.clients += 1
            live.attached += 1
            return live
        try:
            tenancy.check_busy()
        except ApiError:
            tenancy.identities.given_up(claim)
            raise
        if live is not None:
            claim.digest += randbytes(8)  # there are two of it now
        return claim

    def _is_first(self, claim: Claim) -> bool:
        """Whether its program has no answer yet."""
        known = self._programs.open.get(claim.program)
        return known is None or not known.calls_done

    def _begin(self, call: LiveCall, deadline_s: float | None) -> None:
        """A new call: tell the core, and set it on its way."""
        claim, tenancy = call.claim, call.tenancy
        self._live[claim.program, claim.digest] = call
        tenancy.live += 1
        tenancy.identities.begun(claim)
        tenancy.asked.results(claim.answers, call.arrived_s)
        self.open_program(tenancy, claim.program, deadline_s=deadline_s, parent=claim.parent)
        self._arrive(call, claim.answers)
        self._start(call)

    def _start(self, call: LiveCall) -> None:
        call.task = asyncio.create_task(self._run(call), name=f"call {call.name}")
        self._tasks.add(call.task)
        call.task.add_done_callback(self._tasks.discard)

    def leave(self, call: LiveCall) -> None:
        """A client is not interested any more; the last one ends the call, at once if it is running."""
        call.attached -= 1
        if call.attached or call.ended:
            return
        call.tenancy.identities.left(call.claim)
        if call.held:
            asyncio.get_running_loop().call_later(self._patience.retry_grace_s, self._abandon, call)
        else:
            self._abandon(call)

    def _abandon(self, call: LiveCall) -> None:
        if call.attached == 0 and not call.ended:
            self._cancel(call, ApiError(499, "the client went away"))

    def open_program(
        self,
        tenancy: Tenancy,
        program: str,
        *,
        deadline_s: float | None = None,
        parent: str | None = None,
        expected_calls: int = 0,
        host: str = "",
    ) -> bool:
        """Tell the core of a program of the tenant's, on its terms; False if it knows it already."""
        if program in self._programs.open:
            return False
        tenant = tenancy.tenant
        return self._host.post(
            ev.ProgramOpened(
                program=program,
                tenant=tenant.name,
                weight=tenant.weight,
                priority=tenant.priority,
                host=host,
                deadline_s=tenant.deadline_s if deadline_s is None else deadline_s,
                parent=parent or "",
                expected_calls=expected_calls,
            )
        )

    def close_program(self, program: str, *, expired: bool = False) -> bool:
        """End a program and what it still has running; False if it is not open."""
        for call in self.live:
            if call.program == program:
                closed = f"program {call.stated_program!r} was closed"
                self._cancel(call, ApiError(409, closed, code="program_closed"))
        ended = self._host.post(ev.ProgramClosed(program=program, expired=expired))
        self._gate.forget(program)
        return ended

    def fail_all(self, error: ApiError) -> None:
        """No call can be served any more, neither those that run nor those to come."""
        self.unavailable = error
        for call in self.live:
            self._cancel(call, error)

    async def settle(self) -> None:
        """Wait until every call that was ended is out of its engine."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    @property
    def engines(self) -> dict[str, Engine]:
        """The attached engines by name."""
        return self._host.engines

    @property
    def room_tokens(self) -> int:
        """The largest context, output included, that any engine has room for; 0 without an engine."""
        can = (engine.capabilities for engine in self._host.engines.values())
        return max((min(c.max_context_tokens, c.capacity_tokens) for c in can), default=0)

    # One call

    def _arrive(self, call: LiveCall, answers: tuple[str, ...] = ()) -> None:
        call.beginnings += 1
        call.core_name = call.name if call.beginnings == 1 else f"{call.name}-{call.beginnings}"
        call.ticket = self._gate.hold(call.core_name, call.program)
        self._host.post(
            ev.CallArrived(
                call=call.core_name,
                program=call.program,
                prompt_tokens=call.prompt_tokens,
                max_output_tokens=call.prepared.sampling.max_output_tokens,
                answers=answers,
            )
        )
        self._gate.pass_seated(call.ticket)

    def _begin_again(self, call: LiveCall) -> None:
        before = call.core_name
        call.pieces.clear()
        call.cached_tokens = call.output_tokens = 0
        # In this order the program is never without a call, so this is no gap to learn from.
        self._arrive(call)
        self._host.post(ev.CallAborted(call=before, reason="its engine was lost; it begins again"))

    async def _run(self, call: LiveCall) -> None:
        try:
            while not call.ended:
                try:
                    await self._generate(call, await self._pass_gate(call))
                except EngineGone as error:
                    self._try_again(call, error)
        except Exception as error:
            self._fail(call, error)

    def _try_again(self, call: LiveCall, gone: EngineGone) -> None:
        """Begin again, as its engine is gone. Raises ``ApiError`` if it may not."""
        if call.delivered or call.beginnings > 1 or self.unavailable:
            raise engine_gone(str(gone)) from gone
        _log.warning("call %s begins again: %s", call.name, gone)
        self._begin_again(call)

    def _fail(self, call: LiveCall, error: Exception) -> None:
        """It ends with what its clients are told of this."""
        if isinstance(error, RequestRefused):
            error = refused(error, call.request.fields)
        if not isinstance(error, ApiError):
            _log.error("call %s failed by a fault of the daemon", call.name, exc_info=error)
            error = ApiError(500, "internal error of the daemon; its log has more", kind="server_error")
        self._end_badly(call, error)

    async def _pass_gate(self, call: LiveCall) -> Engine:
        ticket = call.ticket
        assert ticket is not None
        try:
            engine = ticket.engine  # most calls have it, and a time-out costs more than all of this
            if engine is None:
                async with asyncio.timeout_at(call.arrived_s + self._patience.max_hold_s):
                    engine = await ticket.passed()
        except TimeoutError:
            if not self._host.engines:
                raise engine_gone(f"no engine for {self._patience.max_hold_s:g} s; try again later") from None
            raise overloaded(
                f"held for {self._patience.max_hold_s:g} s without finding a place in an engine; "
                "try again later",
                HELD_RETRY_AFTER_S,
            ) from None
        except TurnedAway as error:
            raise overloaded(f"too many programs: {error}", error.retry_after_s) from None
        finally:
            self._gate.leave(ticket)
        if engine not in self._host.engines:
            raise EngineGone(f"engine {engine} is gone")
        return self._host.engines[engine]

    async def _generate(self, call: LiveCall, engine: Engine) -> None:
        request = GenerateRequest(
            call=call.core_name,
            program=call.program,
            prompt=call.prepared.prompt,
            sampling=call.prepared.sampling,
            recorded=call.prepared.recorded,
            salt=call.tenancy.tenant.salt,
            shared_prefix_tokens=call.shared_tokens,
        )
        decoder = self._frontend.decoder(call.prepared)
        # A recorded answer is emitted as it was recorded, in full.
        stops = StopStrings(() if request.recorded is not None else call.request.stop)
        try:
            items = cast("AsyncGenerator[CallItem, None]", cast("TokenEngine", engine).generate(request))
            async with aclosing(items):
                async for item in items:
                    match item:
                        case TokensOut():
                            call.count_output(len(item.tokens))
                            delta = decoder.feed(item.tokens, item.logprobs)
                            self._deliver(call, delta, stops, last=delta.ended)
                            if stops.hit or delta.ended:
                                self._end_well(call, None, stops.found)
                        case ev.CallFinished():
                            self._deliver(call, decoder.finish(), stops, last=True)
                            self._end_well(call, honest(call, item, engine.name), stops.found)
                        case ev.CallAborted():
                            raise ApiError(
                                500, f"the engine ended the call: {item.reason}", kind="server_error"
                            )
                        case ev.CallStarted():
                            call.cached_tokens = item.cached_tokens
                            self._host.post(item)
                        case ev.FirstToken():
                            self._host.post(item)
                    if call.ended:
                        return
        except EngineGone:
            self._host.lost(engine)
            raise

    def _deliver(self, call: LiveCall, delta: Delta, stops: StopStrings, *, last: bool = False) -> None:
        text = stops.feed(delta.text)
        if last and not stops.hit:
            text += stops.finish()
        minted = tuple(self._minted(call, tool) for tool in delta.tool_calls)
        if text or minted or delta.logprobs:
            call.pieces.append(Piece(text, minted, delta.logprobs))
            call.notify()

    def _minted(self, call: LiveCall, tool: ToolCallText) -> ToolCall:
        identifier = call.tenancy.identities.mint(call.program, call.name)
        call.tenancy.spellings.keep(identifier, tool.arguments)
        call.note_asked(identifier, tool.name, tool.arguments)
        return ToolCall(identifier, tool.name, tool.arguments)

    def _end_well(
        self, call: LiveCall, finished: ev.CallFinished | None, stop_string: str | None = None
    ) -> None:
        """``finished`` is None where ``stop_string`` ended the answer before the engine did."""
        tools = [tool for piece in call.pieces for tool in piece.tool_calls]
        refs = tuple(ev.ToolCallRef(tool_call=tool.id, tool=tool.name) for tool in tools)
        done = finished or ev.CallFinished(
            call=call.core_name,
            prompt_tokens=call.prompt_tokens,
            cached_tokens=call.cached_tokens,
            output_tokens=call.output_tokens,
        )
        if not self._host.post(msgspec.structs.replace(done, tool_calls=refs)):
            # The engine told of it what cannot be, and the core has not followed: it has to know of the end.
            self._host.post(ev.CallAborted(call=call.core_name, reason="the engine's account of it is wrong"))
        self._forget(call)
        call.tenancy.identities.answered(call.claim, "".join(piece.text for piece in call.pieces))
        cut = done.output_tokens >= call.prepared.sampling.max_output_tokens and finished is not None
        if call.prepared.recorded is not None:
            cut = call.prepared.recorded_cut or done.output_tokens < len(call.prepared.recorded)
        reason = "tool_calls" if tools else "length" if cut else "stop"
        usage = Usage(
            prompt_tokens=done.prompt_tokens,
            cached_tokens=done.cached_tokens,
            output_tokens=done.output_tokens,
        )
        call.ending = Ending(reason, usage, stop_string)
        call.notify()

    def _cancel(self, call: LiveCall, error: ApiError) -> None:
        # The books first: a task that is cancelled before its first step never runs any of its code.
        self._end_badly(call, error)
        if call.task is not None:
            call.task.cancel()

    def _end_badly(self, call: LiveCall, error: ApiError) -> None:
        if call.ended:
            return
        if call.ticket is not None:
            self._gate.leave(call.ticket)
        self._host.post(ev.CallAborted(call=call.core_name, reason=error.message))
        self._forget(call)
        call.tenancy.identities.given_up(call.claim)
        call.error = error
        call.notify()

    def _forget(self, call: LiveCall) -> None:
        self._live.pop((call.program, call.claim.digest), None)
        call.tenancy.live -= 1
