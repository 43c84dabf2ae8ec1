"""Reading request bodies: JSON into checked values, with errors that name the field."""

from __future__ import annotations

import functools
import json
import logging
import math
import re
from typing import Annotated, Any

import msgspec

from agentsched.daemon.errors import ApiError, bad_field
from agentsched.daemon.signals import MOST_CHARS, RESERVED, usable

_log = logging.getLogger(__name__)

_PATH = re.compile(r" - at `\$\.?(.*?)`$")
_MISSING = re.compile(r"Object missing required field `(.*?)`")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`")


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"number out of range: {text}")
    return int(number) if number.is_integer() else number


_ANY = msgspec.json.Decoder()
WHOLE_FLOATS_ARE_INTEGERS = msgspec.json.Decoder(float_hook=_number)
"""As in JSON Schema, to which 3.0 is an integer."""

Limit = Annotated[int, msgspec.Meta(ge=1)]
_SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
)


class Sampled(msgspec.Struct, kw_only=True):
    """What all APIs say of sampling and streaming in the same words."""

    model: str
    temperature: Annotated[float, msgspec.Meta(ge=0)] | None = None
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stream: bool | None = None
    program_id: str | None = None

    def sampling(self) -> dict[str, Any]:
        """As fields of a ``ChatRequest``; engines check the ranges of those that have none here."""
        said = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        return {"model": self.model} | said


def decode_object(data: bytes, decoder: msgspec.json.Decoder[Any] = _ANY) -> dict[str, Any]:
    """The JSON object that a body is. Raises ``ApiError`` (400)."""
    try:
        raw = decoder.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(raw, dict):
        raise ApiError(400, "the body must be a JSON object")
    return raw


def convert(raw: Any, kind: type[Any], prefix: str = "", *, strict: bool = True) -> Any:
    """``raw`` as a value of ``kind``; numbers may be texts unless ``strict``. Raises ``ApiError`` (400)
    naming the field below ``prefix``."""
    try:
        return msgspec.convert(raw, kind, strict=strict)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _PATH.search(message)
        missing, unknown = _MISSING.match(message), _UNKNOWN.match(message)
        path = ".".join(part.group(1) for part in (found, missing, unknown) if part)
        field = f"{prefix}.{path}".strip(".") if prefix else path
        problem = "is missing" if missing else "is not known" if unknown else _PATH.sub("", message)
        raise bad_field(field, problem) if field else ApiError(400, problem) from None


def check_program(name: str, field: str) -> None:
    """Raises ``ApiError`` (400) for what no program can be called."""
    if not usable(name):
        raise bad_field(
            field, f"must be 1 to {MOST_CHARS} printable characters, and not begin with {RESERVED}"
        )


def refuse(raw: dict[str, Any], unserved: dict[str, str]) -> None:
    """Accepting these fields and not doing them would be a silent lie. Raises ``ApiError`` (400)."""
    for field, problem in unserved.items():
        if raw.get(field):
            raise bad_field(field, problem)


@functools.cache
def warn_once(text: str) -> None:
    """Say what is accepted though it is not done: clients send it whether they need it or not."""
    _log.warning("%s", text)


def formatted(kind: Any, schema: Any) -> dict[str, Any] | None:
    """A format of output as engines are told of it; None for plain text."""
    return {"type": "json_schema", "json_schema": {"schema": schema}} if kind == "json_schema" else None


def texts(strings: str | list[str] | None) -> tuple[str, ...]:
    """One or more strings; empty ones mean nothing."""
    found = [strings] if isinstance(strings, str) else strings or []
    return tuple(text for text in found if text)


def function(name: str, description: str | None, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """A tool in the form that engines are told of it."""
    told: dict[str, Any] = {"name": name}
    if description:
        told["description"] = description
    return {"type": "function", "function": told | {"parameters": parameters or {"type": "object"}}}


def called(identifier: str, name: str, arguments: Any) -> dict[str, Any]:
    """A tool call in an assistant's message, in the form that engines are told of it."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": text}}
