"""Prometheus metrics of one daemon, in a registry of their own. A watcher of events and decisions."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from agentsched.core import decisions as de
from agentsched.core import events as ev
from agentsched.daemon.programs import Programs

# Seconds. From a cached turn on an idle engine to a call that waited for its program's turn.
_TTFT_S = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)
_CALL_S = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class _Counter(Collector):
    """Counts by the values of its labels, as plain numbers: a call adds to a dozen of them."""

    def __init__(
        self, name: str, text: str, labels: Sequence[str] = (), *, registry: CollectorRegistry
    ) -> None:
        self.count: defaultdict[tuple[str, ...], float] = defaultdict(float)
        if not labels:
            self.count[()] = 0.0
        self._named = name, text
        self._labels = labels
        self._created = time.time()
        registry.register(self)

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(*self._named, labels=self._labels)
        for values, count in self.count.items():
            family.add_metric(values, count, created=self._created)
        yield family


class _Histogram(Collector):
    """The same of seconds, by the value of its label, if it has one."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        *,
        bounds: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        self._named = name, text
        self._labels = labels
        self._bounds = bounds
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        if not labels:
            self.observe(0.0, add=0)
        registry.register(self)

    def observe(self, seconds: float, *values: str, add: int = 1) -> None:
        counts = self._counts.get(values)
        if counts is None:
            counts = self._counts[values] = [0] * (len(self._bounds) + 1)
            self._sums[values] = 0.0
        counts[bisect_left(self._bounds, seconds)] += add
        self._sums[values] += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(*self._named, labels=self._labels)
        for values, counts in self._counts.items():
            at_most = zip((*map(str, map(float, self._bounds)), "+Inf"), accumulate(counts), strict=True)
            family.add_metric(values, list(at_most), self._sums[values])
        yield family


class Metrics:
    """Counts what the core handled. ``programs`` must watch before this does."""

    def __init__(self, programs: Programs) -> None:
        self._programs = programs
        self._registry = registry = CollectorRegistry()
        counter = partial(_Counter, registry=registry)
        gauge = partial(Gauge, registry=registry)
        histogram = partial(_Histogram, registry=registry)
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
            bounds=_TTFT_S,
        )
        self._call = histogram("agentsched_call_seconds", "From a call's arrival to its end.", bounds=_CALL_S)
        self._of_kv = cache(self._kv.labels)  # looking a child up costs more than setting it
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
            self._decisions.count[type(decision).__name__,] += 1
        match event:
            case ev.CallStarted():
                pass
            case ev.CallArrived():
                later = self._programs.open[event.program].calls_done > 0
                self._arrivals[event.call] = (now, "later" if later else "first")
            case ev.FirstToken():
                arrived_s, turn = self._arrivals[event.call]
                self._ttft.observe(now - arrived_s, turn)
            case ev.CallFinished():
                self._call.observe(now - self._arrivals.pop(event.call)[0])
                self._calls.count["finished",] += 1
                tokens = self._tokens.count
                tokens["prompt",] += event.prompt_tokens
                tokens["cached",] += event.cached_tokens
                tokens["recomputed",] += event.recomputed_tokens
                tokens["output",] += event.output_tokens
            case ev.CallAborted():
                del self._arrivals[event.call]
                self._calls.count["aborted",] += 1
            case ev.ToolFinished():
                self._tools.count[()] += 1
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
        self._retries.count[()] += 1

    def identified(self, signal: str) -> None:
        """A call's program was found."""
        self._identified.count[signal,] += 1

    def cared(self, rule: str, tokens: int) -> None:
        """A rule of prefix care made so many tokens shareable that were then shared."""
        self._care.count[rule,] += tokens

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
            self._engine.count[report.engine, kind] += tokens
