"""What a client is told when its request fails; each API has its own way to say it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import msgspec

from agentsched.engines.contract import RequestRefused

_FIELD = re.compile(r"([a-z_]+(?:[\[.][a-z0-9_\].\[]*)?): ")
_MESSAGE = re.compile(r"^messages\[(\d+)\]")
_TOO_LONG = re.compile(r"context|no room")


class Fault(msgspec.Struct, frozen=True):
    """What went wrong, in the words of the OpenAI APIs."""

    message: str
    type: str
    param: str | None
    code: str | None


class Failure(msgspec.Struct, frozen=True):
    """The body of an answer that is an error."""

    error: Fault


class ApiError(Exception):
    """A request that ends with an error. ``kind`` and ``code`` are in the words of the OpenAI APIs;
    ``retry_after_s`` becomes the header ``Retry-After``."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.code = code
        self.retry_after_s = retry_after_s

    def headers(self) -> dict[str, str]:
        """Headers of the answer besides its type. ``Retry-After`` is in whole seconds, at least 1."""
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        if self.retry_after_s is None:
            return {}
        return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}


def bad_field(field: str, problem: str) -> ApiError:
    """400: one field of the request is at fault."""
    return ApiError(400, f"{field}: {problem}", param=field)


def invalid_json(error: Exception) -> ApiError:
    """400: the body is none that could be read."""
    return ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json")


def overloaded(message: str, retry_after_s: float) -> ApiError:
    """429: nothing is wrong with the request; come back later."""
    return ApiError(
        429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after_s=retry_after_s
    )


def engine_gone(message: str, retry_after_s: float = 2.0) -> ApiError:
    """503: the engine cannot answer now."""
    return ApiError(503, message, kind="server_error", code="engine_unavailable", retry_after_s=retry_after_s)


def refused(error: RequestRefused, fields: Sequence[str] = ()) -> ApiError:
    """What a frontend or an engine refused. Their messages start with the field, where there is one;
    ``fields`` are the client's names for what they call ``messages[0]`` and so on."""
    message = str(error)
    if fields:
        message = _MESSAGE.sub(lambda found: fields[int(found.group(1))], message)
    found = _FIELD.match(message)
    param = found.group(1) if found else None
    if param == "model":
        return ApiError(404, message, param="model", code="model_not_found")
    if param in (None, "messages") and _TOO_LONG.search(message):
        # Agents retry a 400 that they do not know, and know this one by the first words.
        message = f"This model's maximum context length is exceeded. {message}"
        return ApiError(400, message, param=param or "messages", code="context_length_exceeded")
    return ApiError(400, message, param=param)
