"""Recorded agents: what they say at each turn, for runs that can be repeated exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec


class RecordedTurn(msgspec.Struct, frozen=True):
    """One answer of a recorded agent: what it thinks, and the command it gives to its tool."""

    thought: str
    command: str


Scripts = Mapping[str, Sequence[RecordedTurn]]


def load_scripts(folder: Path) -> dict[str, list[RecordedTurn]]:
    """Recorded agents from ``<folder>/<script>/turns.json``. Raises ``ValueError`` naming a bad file."""
    scripts: dict[str, list[RecordedTurn]] = {}
    for path in sorted(folder.glob("*/turns.json")):
        try:
            turns = msgspec.json.decode(path.read_bytes(), type=list[RecordedTurn])
        except msgspec.DecodeError as error:
            raise ValueError(f"{path}: {error}") from error
        if not turns:
            raise ValueError(f"{path}: no turns")
        scripts[path.parent.name] = turns
    return scripts
