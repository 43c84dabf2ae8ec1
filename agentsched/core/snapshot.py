"""A core as a value: everything that it knows, exactly, so that a core made from it goes on the same way.

A log begins with one (``log.py``), so each file of a rotated log replays by itself. It is exact where a
summary would not do: a policy's next decision may hang on a heap's order or a curve's age. So it is not
written by each policy for itself, which would be wrong as soon as somebody adds a field. This
walks the objects that a core is made of instead.

A value is itself if JSON has it (null, true, numbers, text); else an array that begins with what it is:

    ["float", "inf"]                        what JSON has no number for
    ["tuple", [...]], ["frozenset", [...]]  values in place
    ["record", "module:Class", [...]]       a named tuple
    ["enum", "module:Class", "MEMBER"]
    ["@", 7]                                the object of that number
    ["method", "name", value]               a method bound to an object

and an object, which may be known by several others, ["list" | "dict" | "Counter" | "set" | "deque" |
"module:Class", ...its parts]. Only classes of the core and its predictors are known, and none of their code
runs on the way back: a log from a stranger can give a core that decides nonsense, and nothing worse.

The form follows the code, so a snapshot is read by the version that wrote it, or one that is like it.
"""

from __future__ import annotations

import math
import sys
from collections import Counter, deque
from collections.abc import Iterator
from enum import Enum
from types import MethodType
from typing import Any

import msgspec

from agentsched.core.core import Core
from agentsched.core.policies import import_all

Value = None | bool | int | float | str | list[Any]

_OURS = ("agentsched.core.", "agentsched.graphs.")
_PLAIN = frozenset({type(None), bool, int, str})
_NUMBERS = frozenset({float, int, bool})
_DEQUE, _DICTS, _SETS = "deque", {"dict": dict, "Counter": Counter}, {"set": set, "list": list}


class SnapshotError(ValueError):
    """The snapshot is damaged, or of a version whose core is made in another way."""


class Snapshot(msgspec.Struct, frozen=True):
    """``objects[0]`` is the core."""

    objects: list[list[Any]]


def freeze(core: Core) -> Snapshot:
    """The core as a value that JSON can carry. Raises ``TypeError`` for what is not known here: a part of a
    policy that holds, say, a function."""
    frozen = _Freezer()
    frozen.value(core)
    frozen.run()
    return Snapshot(frozen.objects)


def thaw(snapshot: Snapshot) -> Core:
    """A core that goes on from there. Raises ``SnapshotError``."""
    import_all()  # nothing is imported because a snapshot names it
    try:
        core = _Thawer(snapshot.objects).run()
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise SnapshotError(f"the snapshot is of another version, or damaged: {error}") from error
    if not isinstance(core, Core):
        raise SnapshotError(f"the snapshot is of a {type(core).__name__}, not of a core")
    return core


class _Freezer:
    def __init__(self) -> None:
        self.objects: list[list[Any]] = []
        self._numbers: dict[int, int] = {}
        self._queue: list[Any] = []  # also keeps alive what is numbered by its id

    def run(self) -> None:
        """Objects wait in a queue, since a chain of them may be longer than Python's stack."""
        for number, thing in enumerate(self._queue):
            self.objects.append(self._parts(thing))
            assert len(self.objects) == number + 1

    def value(self, thing: Any) -> Value:
        kind = type(thing)
        if kind in _PLAIN:
            return thing  # type: ignore[no-any-return]
        if kind is float:
            return thing if math.isfinite(thing) else ["float", str(thing)]
        if kind is tuple:
            return ["tuple", [self.value(part) for part in thing]]
        if kind is frozenset:
            return ["frozenset", [self.value(part) for part in thing]]
        if kind is MethodType:
            return ["method", thing.__func__.__name__, self.value(thing.__self__)]
        if issubclass(kind, tuple):
            return ["record", _name(kind), [self.value(part) for part in thing]]
        if issubclass(kind, Enum):
            return ["enum", _name(kind), thing.name]
        if id(thing) not in self._numbers:
            self._numbers[id(thing)] = len(self._queue)
            self._queue.append(thing)
        return ["@", self._numbers[id(thing)]]

    def _parts(self, thing: Any) -> list[Any]:
        kind = type(thing)
        if kind in _DICTS.values():
            pairs = (part for pair in thing.items() for part in pair)
            return [kind.__name__, *map(self.value, pairs)]
        if kind in _SETS.values():
            return [kind.__name__, *self._all(thing)]
        if kind is deque:
            return [_DEQUE, thing.maxlen, *self._all(thing)]
        return [_name(kind), {slot: self.value(getattr(thing, slot)) for slot in _slots(thing)}]

    def _all(self, things: Any) -> list[Any]:
        """Long lists of numbers are most of what a core knows."""
        if {type(thing) for thing in things} <= _NUMBERS and all(map(math.isfinite, things)):
            return list(things)
        return [self.value(thing) for thing in things]


def _slots(thing: Any) -> Iterator[str]:
    """The attributes of an instance that are set, in the order of its classes."""
    for kind in type(thing).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            if slot not in ("__dict__", "__weakref__") and hasattr(thing, slot):
                yield slot
    yield from getattr(thing, "__dict__", ())


def _name(kind: type) -> str:
    if not kind.__module__.startswith(_OURS):
        raise TypeError(f"a core cannot be frozen that holds a {kind.__module__}.{kind.__qualname__}")
    return f"{kind.__module__}:{kind.__qualname__}"


def _named(name: str) -> Any:
    """The class of that name. The policies are imported with this module's own imports."""
    module, _, qualname = name.partition(":")
    found = vars(sys.modules[module]).get(qualname) if module.startswith(_OURS) else None
    if not isinstance(found, type):
        raise LookupError(f"there is no class {name}")
    return found


class _Thawer:
    def __init__(self, objects: list[list[Any]]) -> None:
        self._parts = objects
        self._made = [self._blank(parts) for parts in objects]

    def run(self) -> Any:
        for made, parts in zip(self._made, self._parts, strict=True):
            self._fill(made, parts)
        return self._made[0]

    def _blank(self, parts: list[Any]) -> Any:
        kind = parts[0]
        if kind in _DICTS or kind in _SETS:
            return (_DICTS | _SETS)[kind]()
        if kind == _DEQUE:
            return deque(maxlen=parts[1])
        return object.__new__(_named(kind))

    def _fill(self, made: Any, parts: list[Any]) -> None:
        kind = parts[0]
        if kind in _DICTS:
            values = map(self._value, parts[1:])
            for key, value in zip(values, values, strict=True):
                made[key] = value
        elif kind == "set":
            made.update(map(self._value, parts[1:]))
        elif kind == "list":
            made.extend(map(self._value, parts[1:]))
        elif kind == _DEQUE:
            made.extend(map(self._value, parts[2:]))
        else:
            for slot, value in parts[1].items():
                object.__setattr__(made, slot, self._value(value))

    def _value(self, value: Value) -> Any:
        if not isinstance(value, list):
            return value
        kind, *rest = value
        match kind:
            case "@":
                return self._made[rest[0]]
            case "float":
                return float(rest[0])
            case "tuple":
                return tuple(map(self._value, rest[0]))
            case "frozenset":
                return frozenset(map(self._value, rest[0]))
            case "record":
                return tuple.__new__(_named(rest[0]), map(self._value, rest[1]))
            case "enum":
                return _named(rest[0])[rest[1]]
            case "method":
                owner = self._value(rest[1])
                method = vars(type(owner))[rest[0]]
                return MethodType(method, owner)
            case _:
                raise ValueError(f"there is no kind of value {kind!r}")
