"""HTTP clients that say which program each call belongs to: those of OpenAI and Anthropic, all that is built
on them, and httpx itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from agentsched.sdk.programs import ANNOUNCED_WITHIN_S, current_program, headers

Client = TypeVar("Client")

# Where clients keep what they send by: Stainless's (OpenAI, Anthropic), langchain's models, smolagents'
# models.
_INNER = ("_client", "_async_client", "root_client", "root_async_client", "client")
_DEPTH = 3


def _stamp(request: Any) -> None:
    request.headers.update(headers())


async def _stamp_async(request: Any) -> None:
    running = current_program()
    if running is not None and running.announced is not None and not running.announced.is_set():
        import asyncio

        await asyncio.to_thread(running.announced.wait, ANNOUNCED_WITHIN_S)
    _stamp(request)


def instrument(client: Client) -> Client:
    """Make a client send the running program's id with each request; returns it.

    Takes clients of ``openai`` and ``anthropic``, ``httpx.Client`` and ``httpx.AsyncClient``, and what has
    one of these inside: models of langchain, smolagents and the OpenAI Agents SDK. The id is looked up at
    each request, so one client may serve any number of programs at once. Copies made by ``with_options`` are
    covered as well. Doing it twice changes nothing.

    Raises ``TypeError`` for any other client; merge ``headers()`` into its requests instead.
    """
    found = list(_http_clients(client, _DEPTH))
    if not found:
        raise TypeError(
            f"{type(client).__name__} has no client of httpx inside; pass agentsched.sdk.headers() "
            "as extra headers of each request instead"
        )
    for http in found:
        # Default headers are fixed when a client is made; only httpx's request hook runs at each call.
        hook = _stamp_async if hasattr(http, "aclose") else _stamp
        hooks = http.event_hooks
        wanted = list(hooks.get("request", []))
        if hook not in wanted:
            http.event_hooks = {**hooks, "request": [*wanted, hook]}
    return client


def _http_clients(client: Any, depth: int) -> Iterator[Any]:
    if isinstance(getattr(client, "event_hooks", None), dict):
        yield client
    elif depth:
        for name in _INNER:
            inner = getattr(client, name, None)
            if inner is not None:
                yield from _http_clients(inner, depth - 1)
