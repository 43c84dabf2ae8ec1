"""What the daemon says of itself: health, readiness, metrics, and the document of its endpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import msgspec
from prometheus_client import CONTENT_TYPE_LATEST

from agentsched.daemon.access import METRICS_PATH
from agentsched.daemon.calls import Calls
from agentsched.daemon.errors import ApiError
from agentsched.daemon.host import Host
from agentsched.daemon.metrics import Metrics
from agentsched.daemon.operations import Answer, Asked, Operation

ENGINES_PATH = "/agentsched/admin/engines"


class Health(msgspec.Struct, kw_only=True):
    """Whether an engine is attached."""

    status: Literal["ok", "no engine"]
    engines: list[str]


class Ready(msgspec.Struct, kw_only=True):
    """``ready``, or why no calls are taken."""

    status: str


class EngineLack(msgspec.Struct, kw_only=True):
    """What of the scheduling an engine has no part in, and how that could be had."""

    what: str
    remedy: str


class EngineShown(msgspec.Struct, kw_only=True):
    """An attached engine, and what programs get of it. ``level``: ``retention``, ``soft`` or ``order``."""

    engine: str
    kind: str
    capacity_tokens: int
    level: str
    does: list[str]
    lacks: list[EngineLack]


class EnginesShown(msgspec.Struct, kw_only=True):
    """All attached engines, by name."""

    engines: list[EngineShown]


class StatusApi:
    """The operations. ``document`` gives the OpenAPI document."""

    def __init__(
        self, calls: Calls, host: Host, metrics: Metrics, document: Callable[[], dict[str, Any]]
    ) -> None:
        self._calls = calls
        self._host = host
        self._metrics = metrics
        self._document = document

    def operations(self) -> list[Operation]:
        of_all = partial(Operation, method="GET", realm="open")
        return [
            of_all(
                path="/health",
                summary="Whether an engine is attached",
                run=self.health,
                answers={200: Health, 503: Health},
            ),
            of_all(
                path="/ready",
                summary="Whether calls are taken",
                run=self.ready,
                answers={200: Ready, 503: Ready},
            ),
            of_all(
                path="/openapi.json",
                summary="This document",
                run=self.openapi,
                answers={200: dict[str, Any]},
            ),
            Operation(
                method="GET",
                path=ENGINES_PATH,
                summary="The attached engines, and what service programs get of each",
                realm="admin",
                run=self.engines,
                answers={200: EnginesShown},
            ),
            Operation(
                method="GET",
                path=METRICS_PATH,
                summary="Metrics in the Prometheus text format",
                realm="admin",
                run=self.metrics,
                answers={200: str},
                media_type=CONTENT_TYPE_LATEST,
            ),
        ]

    def health(self, asked: Asked) -> Answer:
        engines = sorted(self._host.engines)
        health = Health(status="ok" if engines else "no engine", engines=engines)
        return Answer(health, status=200 if engines else 503)

    def ready(self, asked: Asked) -> Answer:
        """Not when it shuts down, nor without an engine."""
        unavailable = self._calls.unavailable
        if unavailable is None and not self._host.engines:
            unavailable = ApiError(503, "no engine")
        ready = Ready(status="ready" if unavailable is None else unavailable.message)
        return Answer(ready, status=200 if unavailable is None else 503)

    def engines(self, asked: Asked) -> Answer:
        shown = []
        for name, engine in sorted(self._host.engines.items()):
            can = engine.capabilities
            shown.append(
                EngineShown(
                    engine=name,
                    kind=can.kind,
                    capacity_tokens=can.capacity_tokens,
                    level=can.service.level,
                    does=list(can.service.does),
                    lacks=[EngineLack(what=lack.what, remedy=lack.remedy) for lack in can.service.lacks],
                )
            )
        return Answer(EnginesShown(engines=shown))

    def metrics(self, asked: Asked) -> Answer:
        return Answer(self._metrics.text())

    def openapi(self, asked: Asked) -> Answer:
        return Answer(self._document())
