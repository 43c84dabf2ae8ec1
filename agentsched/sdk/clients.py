"""OpenAI clients that say which program each call belongs to."""

from __future__ import annotations

from typing import Any, TypeVar

from agentsched.sdk.programs import headers

Client = TypeVar("Client")


def _stamp(request: Any) -> None:
    request.headers.update(headers())


async def _stamp_async(request: Any) -> None:
    _stamp(request)


def instrument(client: Client) -> Client:
    """Make an ``OpenAI`` or ``AsyncOpenAI`` client send the running program's id; returns it.

    The id is looked up at each request, so one client may serve any number of programs at once.
    Copies made by ``with_options`` are covered as well. Doing it twice changes nothing.

    Raises ``TypeError`` for any other client; merge ``headers()`` into its requests instead.
    """
    # Default headers are fixed when a client is made; only httpx's request hook runs at each call.
    http = getattr(client, "_client", None)
    hooks = getattr(http, "event_hooks", None)
    if http is None or not isinstance(hooks, dict):
        raise TypeError(
            f"{type(client).__name__} is no OpenAI client on httpx; pass agentsched.sdk.headers() "
            "as extra headers of each request instead"
        )
    asynchronous = hasattr(http, "aclose")
    hook = _stamp_async if asynchronous else _stamp
    wanted = list(hooks.get("request", []))
    if hook not in wanted:
        http.event_hooks = {**hooks, "request": [*wanted, hook]}
    return client
