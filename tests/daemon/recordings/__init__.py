"""Requests of real clients, recorded from runs of our own and reduced by ``reduce.py``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

CLIENTS = ("claude-code", "codex", "frameworks")


def recorded(clients: str) -> list[dict[str, Any]]:
    """The requests of a file, in order."""
    lines = (Path(__file__).parent / f"{clients}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]
