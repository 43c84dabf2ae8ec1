"""How unmodified agents are told where the daemon is, and who they are: pure logic.

The name goes into the path of the base URL (``/program/NAME``), which every client carries along. It names
a run: clients that say more of themselves (sessions, sub-agents) stay apart within it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from urllib.parse import quote

_PROVIDER = "agentsched"


def base_url(daemon: str, program: str) -> str:
    """What stands before ``/v1`` for this program."""
    return f"{daemon.rstrip('/')}/program/{quote(program, safe='')}"


def environment(daemon: str, program: str, key: str | None, present: Mapping[str, str]) -> dict[str, str]:
    """Variables that clients read, to be set beside those that are ``present``. ``key``: the tenant's.
    Without one, a word where there is none at all: clients do not start otherwise, and a daemon without
    keys does not look at it."""
    base = base_url(daemon, program)
    urls = {
        "ANTHROPIC_BASE_URL": base,
        "OPENAI_BASE_URL": f"{base}/v1",
        "OPENAI_API_BASE": f"{base}/v1",
        "AGENTSCHED_URL": daemon,
    }
    if key:
        return urls | {"ANTHROPIC_API_KEY": key, "OPENAI_API_KEY": key}
    if not any(present.get(name) for name in ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")):
        urls["ANTHROPIC_API_KEY"] = "none"
    return urls | ({} if present.get("OPENAI_API_KEY") else {"OPENAI_API_KEY": "none"})


def arguments(argv: Sequence[str], daemon: str, program: str) -> list[str]:
    """The command with what a client can be told by options only. Codex reads its server from its
    configuration, of which ``-c`` sets values; one that names a provider itself is left alone."""
    if os.path.basename(argv[0]) != "codex" or any("model_provider" in word for word in argv[1:]):
        return list(argv)
    provider = f"model_providers.{_PROVIDER}"
    settings = {
        "model_provider": _PROVIDER,
        f"{provider}.name": _PROVIDER,
        f"{provider}.base_url": f"{base_url(daemon, program)}/v1",
        f"{provider}.wire_api": "responses",
        f"{provider}.env_key": "OPENAI_API_KEY",
    }
    options = [word for name, value in settings.items() for word in ("-c", f'{name}="{value}"')]
    return [argv[0], *options, *argv[1:]]
