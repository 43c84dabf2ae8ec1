"""Traces by OpenTelemetry's conventions for generative AI: a program is a trace, calls and tools its spans.

``invoke_agent`` is the whole program, ``chat`` a call from its arrival to its end, ``execute_tool`` a tool
call whose start was told. What the core decided about a program stands as events on its span, with the
reason. A sub-agent's program hangs below that of its parent. Spans go out when they end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from agentsched import __version__
from agentsched.core import decisions as de
from agentsched.core import events as ev

NS = 1_000_000_000
SEND_S = 3.0
TOLD = (de.Admit, de.Pass, de.Pause, de.Reject)


def to_collector(url: str) -> SpanProcessor:
    """Sends ended spans to an OTLP/HTTP collector, from a thread of its own; what it cannot take is logged
    by the library and dropped."""
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{url.rstrip('/')}/v1/traces", timeout=SEND_S))


class Spans:
    """A watcher of events and decisions. ``model`` is the name under which calls ask for it."""

    def __init__(self, processor: SpanProcessor, model: str) -> None:
        resource = Resource.create({"service.name": "agentsched", "service.version": __version__})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(processor)
        self._tracer: Tracer = self._provider.get_tracer("agentsched", __version__)
        self._model = model
        self._origin_ns = time.time_ns() - int(time.monotonic() * NS)
        self._programs: dict[str, Span] = {}
        self._calls: dict[str, tuple[Span, float]] = {}
        self._tools: dict[tuple[str, str], Span] = {}

    def close(self) -> None:
        """End what is open, and send all that has ended; blocks until that is done or given up."""
        now = self._origin_ns + int(time.monotonic() * NS)
        for span in (*(span for span, _ in self._calls.values()), *self._tools.values()):
            span.end(now)
        for span in self._programs.values():
            span.end(now)
        self._provider.shutdown()

    def observe(self, now: float, event: ev.AnyEvent, decided: Sequence[de.AnyDecision]) -> None:
        at_ns = self._origin_ns + int(now * NS)
        self._follow(now, at_ns, event)
        for decision in decided:
            if isinstance(decision, TOLD) and (span := self._programs.get(decision.program)) is not None:
                name = f"agentsched.{type(decision).__name__.lower()}"
                span.add_event(name, {"agentsched.reason": decision.reason}, at_ns)

    def _follow(self, now: float, at_ns: int, event: ev.AnyEvent) -> None:
        match event:
            case ev.ProgramOpened():
                self._open(event, at_ns)
            case ev.CallArrived():
                self._arrive(event, now, at_ns)
            case ev.CallStarted() if event.call in self._calls:
                span, arrived_s = self._calls[event.call]
                span.set_attribute("agentsched.waited_seconds", now - arrived_s)
                span.add_event("agentsched.started", {}, at_ns)
            case ev.FirstToken() if event.call in self._calls:
                span, arrived_s = self._calls[event.call]
                span.set_attribute("gen_ai.response.time_to_first_chunk", now - arrived_s)
            case ev.CallFinished() if event.call in self._calls:
                self._finish(event, at_ns)
            case ev.CallAborted() if event.call in self._calls:
                span, _ = self._calls.pop(event.call)
                span.set_attribute("error.type", "aborted")
                span.set_status(Status(StatusCode.ERROR, event.reason))
                span.end(at_ns)
            case ev.ToolStarted():
                self._start_tool(event, at_ns)
            case ev.ToolFinished():
                self._finish_tool(event, at_ns)
            case ev.ProgramClosed():
                for key in [key for key in self._tools if key[0] == event.program]:
                    self._tools.pop(key).end(at_ns)
                if (program := self._programs.pop(event.program, None)) is not None:
                    program.end(at_ns)
            case _:
                pass

    def _open(self, event: ev.ProgramOpened, at_ns: int) -> None:
        self._programs[event.program] = self._tracer.start_span(
            f"invoke_agent {event.program}",
            context=self._below(event.parent),
            kind=SpanKind.INTERNAL,
            attributes={
                "gen_ai.operation.name": "invoke_agent",
                "gen_ai.provider.name": "agentsched",
                "gen_ai.agent.id": event.program,
                "gen_ai.conversation.id": event.program,
                "agentsched.tenant": event.tenant,
            },
            start_time=at_ns,
        )

    def _arrive(self, event: ev.CallArrived, now: float, at_ns: int) -> None:
        span = self._tracer.start_span(
            f"chat {self._model}",
            context=self._below(event.program),
            kind=SpanKind.CLIENT,
            attributes={
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "agentsched",
                "gen_ai.request.model": self._model,
                "gen_ai.request.max_tokens": event.max_output_tokens,
                "gen_ai.conversation.id": event.program,
            },
            start_time=at_ns,
        )
        self._calls[event.call] = (span, now)

    def _finish(self, event: ev.CallFinished, at_ns: int) -> None:
        span, _ = self._calls.pop(event.call)
        span.set_attributes(
            {
                "gen_ai.response.model": self._model,
                "gen_ai.usage.input_tokens": event.prompt_tokens,
                "gen_ai.usage.cache_read.input_tokens": event.cached_tokens,
                "gen_ai.usage.output_tokens": event.output_tokens,
                "agentsched.recomputed_tokens": event.recomputed_tokens,
            }
        )
        span.end(at_ns)

    def _start_tool(self, event: ev.ToolStarted, at_ns: int) -> None:
        self._tools[event.program, event.tool_call] = self._tracer.start_span(
            f"execute_tool {event.tool}",
            context=self._below(event.program),
            kind=SpanKind.INTERNAL,
            attributes={
                "gen_ai.operation.name": "execute_tool",
                "gen_ai.tool.name": event.tool,
                "gen_ai.tool.call.id": event.tool_call,
                "gen_ai.conversation.id": event.program,
                "agentsched.command": event.command,
            },
            start_time=at_ns,
        )

    def _finish_tool(self, event: ev.ToolFinished, at_ns: int) -> None:
        span = self._tools.pop((event.program, event.tool_call), None)
        if span is None:
            return
        span.set_attributes(
            {
                "process.exit.code": event.exit_status,
                "agentsched.cpu_seconds": event.cpu_s,
                "agentsched.peak_memory_bytes": event.peak_memory_bytes,
            }
        )
        if event.exit_status == ev.KILLED:
            span.set_attribute("error.type", "killed")
            span.set_status(Status(StatusCode.ERROR, "killed"))
        span.end(at_ns)

    def _below(self, program: str) -> Context | None:
        span = self._programs.get(program)
        return None if span is None else trace.set_span_in_context(span)
