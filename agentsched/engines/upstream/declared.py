"""What an operator says of a server that the server does not tell of itself, behind a ``#`` of its URL:
``http://127.0.0.1:8000#priority,events=tcp://127.0.0.1:5557,replay=tcp://127.0.0.1:5558``.
"""

from __future__ import annotations

import msgspec


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """``priority``: it schedules by the priority of requests. ``events``, ``replay``: where it publishes what
    KV it stores and removes, and where it repeats that; ZMQ endpoints."""

    priority: bool = False
    events: str = ""
    replay: str = ""


def apart(url: str) -> tuple[str, Declared]:
    """The URL itself, and what is said behind it. Raises ``ValueError``."""
    bare, _, said = url.partition("#")
    found: dict[str, bool | str] = {}
    for word in filter(None, said.split(",")):
        name, equals, value = word.partition("=")
        if name == "priority" and not equals:
            found[name] = True
        elif name in ("events", "replay") and value.startswith(("tcp://", "ipc://")):
            found[name] = value
        else:
            raise ValueError(
                f"{word!r} means nothing behind the # of a server's URL; there are: priority, "
                "events=tcp://HOST:PORT, replay=tcp://HOST:PORT"
            )
    if "replay" in found and "events" not in found:
        raise ValueError("replay= is of use with events= only")
    return bare, msgspec.convert(found, Declared)
