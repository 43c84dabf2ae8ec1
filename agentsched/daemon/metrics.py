"""Prometheus metrics of one daemon, in a registry of their own. A watcher of events and decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.daemon.programs import Programs

# Seconds. From a cached turn on an idle engine to a call that waited for its program's turn.
_TTFT_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_CALL_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Metrics:
    """Counts what the core handled. ``programs`` must watch before this does."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._registry = registry = CollectorRegistry()
        counter = partial(Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(Histogram, registry=registry)
        self._calls = counter("agentsched_calls", "LLM calls by how they ended.", ["outcome"])
        self._retries = counter(
            "agentsched_retries_attached", "Requests that were answered by a call that another one had begun."
        )
        self._identified = counter(
            "agentsched_calls_identified",
            "LLM calls by the signal that told whose they are; new: none did.",
            ["signal"],
        )
        self._tokens = counter(
            "agentsched_tokens",
            "Tokens of finished calls: prompt; of these cached and recomputed; output.",
            ["kind"],
        )
        self._care = counter(
            "agentsched_prefix_care_tokens",
            "Prompt tokens that were cached because a rule of prefix care made them shareable.",
            ["rule"],
        )
        self._tools = counter("agentsched_tool_calls", "Tool calls that ended.")
        self._decisions = counter("agentsched_decisions", "Decisions of the core.", ["kind"])
        self._now(gauge)
        self._engine = counter(
            "agentsched_engine_tokens",
            "Tokens that an engine prefilled, decoded, recomputed or evicted.",
            ["engine", "kind"],
        )
        self._ttft = histogram(
            "agentsched_ttft_seconds",
            "From a call's arrival to its first token, by whether it follows a gap.",
            ["turn"],
            buckets=_TTFT_S,
        )
        self._call = histogram(
            "agentsched_call_seconds", "From a call's arrival to its end.", buckets=_CALL_S
        )
        # Looking a child up costs more than counting. What labels there are is bounded: by kinds of decisions
        # and signals, and by engines.
        self._of_calls, self._of_signal = cache(self._calls.labels), cache(self._identified.labels)
        self._of_tokens, self._of_decision = cache(self._tokens.labels), cache(self._decisions.labels)
        self._of_turn, self._of_kv = cache(self._ttft.labels), cache(self._kv.labels)
        self._of_engine = cache(self._engine.labels)
        self._arrivals: dict[str, tuple[float, str]] = {}
        self._capacity: dict[str, int] = {}

    def _now(self, gauge: Callable[..., Gauge]) -> None:
        """What is so at the moment."""
        self._engaged = gauge(
            "agentsched_policy_engaged", "1 if decisions are carried out, 0 if the daemon only observes."
        )
        self._engaged.set(1)
        self._live = gauge("agentsched_calls_live", "Calls now, by phase.", ["phase"])
        self._states = gauge("agentsched_programs", "Open programs now.", ["state"])
        self._kv = gauge(
            "agentsched_kv_tokens",
            "KV tokens of an engine: capacity; free (holds nothing); evictable (cache only); held.",
            ["engine", "kind"],
        )

        self._service = gauge(
            "agentsched_engine_service",
            "1 for the level of service that an attached engine gives: order, soft or retention.",
            ["engine", "level"],
        )
        self._levels: Callable[[], Mapping[str, str]] = dict

    def observe(self, now: float, event: ev.AnyEvent, decided: Sequence[de.AnyDecision]) -> None:
        """Count one event and what was decided."""
        for decision in decided:
            self._of_decision(type(decision).__name__).inc()
        match event:
            case ev.CallArrived():
                later = self._programs.open[event.program].calls_done > 0
                self._arrivals[event.call] = (now, "later" if later else "first")
            case ev.FirstToken():
                arrived_s, turn = self._arrivals[event.call]
                self._of_turn(turn).observe(now - arrived_s)
            case ev.CallFinished():
                self._call.observe(now - self._arrivals.pop(event.call)[0])
                self._of_calls("finished").inc()
                self._of_tokens("prompt").inc(event.prompt_tokens)
                self._of_tokens("cached").inc(event.cached_tokens)
                self._of_tokens("recomputed").inc(event.recomputed_tokens)
                self._of_tokens("output").inc(event.output_tokens)
            case ev.CallAborted():
                del self._arrivals[event.call]
                self._of_calls("aborted").inc()
            case ev.ToolFinished():
                self._tools.inc()
            case ev.EngineAttached():
                self._capacity[event.engine] = event.capacity_tokens
            case ev.EngineLost():
                for kind in ("capacity", "free", "evictable", "held"):
                    self._of_kv(event.engine, kind).set(0)
            case ev.StepReport():
                self._report(event)
            case ev.PolicyEngaged():
                self._engaged.set(event.engaged)
            case _:
                pass

    def watch_state(self, failing: Callable[[], bool]) -> None:
        """``failing``: whether what outlives the daemon cannot be written at the moment."""
        gauge = Gauge(
            "agentsched_state_failing",
            "1 while programs and accounts cannot be written to the state file, 0 else.",
            registry=self._registry,
        )
        gauge.set_function(failing)

    def watch_engines(self, levels: Callable[[], Mapping[str, str]]) -> None:
        """``levels``: the level of service of each attached engine, by its name."""
        self._levels = levels

    def retry_attached(self) -> None:
        """A request joined a live call."""
        self._retries.inc()

    def identified(self, signal: str) -> None:
        """A call's program was found."""
        self._of_signal(signal).inc()

    def cared(self, rule: str, tokens: int) -> None:
        """A rule of prefix care made so many tokens shareable that were then shared."""
        self._care.labels(rule).inc(tokens)

    def text(self) -> bytes:
        """All of it in the Prometheus text format."""
        phases = dict.fromkeys(("waiting", "sent", "running", "decoding"), 0)
        seats = {"foreground": 0, "paused": 0}
        for view in self._programs.open.values():
            seats["foreground" if view.engine else "paused"] += 1
            for phase in view.calls.values():
                phases[phase] += 1
        for phase, count in phases.items():
            self._live.labels(phase).set(count)
        for state, count in seats.items():
            self._states.labels(state).set(count)
        self._service.clear()
        for engine, level in self._levels().items():
            self._service.labels(engine, level).set(1)
        return generate_latest(self._registry)

    def _report(self, report: ev.StepReport) -> None:
        capacity = self._capacity[report.engine]
        for kind, tokens in (
            ("capacity", capacity),
            ("free", report.free_tokens),
            ("evictable", report.evictable_tokens),
            ("held", capacity - report.free_tokens),
        ):
            self._of_kv(report.engine, kind).set(tokens)
        for kind, tokens in (
            ("prefilled", report.prefilled_tokens),
            ("decoded", report.decoded_tokens),
            ("recomputed", report.recomputed_tokens),
            ("evicted", report.evicted_tokens),
        ):
            self._of_engine(report.engine, kind).inc(tokens)
