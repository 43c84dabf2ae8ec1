"""Who may call, and on what terms: tenants and their keys.

What is ``Declared`` in the operator's file is changed there; the rest comes and goes by the admin
endpoints, and is what ``save`` gives to be kept. Without any key everybody on this machine is the tenant
``DEFAULT``. Once there is one, of a tenant or of an admin, nobody is served without a key. Raises
``ApiError`` for what cannot be done.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from agentsched.core.events import LEAST_WEIGHT, MOST_PRIORITY, MOST_WEIGHT
from agentsched.daemon.answers import Usage
from agentsched.daemon.charges import Charges
from agentsched.daemon.errors import ApiError
from agentsched.daemon.keys import HashedKey, hashed, key_id, matches, new_secret

DEFAULT = "default"
"""The tenant of all calls while there are no keys."""

ADMIN = ""
"""Whose keys open the admin endpoints: no tenant's."""

MOST_S = 1e9
Name = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9._-]*(?!\n)$", max_length=64)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=MOST_S)]
PerMinute = Annotated[float, msgspec.Meta(ge=1e-3, le=1e6)]
AtOnce = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Weight = Annotated[float, msgspec.Meta(ge=LEAST_WEIGHT, le=MOST_WEIGHT)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=MOST_PRIORITY)]
Label = Annotated[str, msgspec.Meta(max_length=200)]


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """On what terms a tenant is served. Weight and priority count for programs that begin from now on.

    ``weight`` is its share against tenants of the same ``priority``, of which higher ones go first.
    ``deadline_s`` is that of programs that state none. ``slo_ttft_s``: within how many seconds its calls
    shall have their first token, which is counted and no more. ``requests_per_minute`` (so many at once,
    too) and ``concurrent_calls`` answer 429 beyond. None: no limit.
    """

    weight: Weight = 1.0
    priority: Priority = 0
    deadline_s: Seconds | None = None
    slo_ttft_s: Seconds | None = None
    requests_per_minute: PerMinute | None = None
    concurrent_calls: AtOnce | None = None

    def stated(self) -> dict[str, Any]:
        """The terms alone, by name, whatever else a subclass has."""
        return {name: getattr(self, name) for name in Terms.__struct_fields__}


class Tenant(Terms, frozen=True, kw_only=True):
    """One tenant. ``salt`` names whose KV its calls may find, and is another one when a deleted tenant's
    name is given again."""

    name: Name
    salt: str


class Key(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is kept. ``tenant`` is ``ADMIN`` for a key of the admin endpoints."""

    tenant: str
    hash: HashedKey
    label: str = ""
    created_unix_s: float = 0.0

    @property
    def id(self) -> str:
        return key_id(self.hash)


class DeclaredTenant(Terms, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant in the operator's file."""

    name: Name
    keys: list[HashedKey] = []


class SharedPrefix(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The beginning of prompts that is no secret: KV of it is shared by all tenants. ``tools`` are in the
    OpenAI form, where a template puts tools before the system prompt."""

    system: str
    tools: list[dict[str, Any]] = []


class Declared(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The operator's file of tenants."""

    admin_keys: list[HashedKey] = []
    tenants: list[DeclaredTenant] = []
    shared_prefixes: list[SharedPrefix] = []


class Saved(msgspec.Struct, kw_only=True):
    """What of all this has to survive the daemon, beside what each tenant is charged."""

    tenants: list[Tenant] = []
    keys: list[Key] = []


def read_declared(path: Path) -> Declared:
    """The tenants' file. Raises ``OSError``, and ``ValueError`` that names file and field."""
    try:
        declared = msgspec.toml.decode(path.read_bytes(), type=Declared)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    names = [tenant.name for tenant in declared.tenants]
    keys = [*declared.admin_keys, *(key for tenant in declared.tenants for key in tenant.keys)]
    for what, values in (("tenant", names), ("key", keys)):
        if twice := next((value for value in values if values.count(value) > 1), None):
            raise ValueError(f"{path}: the {what} {twice} is there twice")
    return declared


class Accounts:
    """All tenants and keys. Whoever keeps them sets ``changed``, called after each change of what ``save``
    gives, and ``charged``, after each of a tenant's charges (None: there are none any more)."""

    def __init__(self) -> None:
        self.changed: Callable[[], None] = lambda: None
        self.charged: Callable[[str, Charges | None], None] = lambda tenant, charges: None
        self._made = {DEFAULT: Tenant(name=DEFAULT, salt=DEFAULT)}
        self._made_keys: dict[str, Key] = {}
        self._declared: dict[str, Tenant] = {}
        self._declared_keys: dict[str, Key] = {}
        self._keys: dict[str, Key] = {}
        self._charges: dict[str, Charges] = {}

    def restore(self, saved: Saved, charges: Mapping[str, Charges]) -> None:
        """What an earlier daemon knew."""
        self._made |= {tenant.name: tenant for tenant in saved.tenants}
        self._made_keys |= {key.id: key for key in saved.keys}
        self._charges |= charges
        self._count_keys()

    def declare(self, declared: Declared) -> None:
        """What the operator's file says now. A tenant of the same name that was made otherwise gives way, and
        its keys with it."""
        self._declared = {
            each.name: Tenant(name=each.name, salt=each.name, **each.stated()) for each in declared.tenants
        }
        keys = [Key(tenant=ADMIN, hash=hash_, label="declared") for hash_ in declared.admin_keys]
        for each in declared.tenants:
            keys += [Key(tenant=each.name, hash=hash_, label="declared") for hash_ in each.keys]
        self._declared_keys = {key.id: key for key in keys}
        self._count_keys()

    def save(self) -> Saved:
        """All but what is declared."""
        return Saved(
            tenants=list(self._made.values()),
            keys=list(self._made_keys.values()),
        )

    # Who calls

    @property
    def locked(self) -> bool:
        """Whether there is any key, so that nobody is served without one."""
        return bool(self._keys)

    def known(self, secret: str) -> Key | None:
        """The key that this is, if it is one."""
        hash_ = hashed(secret)
        # Found by a part of the hash, of which nobody can choose any; the rest tells nothing by its time.
        key = self._keys.get(key_id(hash_))
        return key if key is not None and matches(hash_, key.hash) else None

    # Tenants

    def __contains__(self, name: object) -> bool:
        return name in self._declared or name in self._made

    def tenants(self) -> list[Tenant]:
        """All of them, by name."""
        return [tenant for _, tenant in sorted((self._made | self._declared).items())]

    def tenant(self, name: str) -> Tenant:
        """The tenant as it is now."""
        found = self._declared.get(name) or self._made.get(name)
        if found is None:
            raise ApiError(404, f"there is no tenant {name!r}", code="tenant_not_found")
        return found

    def create(self, name: str, terms: dict[str, Any]) -> Tenant:
        if name in self:
            raise ApiError(409, f"there is a tenant {name!r} already", param="name", code="tenant_exists")
        tenant = Tenant(name=name, salt=f"{name}#{secrets.token_hex(8)}", **terms)
        self._made[name] = tenant
        self.changed()
        return tenant

    def update(self, name: str, terms: dict[str, Any]) -> Tenant:
        tenant = msgspec.structs.replace(self._changeable(name), **terms)
        self._made[name] = tenant
        self.changed()
        return tenant

    def delete(self, name: str) -> None:
        """The tenant and its keys."""
        self.check_deletable(name)
        del self._made[name]
        self._made_keys = {i: key for i, key in self._made_keys.items() if key.tenant != name}
        self._charges.pop(name, None)
        self.charged(name, None)
        self._count_keys()
        self.changed()

    def check_deletable(self, name: str) -> None:
        """Raises ``ApiError`` if the tenant cannot go."""
        self._changeable(name)
        if name == DEFAULT:
            raise ApiError(409, f"the tenant {DEFAULT!r} is always there", code="tenant_in_use")

    def _changeable(self, name: str) -> Tenant:
        tenant = self.tenant(name)
        if name in self._declared:
            raise ApiError(
                409, f"the tenant {name!r} is declared in the tenants' file: change it there", code="declared"
            )
        return tenant

    # Keys

    def keys(self, tenant: str) -> list[Key]:
        """The keys of a tenant, or of the admin."""
        return [key for key in self._keys.values() if key.tenant == tenant]

    def add_key(self, tenant: str, label: str = "") -> tuple[str, Key]:
        """A new key and how it is kept. The key itself can never be told again."""
        if tenant != ADMIN:
            self._changeable(tenant)
            if not self.keys(ADMIN):
                raise ApiError(
                    409,
                    "with the first key nobody is served without one: make an admin key before a tenant's "
                    "(POST /agentsched/admin/keys, or `agentsched key new --admin` and --tenants)",
                    code="admin_key_needed",
                )
        secret = new_secret()
        key = Key(tenant=tenant, hash=hashed(secret), label=label, created_unix_s=time.time())
        self._made_keys[key.id] = key
        self._count_keys()
        self.changed()
        return secret, key

    def remove_key(self, tenant: str, identifier: str) -> None:
        key = next((key for key in self.keys(tenant) if key.id == identifier), None)
        if key is None:
            raise ApiError(404, f"there is no key {identifier!r} here", code="key_not_found")
        if identifier in self._declared_keys:
            raise ApiError(409, "the key is declared in the tenants' file: remove it there", code="declared")
        if tenant == ADMIN and len(self.keys(ADMIN)) == 1:
            raise ApiError(
                409, "it is the last admin key: make another one before it goes", code="last_admin_key"
            )
        del self._made_keys[identifier]
        self._count_keys()
        self.changed()

    def _count_keys(self) -> None:
        made = {i: key for i, key in self._made_keys.items() if key.tenant not in self._declared}
        self._keys = made | self._declared_keys

    # Charges

    def charges(self, tenant: str) -> Charges:
        """The tenant's account, to be added to."""
        charges = self._charges.get(tenant)
        if charges is None:
            charges = self._charges[tenant] = Charges()
        return charges

    def served(self, tenant: str, usage: Usage) -> None:
        """A call of the tenant was answered. It counts once its answer is on its way to a client: so a call
        whose answer was lost with the daemon, and which is computed again, counts once."""
        charges = self.charges(tenant)
        charges.calls_finished += 1
        charges.prompt_tokens += usage.prompt_tokens
        charges.cached_tokens += usage.cached_tokens
        charges.output_tokens += usage.output_tokens
        self.charged(tenant, charges)

    def slo_ttft_s(self, tenant: str) -> float | None:
        """What the tenant is promised; None for one that was deleted meanwhile."""
        found = self._declared.get(tenant) or self._made.get(tenant)
        return None if found is None else found.slo_ttft_s
