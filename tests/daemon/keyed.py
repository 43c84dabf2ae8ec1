"""Daemons with tenants and keys, for tests."""

from __future__ import annotations

from typing import Any

from agentsched.daemon.accounts import Declared, DeclaredTenant, SharedPrefix
from agentsched.daemon.keys import hashed

ADMIN_KEY = "ask-the-admin"
ACME, BOLT = "ask-of-acme", "ask-of-bolt"


def two_tenants(prefixes: list[SharedPrefix] | None = None, **terms: Any) -> Declared:
    """``acme`` (on these terms) and ``bolt``, and an admin."""
    return Declared(
        admin_keys=[hashed(ADMIN_KEY)],
        tenants=[
            DeclaredTenant(name="acme", keys=[hashed(ACME)], **terms),
            DeclaredTenant(name="bolt", keys=[hashed(BOLT)]),
        ],
        shared_prefixes=prefixes or [],
    )


def admin_only() -> Declared:
    """Nobody but an admin, who makes all tenants."""
    return Declared(admin_keys=[hashed(ADMIN_KEY)])
