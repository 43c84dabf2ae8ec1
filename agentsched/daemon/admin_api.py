"""``/agentsched/admin``: tenants and keys, for who has an admin's key."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import msgspec
from msgspec import UNSET, UnsetType

from agentsched.daemon.access import ADMIN_PATH
from agentsched.daemon.accounts import (
    ADMIN,
    Accounts,
    AtOnce,
    Key,
    Label,
    Name,
    PerMinute,
    Priority,
    Seconds,
    Terms,
    Weight,
)
from agentsched.daemon.calls import Calls
from agentsched.daemon.charges import ChargesMeter
from agentsched.daemon.operations import Answer, Asked, Operation
from agentsched.daemon.programs import Programs
from agentsched.daemon.programs_api import Account, ProgramsApi
from agentsched.daemon.tenancy import Tenancies


class NewTenant(Terms, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A tenant to be."""

    name: Name


class ChangedTerms(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What shall be different; null takes a limit or a default away."""

    weight: Weight | UnsetType = UNSET
    priority: Priority | UnsetType = UNSET
    deadline_s: Seconds | UnsetType | None = UNSET
    slo_ttft_s: Seconds | UnsetType | None = UNSET
    requests_per_minute: PerMinute | UnsetType | None = UNSET
    concurrent_calls: AtOnce | UnsetType | None = UNSET


class KeyInfo(msgspec.Struct, kw_only=True):
    """A key, without what would open anything."""

    id: str
    label: str
    created_unix_s: float


class TenantInfo(msgspec.Struct, kw_only=True):
    """A tenant as admins see it."""

    account: Account
    keys: list[KeyInfo]


class TenantList(msgspec.Struct, kw_only=True):
    """All tenants, by name."""

    tenants: list[TenantInfo]


class NewKey(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A key to be; ``label`` is for people."""

    label: Label = ""


class MadeKey(msgspec.Struct, kw_only=True):
    """A new key. ``key`` is told here and never again."""

    id: str
    key: Annotated[
        str, msgspec.Meta(description="Send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'.")
    ]
    label: str


class KeyList(msgspec.Struct, kw_only=True):
    """Keys of the admin endpoints."""

    keys: list[KeyInfo]


class AdminApi:
    """The operations."""

    def __init__(
        self,
        accounts: Accounts,
        tenancies: Tenancies,
        calls: Calls,
        programs: Programs,
        meter: ChargesMeter,
        programs_api: ProgramsApi,
    ) -> None:
        self._accounts = accounts
        self._tenancies = tenancies
        self._calls = calls
        self._programs = programs
        self._meter = meter
        self._programs_api = programs_api

    def operations(self) -> list[Operation]:
        return [*self._of_tenants(), *self._of_keys()]

    def _of_tenants(self) -> list[Operation]:
        of_admin = partial(Operation, realm="admin")
        every, one = ADMIN_PATH + "/tenants", ADMIN_PATH + "/tenants/{tenant}"
        return [
            of_admin(
                method="GET", path=every, summary="List tenants", run=self.list, answers={200: TenantList}
            ),
            of_admin(
                method="POST",
                path=every,
                summary="Make a tenant",
                run=self.create,
                body=NewTenant,
                answers={201: TenantInfo},
                refusals=(409,),
            ),
            of_admin(
                method="GET",
                path=one,
                summary="Look at a tenant",
                run=self.show,
                answers={200: TenantInfo},
                refusals=(404,),
            ),
            of_admin(
                method="PATCH",
                path=one,
                summary="Change a tenant's terms",
                run=self.change,
                body=ChangedTerms,
                answers={200: TenantInfo},
                refusals=(404, 409),
            ),
            of_admin(
                method="DELETE",
                path=one,
                summary="Delete a tenant, its keys and its programs",
                run=self.delete,
                answers={204: None},
                refusals=(404, 409),
            ),
        ]

    def _of_keys(self) -> list[Operation]:
        of_admin = partial(Operation, realm="admin")
        tenants, admins = ADMIN_PATH + "/tenants/{tenant}/keys", ADMIN_PATH + "/keys"
        return [
            of_admin(
                method="POST",
                path=tenants,
                summary="Make a key of a tenant",
                run=self.add_key,
                body=NewKey,
                answers={201: MadeKey},
                refusals=(404, 409),
            ),
            of_admin(
                method="DELETE",
                path=tenants + "/{key}",
                summary="Remove a key of a tenant",
                run=self.remove_key,
                answers={204: None},
                refusals=(404, 409),
            ),
            of_admin(
                method="GET",
                path=admins,
                summary="List admin keys",
                run=self.list_admin_keys,
                answers={200: KeyList},
            ),
            of_admin(
                method="POST",
                path=admins,
                summary="Make an admin key",
                run=self.add_admin_key,
                body=NewKey,
                answers={201: MadeKey},
            ),
            of_admin(
                method="DELETE",
                path=admins + "/{key}",
                summary="Remove an admin key",
                run=self.remove_admin_key,
                answers={204: None},
                refusals=(404, 409),
            ),
        ]

    def list(self, asked: Asked) -> Answer:
        return Answer(TenantList(tenants=[self._info(tenant.name) for tenant in self._accounts.tenants()]))

    def create(self, asked: Asked) -> Answer:
        new: NewTenant = asked.body
        self._accounts.create(new.name, new.stated())
        return Answer(self._info(new.name), status=201)

    def show(self, asked: Asked) -> Answer:
        return Answer(self._info(asked.path["tenant"]))

    def change(self, asked: Asked) -> Answer:
        changed: ChangedTerms = asked.body
        terms = {name: value for name, value in msgspec.structs.asdict(changed).items() if value is not UNSET}
        self._accounts.update(asked.path["tenant"], terms)
        return Answer(self._info(asked.path["tenant"]))

    def delete(self, asked: Asked) -> Answer:
        name = asked.path["tenant"]
        self._accounts.check_deletable(name)
        for view in self._programs.of(name):
            self._calls.close_program(view.program)
        self._accounts.delete(name)
        self._tenancies.forget(name)
        self._meter.forget(name)
        return Answer(status=204)

    def add_key(self, asked: Asked) -> Answer:
        return self._made(asked.path["tenant"], asked.body)

    def remove_key(self, asked: Asked) -> Answer:
        self._accounts.tenant(asked.path["tenant"])
        self._accounts.remove_key(asked.path["tenant"], asked.path["key"])
        return Answer(status=204)

    def list_admin_keys(self, asked: Asked) -> Answer:
        return Answer(KeyList(keys=[_key_info(key) for key in self._accounts.keys(ADMIN)]))

    def add_admin_key(self, asked: Asked) -> Answer:
        return self._made(ADMIN, asked.body)

    def remove_admin_key(self, asked: Asked) -> Answer:
        self._accounts.remove_key(ADMIN, asked.path["key"])
        return Answer(status=204)

    def _made(self, tenant: str, new: NewKey) -> Answer:
        secret, key = self._accounts.add_key(tenant, new.label)
        return Answer(MadeKey(id=key.id, key=secret, label=key.label), status=201)

    def _info(self, name: str) -> TenantInfo:
        account = self._programs_api.account(self._tenancies.of(name))
        return TenantInfo(account=account, keys=[_key_info(key) for key in self._accounts.keys(name)])


def _key_info(key: Key) -> KeyInfo:
    return KeyInfo(id=key.id, label=key.label, created_unix_s=key.created_unix_s)
