"""Who sends a request, by its key.

Everything but ``OPEN`` needs a tenant's key, the admin endpoints an admin's. While there are no keys at all,
everybody who reaches the daemon from this machine is the default tenant and an admin: it listens nowhere else
then. Web pages are the exception: a browser carries their requests here from anywhere, so that they may not
administrate.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from aiohttp import web

from agentsched.daemon.accounts import ADMIN, DEFAULT, Accounts, Key
from agentsched.daemon.errors import ApiError
from agentsched.daemon.tenancy import Tenancies, Tenancy

TENANCY = web.RequestKey("tenancy", Tenancy)


class Viewer(NamedTuple):
    """Who looks: a tenant, or, without one, somebody who may see all."""

    tenancy: Tenancy | None


VIEWER = web.RequestKey("viewer", Viewer)
ADMIN_PATH = "/agentsched/admin"
METRICS_PATH = "/metrics"
"""The load of all tenants: for admins."""
DASHBOARD_PATH = "/dashboard"
"""The page itself, which holds nothing of anybody's."""
VIEW_PATH = "/agentsched/v1/view"
"""What the page shows: to admins all, to tenants their own."""

OPEN = frozenset({"/", "/health", "/ready", "/openapi.json", DASHBOARD_PATH, DASHBOARD_PATH + "/{file}"})
_BEARER = "bearer "


class Access:
    """Lets requests in, or raises ``ApiError`` (401 or 403)."""

    def __init__(self, accounts: Accounts, tenancies: Tenancies) -> None:
        self._accounts = accounts
        self._tenancies = tenancies

    @property
    def locked(self) -> bool:
        """Whether nobody is served without a key."""
        return self._accounts.locked

    def admit(self, http: web.Request) -> None:
        """Check the key; ``http[TENANCY]`` is whose request it is, where it is a tenant's."""
        resource = http.match_info.route.resource
        path = http.path if resource is None else resource.canonical
        if path in OPEN:
            return
        if path == METRICS_PATH or path.startswith(ADMIN_PATH):
            self._admin(http)
        elif path.startswith(VIEW_PATH):
            http[VIEWER] = self._viewer(http)
        else:
            http[TENANCY] = self.tenancy(http.headers, _peer(http))

    def tenancy(self, headers: Mapping[str, str], peer: object) -> Tenancy:
        """Whose request it is that has these headers (names in any or in lower case) and comes from there."""
        return self._tenancies.of(self._tenant(headers, peer))

    def _tenant(self, headers: Mapping[str, str], peer: object) -> str:
        if not self._accounts.locked:
            _check_local(peer)
            return DEFAULT
        key = self._key(headers)
        if key.tenant == ADMIN:
            raise ApiError(
                403,
                "this is an admin's key: calls and programs need a tenant's",
                kind="permission_error",
                code="wrong_key",
            )
        return key.tenant

    def _admin(self, http: web.Request) -> None:
        if not self._accounts.locked:
            _check_local(_peer(http))
            if "Origin" in http.headers:
                raise ApiError(
                    403,
                    "web pages may not administrate a daemon without keys",
                    kind="permission_error",
                    code="from_a_browser",
                )
        elif self._key(http.headers).tenant != ADMIN:
            raise ApiError(403, "this needs an admin's key", kind="permission_error", code="wrong_key")

    def _viewer(self, http: web.Request) -> Viewer:
        if not self._accounts.locked:
            _check_local(_peer(http))
            _check_own_page(http)
            return Viewer(None)
        key = self._key(http.headers)
        return Viewer(None if key.tenant == ADMIN else self._tenancies.of(key.tenant))

    def _key(self, headers: Mapping[str, str]) -> Key:
        stated = _stated(headers)
        found = {key.tenant: key for secret in stated if (key := self._accounts.known(secret)) is not None}
        if len(found) == 1:
            return next(iter(found.values()))
        if found:
            raise _unauthorized("the two keys of this request are of two tenants: send one")
        how = "send one as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
        raise _unauthorized("the API key is not known here" if stated else f"an API key is needed: {how}")


def _check_own_page(http: web.Request) -> None:
    """Pages from elsewhere may not look, not even those whose own name leads to this machine."""
    name = http.url.host or "localhost"
    own = http.headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none")
    if not own or not (name == "localhost" or name.replace(".", "").isdigit() or ":" in name):
        raise ApiError(
            403,
            "without keys, the dashboard is shown to its own page alone: open it as "
            "http://127.0.0.1:PORT/dashboard or http://localhost:PORT/dashboard",
            kind="permission_error",
            code="from_a_browser",
        )


def _stated(headers: Mapping[str, str]) -> list[str]:
    authorization = headers.get("authorization", "")
    found = [headers.get("x-api-key", "")]
    if authorization[: len(_BEARER)].lower() == _BEARER:
        found.append(authorization[len(_BEARER) :].strip())
    return [secret for secret in found if secret]


def _unauthorized(message: str) -> ApiError:
    return ApiError(401, message, kind="authentication_error", code="invalid_api_key")


def others_reach(listening: socket.socket) -> bool:
    """Whether other machines can connect to it. Who may connect to a Unix socket is a matter of its mode."""
    return listening.family != socket.AF_UNIX and not _is_loopback(listening.getsockname()[0])


@lru_cache(1024)
def _is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address.split("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return found.is_loopback


def _peer(http: web.Request) -> object:
    return http.transport.get_extra_info("peername") if http.transport is not None else None


def _check_local(peer: object) -> None:
    """The last key of a daemon that listens beyond this machine may have gone from its file."""
    if isinstance(peer, tuple) and not _is_loopback(peer[0]):
        raise _unauthorized("there are no keys, so that only calls from the daemon's own machine are served")
