"""What tenants were served: calls and tokens, since the state began.

A call counts once its answer is on its way to a client. So a call whose answer was lost with the daemon,
and which is computed again, counts once; what was on its way in the last moment before that may not
count at all (``state.writer.FLUSH_S``). Never is anything counted twice.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agentsched.daemon.answers import Usage


class Account(msgspec.Struct, omit_defaults=True):
    """One tenant's totals."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0


class Accounts:
    """All tenants'. Whoever keeps them sets ``changed``, and hears of each that changes."""

    def __init__(self) -> None:
        self.by_tenant: dict[str, Account] = {}
        self.changed: Callable[[str, Account], None] | None = None

    def served(self, tenant: str, usage: Usage) -> None:
        """A call of the tenant was answered."""
        account = self.by_tenant.setdefault(tenant, Account())
        account.calls += 1
        account.prompt_tokens += usage.prompt_tokens
        account.cached_tokens += usage.cached_tokens
        account.output_tokens += usage.output_tokens
        if self.changed is not None:
            self.changed(tenant, account)
