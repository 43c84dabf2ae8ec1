"""An AEG model: what programs like these tend to do, learned online from the AEGs of programs.

A program is a walk over states: each call's state is what its answer asked for, a tool with the class
of its command (``bash:pytest``) or ``ANSWER`` where it asked for none; before the first call the walk
is at ``BEGIN``, after the last at ``END``. Learned are, by state: which state follows, how long the gap
lasts, how many tokens a call adds and puts out; and, over programs: calls left, given the calls done,
the first prompt's size and the last tool, and the final context (``ContextModel``).

A model learns when a program ends, outside of any scheduling decision, and answers from tables: a
query is a few dictionary look-ups and bisections, and walks no graph. It takes plain values
(``Step``; ``steps_of`` reads them off an AEG) and keeps a bounded number of states, since names of
tools come from outside: once ``MAX_STATES`` are known, further ones are ``OTHER``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from agentsched.graphs.aeg import Aeg, CallNode, ToolNode
from agentsched.graphs.predict import LONGEST_KEY, ContextModel, GapModel
from agentsched.graphs.samples import Window, amount

BEGIN, END, ANSWER, OTHER = "(begin)", "(end)", "(answer)", "(other)"

LEAN = 1.0
"""How many transitions of a state the transitions of all states together are worth."""

LEAN_CALLS = 50.0
"""How many calls seen after a tool it takes to believe half of what it says about calls left."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One call and the gap after it. Tokens; seconds.

    ``tool`` is the gap's key, ``ANSWER`` for none. ``new_tokens``: what its prompt gained over the context
    before it, 0 where that shrank. ``gap_s``: None where no call followed, or before this one ended.
    """

    tool: str
    prompt_tokens: int
    new_tokens: int
    output_tokens: int
    gap_s: float | None = None

    def __post_init__(self) -> None:
        for name in ("prompt_tokens", "new_tokens", "output_tokens"):
            amount(name, getattr(self, name))
        if self.gap_s is not None:
            amount("gap_s", self.gap_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a call in some state adds to the context (prompt) and puts out, tokens."""

    new_mean: float
    new_p50: float
    new_p90: float
    output_mean: float
    output_p50: float
    output_p90: float


@dataclass(slots=True)
class _State:
    """What is known of one state. ``left`` are sums of (real, expected) calls left after its calls."""

    calls: int = 0
    new_sum: float = 0.0
    output_sum: float = 0.0
    new: Window = field(default_factory=lambda: Window(200))
    output: Window = field(default_factory=lambda: Window(200))
    next: Counter[str] = field(default_factory=Counter)
    left: tuple[float, float] = (0.0, 0.0)


class AegModel:
    """The above. ``gaps`` and ``contexts`` are its predictors of gaps and of growth."""

    MAX_STATES = 512

    def __init__(self) -> None:
        self.gaps = GapModel()
        self.contexts = ContextModel()
        self.programs = 0
        self._states: dict[str, _State] = {}
        self._arrivals: Counter[str] = Counter()
        self._ranked: dict[str, tuple[tuple[str, float], ...]] = {}

    def learn(self, steps: Sequence[Step], *, ended: bool = True) -> None:
        """Learn a program's calls, in order. One that has not ended says nothing of its end."""
        if not steps:
            return
        self.programs += 1
        names = [self._name(step.tool) for step in steps]
        self._learn_left(steps, names, ended=ended)
        for name, step in zip(names, steps, strict=True):
            state = self._states[name]
            state.calls += 1
            state.new_sum += step.new_tokens
            state.output_sum += step.output_tokens
            state.new.add(step.new_tokens)
            state.output.add(step.output_tokens)
            if step.gap_s is not None:
                self.gaps.observe(_gap_key(name), step.gap_s)
        for here, there in pairwise([BEGIN, *names, *([END] if ended else [])]):
            self._states.setdefault(here, _State()).next[there] += 1
            self._arrivals[there] += 1
        self._ranked.clear()

    @property
    def states(self) -> list[str]:
        """All that have been left at least once, ``BEGIN`` first, then by calls."""
        return sorted(self._states, key=lambda name: (name != BEGIN, -self._states[name].calls, name))

    def calls(self, state: str) -> int:
        """How many calls were in that state."""
        known = self._states.get(state)
        return known.calls if known else 0

    def transitions(self) -> Iterator[tuple[str, str, int]]:
        """(state, next state, how often)."""
        for name in self.states:
            for there, count in self._states[name].next.items():
                yield name, there, count

    def probability(self, state: str, following: str) -> float:
        """P(next state is ``following``), a little of it from all states together; 0 before anything
        was learned."""
        total = self._arrivals.total()
        if not total:
            return 0.0
        known = self._states.get(state)
        seen, left = (known.next[following], known.next.total()) if known else (0, 0)
        return (seen + LEAN * self._arrivals[following] / total) / (left + LEAN)

    def following(self, state: str) -> tuple[tuple[str, float], ...]:
        """(next state, probability), most probable first, of those that were seen after it."""
        ranked = self._ranked.get(state)
        if ranked is None:
            known = self._states.get(state)
            chances = [(there, self.probability(state, there)) for there in known.next] if known else []
            ranked = tuple(sorted(chances, key=lambda pair: (-pair[1], pair[0])))
            if known:
                self._ranked[state] = ranked
        return ranked

    def tokens(self, state: str) -> Tokens | None:
        """Of the calls in that state; None before there was one."""
        known = self._states.get(state)
        if known is None or not known.calls:
            return None
        return Tokens(
            new_mean=known.new_sum / known.calls,
            new_p50=known.new.quantile(0.5),
            new_p90=known.new.quantile(0.9),
            output_mean=known.output_sum / known.calls,
            output_p50=known.output.quantile(0.5),
            output_p90=known.output.quantile(0.9),
        )

    def gap_median_s(self, state: str) -> float:
        """Median gap after a call in that state; a prior's before any was seen."""
        samples = self.gaps.samples(_gap_key(state))
        return samples[len(samples) // 2]

    def calls_left(self, calls_done: int, first_prompt_tokens: int | None = None, last: str = "") -> float:
        """Expected calls left, at least 1, after ``calls_done`` of which the last was in state ``last``."""
        expected = self.contexts.expected_calls_left(calls_done, first_prompt_tokens)
        known = self._states.get(last)
        if known is None:
            return expected
        came, foretold = known.left
        lean = LEAN_CALLS * foretold / max(1, known.calls)
        return max(1.0, expected * (came + lean) / (foretold + lean)) if foretold else expected

    def _learn_left(self, steps: Sequence[Step], names: Sequence[str], *, ended: bool) -> None:
        """Hold the calls left that were to be expected at each call against those that came."""
        first, program = steps[0].prompt_tokens, str(self.programs)
        largest = 0
        for done, (name, step) in enumerate(zip(names, steps, strict=True), 1):
            context = step.prompt_tokens + step.output_tokens
            largest = max(largest, context)
            if ended and done < len(steps):
                state = self._states[name]
                expected = self.contexts.expected_calls_left(done, first)
                state.left = (state.left[0] + len(steps) - done, state.left[1] + expected)
        for done, step in enumerate(steps, 1):
            self.contexts.observe_call(
                program,
                calls_done=done,
                tokens_now=step.prompt_tokens + step.output_tokens,
                first_prompt_tokens=first,
            )
        if ended:
            self.contexts.observe_program(
                calls=len(steps), first_prompt_tokens=first, final_tokens=largest, program=program
            )
        else:
            self.contexts.forget(program)

    def _name(self, tool: str) -> str:
        """The state's name; it is known from now on."""
        # no lone surrogates, which no export could carry
        name = tool[:LONGEST_KEY].encode(errors="replace").decode() or ANSWER
        full = name not in self._states and len(self._states) >= self.MAX_STATES
        if full or name in (BEGIN, END):
            name = OTHER
        self._states.setdefault(name, _State())
        return name


def _gap_key(state: str) -> str:
    return "" if state == ANSWER else state


def steps_of(aeg: Aeg) -> list[Step]:
    """The finished calls of a program, in the order in which they ended."""
    calls = sorted(
        (call for call in aeg.calls if call.finished_s is not None),
        key=lambda call: (call.finished_s, call.index),
    )
    asked = {call.call: _slowest_tool(aeg, call) for call in calls}
    steps, context = [], 0
    for number, call in enumerate(calls):
        following = calls[number + 1] if number + 1 < len(calls) else None
        gap_s = None
        if following is not None and call.finished_s is not None:
            gap_s = following.arrived_s - call.finished_s
        steps.append(
            Step(
                tool=asked[call.call],
                prompt_tokens=call.prompt_tokens,
                new_tokens=max(0, call.prompt_tokens - context),
                output_tokens=call.output_tokens,
                gap_s=gap_s if gap_s is not None and gap_s >= 0 else None,
            )
        )
        context = call.prompt_tokens + call.output_tokens
    return steps


def _slowest_tool(aeg: Aeg, call: CallNode) -> str:
    """The key of the tool call that ended last of those that a call asked for: it made the gap."""
    tools = [
        node
        for name in aeg.graph.successors(call.node_id)
        if isinstance(node := aeg.graph.nodes[name]["data"], ToolNode)
    ]
    if not tools:
        return ANSWER
    slowest = max(tools, key=lambda tool: tool.finished_s or 0.0)
    name = slowest.tool or "(unnamed)"
    return f"{name}:{slowest.command}" if slowest.command else name
