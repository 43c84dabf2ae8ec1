"""What each tenant used, but for tokens and finished calls, which count when they are delivered
(``Accounts.served``): a watcher of the same events that the core handles."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from agentsched.core import decisions as de
from agentsched.core import events as ev


class Charges(msgspec.Struct, kw_only=True):
    """Of one tenant, since it exists. A retry that attached to a live call is no call of its own.

    ``kv_token_s``: tokens held on the device times seconds, by the engines' reports; what two programs
    share counts for both. ``slo_met`` and ``slo_missed``: finished calls by whether the first token came
    in time, where the tenant has such an objective.
    """

    calls_finished: int = 0
    calls_aborted: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    kv_token_s: float = 0.0
    slo_met: int = 0
    slo_missed: int = 0


DELIVERED = ("calls_finished", "prompt_tokens", "cached_tokens", "output_tokens")
"""What counts once an answer is on its way to a client."""


class _Call(msgspec.Struct):
    tenant: str
    arrived_s: float
    first_token_s: float | None = None


class ChargesMeter:
    """Adds up. ``charges`` gives the tenant's account, ``slo_ttft_s`` what it was promised."""

    def __init__(self, charges: Callable[[str], Charges], slo_ttft_s: Callable[[str], float | None]) -> None:
        self._charges = charges
        self._slo_ttft_s = slo_ttft_s
        self._tenants: dict[str, str] = {}  # open program -> tenant
        self._calls: dict[str, _Call] = {}
        self._held: dict[str, int] = {}  # program -> tokens on a device
        self._held_tokens: dict[str, int] = {}  # tenant -> the sum of these
        self._settled_s: dict[str, float] = {}

    def observe(self, now: float, event: ev.AnyEvent, decided: Iterable[de.AnyDecision]) -> None:
        """Follow one event that the core has handled."""
        match event:
            case ev.CallStarted():
                pass
            case ev.CallArrived():
                self._calls[event.call] = _Call(self._tenants[event.program], now)
            case ev.FirstToken():
                call = self._calls[event.call]
                call.first_token_s = call.first_token_s or now
            case ev.CallFinished():
                self._finish(now, event)
            case ev.CallAborted():
                self._charges(self._calls.pop(event.call).tenant).calls_aborted += 1
            case ev.ProgramOpened():
                self._tenants[event.program] = event.tenant
            case ev.ProgramClosed():
                self._hold(now, event.program, 0)
                self._tenants.pop(event.program, None)
            case ev.StepReport():
                if event.snapshot:
                    for program in list(self._held):
                        self._hold(now, program, 0)
                for held in event.held:
                    self._hold(now, held.program, held.device_tokens)
            case ev.EngineLost():
                for program in list(self._held):
                    self._hold(now, program, 0)
            case _:
                pass

    def settle(self, now: float) -> None:
        """Count what is held until now."""
        for tenant in list(self._held_tokens):
            self._settle(now, tenant)

    def forget(self, tenant: str) -> None:
        """The tenant was deleted, and has no programs any more."""
        self._held_tokens.pop(tenant, None)
        self._settled_s.pop(tenant, None)

    def _finish(self, now: float, event: ev.CallFinished) -> None:
        call = self._calls.pop(event.call)
        promised_s = self._slo_ttft_s(call.tenant)
        if promised_s is not None:
            charges = self._charges(call.tenant)
            took_s = (call.first_token_s or now) - call.arrived_s
            charges.slo_met += took_s <= promised_s
            charges.slo_missed += took_s > promised_s

    def _hold(self, now: float, program: str, tokens: int) -> None:
        tenant = self._tenants.get(program)
        if tenant is None:
            return  # it has ended: what is left of it is cache that nobody pays for
        self._settle(now, tenant)
        self._held_tokens[tenant] += tokens - self._held.pop(program, 0)
        if tokens:
            self._held[program] = tokens

    def _settle(self, now: float, tenant: str) -> None:
        held_tokens = self._held_tokens.setdefault(tenant, 0)
        self._charges(tenant).kv_token_s += held_tokens * (now - self._settled_s.get(tenant, now))
        self._settled_s[tenant] = now
