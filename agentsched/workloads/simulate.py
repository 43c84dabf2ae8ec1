"""One simulation from plain options: programs, engines, arrivals, the run and its summary.

**Closed loop** (``concurrency``): so many programs live at once, and the next begins when one ends.
Without ``hours`` every program of the traces runs once in seeded order, or ``programs`` of them drawn with
replacement, and the run ends when all have. With ``hours`` programs follow each other until then,
and the run stops: what lives at that moment is unfinished.

**Open loop** (``rate``, programs an hour): programs arrive at their own times for ``hours``, or until there
are ``programs``, or every program of the traces has arrived once. Then the run drains, for
``DRAIN`` times as long as arrivals lasted at most: a policy that collapses would drain for days.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice

from agentsched.core import ABLATION_NAMES, POLICY_NAMES, Core, make_policy
from agentsched.core.log import Entry
from agentsched.workloads.arrivals import HOUR_S, day, gamma, with_deadlines
from agentsched.workloads.bounds import recompute_bound_of_run
from agentsched.workloads.conditions import Conditions
from agentsched.workloads.fit import ProfileError, load_profile
from agentsched.workloads.measures import RunFacts, summarise_run
from agentsched.workloads.meter import Meter
from agentsched.workloads.oracle import ScriptOracle
from agentsched.workloads.scripts import Script
from agentsched.workloads.simulator import Simulation
from agentsched.workloads.summary import Summary
from agentsched.workloads.uncontended import Serving, alone_s, yardstick
from agentsched.workloads.workload import (
    Cast,
    Workload,
    drawn_programs,
    every_program_once,
    load_workload,
)

POLICIES = (*POLICY_NAMES, "clairvoyant", *ABLATION_NAMES)
"""``clairvoyant`` is ours, knowing what the programs will do: it exists in simulations only."""
DRAIN = 2.0
BLOCK_TOKENS = 16

Progress = Callable[[float, int], None]


class OptionError(ValueError):
    """An option, or a pair of them, that makes no simulation; the message names it and the way out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What is simulated, without the policy. ``kv_tokens`` and ``host_tokens`` are those of one engine;
    ``concurrency`` and ``rate`` of all of them. ``arrivals``: poisson, gamma:CV or day (as is day:CV).
    ``deadline_factor``: every program is to end within so many times what it takes alone. ``tool_cores``
    and ``tool_memory_gb`` limit each of the ``tool_hosts`` on which tools run. ``told_progress``: of all
    tools, the share that tells of its progress."""

    traces: tuple[str, ...]
    kv_tokens: int
    profile: str = "llama-3.1-8b-h100"
    concurrency: int | None = None
    rate: float | None = None
    hours: float | None = None
    programs: int | None = None
    engines: int = 1
    host_tokens: int = 0
    sharing: bool = True
    arrivals: str = "poisson"
    deadline_factor: float | None = None
    tool_hosts: int = 1
    tool_cores: float | None = None
    tool_memory_gb: float | None = None
    control_delay_ms: float = 0.0
    lost_orders: float = 0.0
    told_progress: float = 0.0
    chunk_tokens: int = 2048
    max_running: int = 256
    bounds: bool = False
    check: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.concurrency is None) == (self.rate is None):
            raise OptionError(
                "give either --concurrency (closed loop) or --rate (open arrivals), and not both"
            )
        try:
            load_profile(self.profile)
        except ProfileError as error:
            raise OptionError(str(error)) from None
        if not self.traces:
            raise OptionError("name at least one trace")
        for name in ("concurrency", "engines", "programs", "tool_hosts", "chunk_tokens", "max_running"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise OptionError(f"{_option(name)} must be at least 1, got {value}")
        for name in ("rate", "hours", "deadline_factor", "tool_cores", "tool_memory_gb"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise OptionError(f"{_option(name)} must be positive and finite, got {value}")
        if self.kv_tokens < BLOCK_TOKENS:
            raise OptionError(f"--kv-tokens must be at least one block of {BLOCK_TOKENS} tokens")
        if not 0 <= self.lost_orders < 1:
            raise OptionError(f"--lost-orders is a share below 1, got {self.lost_orders}")
        if not 0 <= self.told_progress <= 1:
            raise OptionError(f"--told-progress is a share, got {self.told_progress}")
        if not 0 <= self.control_delay_ms < float("inf") or self.host_tokens < 0:
            raise OptionError("--control-delay-ms and --host-tokens must not be negative")
        if self.programs is not None and self.hours is not None:
            raise OptionError("--programs and --hours both say when to stop; give one of them")
        if self.concurrency is not None and self.arrivals != "poisson":
            raise OptionError("--arrivals says how programs arrive in an open loop: give --rate with it")
        _kind(self.arrivals)

    @property
    def serving(self) -> Serving:
        return Serving(self.profile, self.chunk_tokens, self.max_running)


def check_policies(names: Iterable[str]) -> None:
    """Raises ``OptionError`` listing the policies there are, if one of ``names`` is not among them."""
    for name in names:
        if name not in POLICIES:
            raise OptionError(f"no policy {name!r}; there are: {', '.join(POLICIES)}")


def workload_of(options: Options) -> Workload:
    """The programs that ``options`` name and the engines can hold. Raises ``TraceError``."""
    return load_workload(
        options.traces,
        kv_tokens=options.kv_tokens // BLOCK_TOKENS * BLOCK_TOKENS,
        sharing=options.sharing,
        seed=options.seed,
    )


def simulate(
    options: Options,
    policy: str,
    *,
    log: Callable[[Entry], None] | None = None,
    progress: Progress | None = None,
    packing: float | None = None,
) -> Summary:
    """Run it. ``log`` is given every entry, ``progress`` the virtual time and how many programs have ended.
    ``packing``: tasks an hour of the packing bound, where it is known already.

    Raises ``OptionError``, ``TraceError``, and ``SummaryError`` if no program ended within the run.
    """
    check_policies([policy])
    workload = workload_of(options)
    times = alone_s(workload, options.serving)
    if options.deadline_factor is not None:
        scripts = with_deadlines(workload.scripts, times, options.deadline_factor)
        workload = replace(workload, scripts=tuple(scripts))
    cast, first, then, until_s = _programs(options, workload)

    meter = Meter(cast.script, workload.tenants())
    entries: list[Entry] = []
    takers = [meter.take, *([entries.append] if options.bounds else []), *([log] if log else [])]
    core = Core(make_policy(policy, ScriptOracle(lambda program: cast.script(program)[0])))
    run = _simulation(options, core, cast, first, then, takers, progress)
    run.run(until_s=until_s)
    if any(not program.closed for program in meter.programs.values()):
        meter.pass_to(until_s if until_s < float("inf") else run.now)
    bound: int | None = None
    if options.bounds:
        bound = recompute_bound_of_run(entries, [*cast.roots.values(), *cast.agents.values()])
        if packing is None:
            at_one = yardstick(workload, options.serving, options.kv_tokens)
            packing = options.engines * at_one.tasks_per_hour
    return summarise_run(
        meter,
        RunFacts(
            policy=policy,
            engine=options.profile,
            seed=options.seed,
            concurrency=options.concurrency,
            alone_s=lambda program: times[cast.original(program)],
            decided_s=run.decided_s,
            conditions=asdict(options) | {"traces": " ".join(options.traces)},
            tool_host=run.gaps.usage,
            recompute_bound_tokens=bound,
            packing_tasks_per_hour=packing,
        ),
    )


def play(options: Options, core: Core, log: Callable[[Entry], None]) -> Simulation:
    """A simulation of these options that is run by whoever asked for it, by and by. Raises ``TraceError``."""
    cast, first, then, _ = _programs(options, workload_of(options))
    return _simulation(options, core, cast, first, then, [log], None)


def _simulation(
    options: Options,
    core: Core,
    cast: Cast,
    first: list[Script],
    then: Iterable[Script],
    takers: list[Callable[[Entry], None]],
    progress: Progress | None,
) -> Simulation:
    def take(entry: Entry) -> None:
        for taker in takers:
            taker(entry)

    return Simulation(
        core,
        [
            options.serving.engine(options.kv_tokens, name=f"e{number}", host_tokens=options.host_tokens)
            for number in range(options.engines)
        ],
        first,
        Conditions(
            concurrency=options.concurrency,
            control_delay_s=options.control_delay_ms / 1e3,
            lost_orders=options.lost_orders,
            told_share=options.told_progress,
            tool_hosts=options.tool_hosts,
            tool_cores=options.tool_cores,
            tool_memory_bytes=None if options.tool_memory_gb is None else int(options.tool_memory_gb * 1e9),
            seed=options.seed,
            check=options.check,
        ),
        agents=cast.agents,
        then=then,
        log=takers[0] if len(takers) == 1 else take,
        progress=progress,
    )


def _programs(options: Options, workload: Workload) -> tuple[Cast, list[Script], Iterable[Script], float]:
    """The cast, the programs known from the start, those that follow in a closed loop, and the run's end."""
    if options.programs is None and options.hours is None:
        cast, chosen = every_program_once(workload, options.seed)
        coming: Iterator[Script] = iter(chosen)
    else:
        cast, coming = drawn_programs(workload, options.seed)
        if options.programs is not None:
            coming = islice(coming, options.programs)
    if options.concurrency is not None:
        until_s = HOUR_S * options.hours if options.hours is not None else float("inf")
        return cast, list(islice(coming, options.concurrency)), coming, until_s
    if options.hours is not None:
        times = _arrival_times(options, options.hours)
        coming = islice(coming, len(times))
        scripts, lasted_s = list(coming), HOUR_S * options.hours
    else:
        scripts = list(coming)
        times = _so_many(options, len(scripts))
        lasted_s = times[-1]
    # Agents that programs start arrive with them; only roots have times of their own.
    first = [replace(script, arrives_s=at_s) for script, at_s in zip(scripts, times, strict=True)]
    if not first:
        raise OptionError("no program arrives: raise --rate or --hours")
    return cast, first, (), lasted_s * (1 + DRAIN)


def _arrival_times(options: Options, hours: float) -> list[float]:
    assert options.rate is not None
    kind, cv = _kind(options.arrivals)
    if kind == "day":
        return day(options.rate, hours, options.seed, cv)
    return gamma(options.rate, hours, options.seed, cv)


def _so_many(options: Options, programs: int) -> list[float]:
    """The first arrivals of a process that goes on; a longer one begins with the same."""
    assert options.rate is not None
    hours = 2.0 + 2 * programs / options.rate
    while len(times := _arrival_times(options, hours)) < programs:
        hours *= 2
    return times[:programs]


def _kind(arrivals: str) -> tuple[str, float]:
    """Name and coefficient of variation."""
    name, colon, text = arrivals.partition(":")
    usual = {"poisson": 1.0, "day": 2.0}
    try:
        cv = float(text) if colon else usual[name]
    except (KeyError, ValueError):
        cv = 0.0
    if name not in ("poisson", "gamma", "day") or not 0 < cv < float("inf") or (name == "poisson" and colon):
        raise OptionError(f"--arrivals is poisson, gamma:CV, day or day:CV (as gamma:3), not {arrivals!r}")
    return name, cv


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
