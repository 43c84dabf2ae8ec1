"""What the daemon holds for one tenant, and for no other.

Everything by which calls are recognised is a tenant's own: names, conversations, ids of tool calls,
spellings. So no tenant's words can lead to another one's program. Inside the daemon and in the core a
program's name begins with its tenant (``//acme/NAME``), except for the tenant of a daemon without keys;
clients never see that, and can state no name that begins so.
"""

from __future__ import annotations

from collections.abc import Callable

from agentsched.daemon.accounts import DEFAULT, Accounts, Tenant
from agentsched.daemon.asked import AskedTools
from agentsched.daemon.care import Spellings
from agentsched.daemon.errors import overloaded
from agentsched.daemon.identity import Identities
from agentsched.daemon.limits import Bucket
from agentsched.daemon.signals import RESERVED

BUSY_RETRY_AFTER_S = 1.0
"""Nobody knows when a call of the tenant ends; client libraries wait longer each time by themselves."""


def scope_of(tenant: str) -> str:
    """What all names of a tenant's programs begin with in the daemon."""
    return "" if tenant == DEFAULT else f"{RESERVED}{tenant}/"


class Tenancy:
    """One tenant's. ``live`` counts its calls."""

    def __init__(self, name: str, accounts: Accounts, make_identities: Callable[[str], Identities]) -> None:
        self.name = name
        self._accounts = accounts
        self._scope = scope_of(name)
        self._bucket: Bucket | None = None
        self.identities = make_identities(self._scope)
        self.spellings = Spellings()
        self.asked = AskedTools()
        self.live = 0

    @property
    def tenant(self) -> Tenant:
        """As it is now."""
        return self._accounts.tenant(self.name)

    def inside(self, program: str) -> str:
        """What a program (or a host of tools) of the tenant's is called in the daemon."""
        return self._scope + program

    def outside(self, program: str) -> str:
        """What the tenant calls it."""
        return program.removeprefix(self._scope)

    def charge(self, now: float) -> None:
        """One request comes. Raises ``ApiError`` (429) if it comes too soon."""
        per_minute = self.tenant.requests_per_minute
        if per_minute is None:
            self._bucket = None
            return
        if self._bucket is None or self._bucket.per_minute != per_minute:
            self._bucket = Bucket(per_minute, now)
        if wait_s := self._bucket.take(now):
            raise overloaded(f"more than the {per_minute:g} requests a minute that {self.name} has", wait_s)

    def refund(self) -> None:
        """The request was no call of its own."""
        if self._bucket is not None:
            self._bucket.give_back()

    def check_busy(self) -> None:
        """Raises ``ApiError`` (429) if no further call of the tenant may be live."""
        most = self.tenant.concurrent_calls
        if most is not None and self.live >= most:
            raise overloaded(f"{self.name} has {most} calls at once, and no more", BUSY_RETRY_AFTER_S)


class Tenancies:
    """Those of all tenants, made when they are first needed. Whoever keeps what identities know sets
    ``made``, called with each new one, and ``forgotten``."""

    def __init__(self, accounts: Accounts, make_identities: Callable[[str], Identities]) -> None:
        self.made: Callable[[str, Identities], None] = lambda name, identities: None
        self.forgotten: Callable[[str], None] = lambda name: None
        self._accounts = accounts
        self._make_identities = make_identities
        self._known: dict[str, Tenancy] = {}

    def of(self, name: str) -> Tenancy:
        """Raises ``ApiError`` (404) for a tenant that there is not."""
        known = self._known.get(name)
        if known is None or name not in self._accounts:
            self._accounts.tenant(name)
            known = self._known[name] = Tenancy(name, self._accounts, self._make_identities)
            self.made(name, known.identities)
        return known

    def forget(self, name: str) -> None:
        """The tenant was deleted. Whoever gets its name finds nothing of it."""
        self._known.pop(name, None)
        self.forgotten(name)
