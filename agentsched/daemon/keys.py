"""API keys: how they are made, kept and compared.

A key is 256 random bits, so nobody can find it by trying, and one SHA-256 of it is as good a thing to
keep as a slow password hash, which is there for secrets that people choose. Only the hash is kept; the
key itself is told once, when it is made.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Annotated

import msgspec

_PREFIX = "ask-"
_ID_CHARS = 12

HashedKey = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^sha256:[0-9a-f]{64}(?!\n)$",
        description="What `agentsched key new` prints for the tenants' file: never the key itself.",
    ),
]


def new_secret() -> str:
    """A key that nobody has."""
    return _PREFIX + secrets.token_urlsafe(32)


def hashed(secret: str) -> str:
    """What is kept of a key."""
    return "sha256:" + hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def key_id(hash_: str) -> str:
    """What a key is called in lists. It follows from the hash, and leads nobody back to the key."""
    return hash_.removeprefix("sha256:")[:_ID_CHARS]


def matches(hash_: str, kept: str) -> bool:
    """Whether two hashes are equal, in a time that does not depend on where they differ."""
    return hmac.compare_digest(hash_, kept)
