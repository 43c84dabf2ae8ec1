"""Agents replayed on an engine that computes: the arithmetic, and that policies get the same programs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from agentsched.engines.contract import GenerateRequest, Sampling, StepEngine
from agentsched.engines.cost import CostProfile
from agentsched.engines.promotion import Promotion
from agentsched.engines.simulated import simulated
from agentsched.workloads.bench import _promotion as promotion
from agentsched.workloads.bench import _replay as replaying
from agentsched.workloads.bench._costs import Costs, calibrate
from agentsched.workloads.scaled import scaled
from agentsched.workloads.scripts import Piece, Script, Turn
from agentsched.workloads.stepwise import Timed
from agentsched.workloads.summary import Summary
from agentsched.workloads.uncontended import Serving, occupancy

ROOT = Path(__file__).parents[2]
PROFILE = CostProfile(
    step_s=2e-3, prefill_token_s=1e-3, decode_row_s=3e-4, attention_s=1e-8, context_token_s=1e-7
)
PLAN = replaying.Plan(
    trace="gen:continuum-swe?turns=5&programs=12", programs=8, concurrency=6, token_divisor=200.0, repeats=2
)
COSTS = Costs(PROFILE, 0.0)


def engine(tokens: int, profile: CostProfile = PROFILE) -> StepEngine:
    chunk, running = PLAN.chunk_tokens, PLAN.max_running
    return simulated(profile, tokens, name="e0", chunk_tokens=chunk, max_running=running)


class Virtual(Timed):
    """Steps take what the cost model says, as if they had been computed in that time."""

    def __init__(self, engine: StepEngine) -> None:
        super().__init__(engine, clock=lambda: self._at)
        self._at = 0.0

    def step(self, now: float):  # type: ignore[no-untyped-def]
        took_s, outputs = self._engine.step(now)
        self.busy_s += took_s
        return took_s, outputs


def replayed(
    monkeypatch: pytest.MonkeyPatch,
    plan: replaying.Plan = PLAN,
    make: Callable[[int], StepEngine] = engine,
    costs: Costs = COSTS,
) -> replaying.Replay:
    monkeypatch.setattr(replaying, "Timed", Virtual)
    workload = replaying.workload_of(plan, 10_000)
    tokens = replaying.kv_tokens(plan, workload, PROFILE)
    return replaying.replay(plan, workload, costs, tokens, lambda: make(tokens), lambda line: None)


def test_every_policy_replays_the_same_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[dict[str, GenerateRequest]] = []

    def watched(tokens: int) -> StepEngine:
        made, asked = engine(tokens), dict[str, GenerateRequest]()
        submit = made.submit

        def noted(request: GenerateRequest, now: float) -> None:
            asked[request.call] = request
            submit(request, now)

        runs.append(asked)
        monkeypatch.setattr(made, "submit", noted)
        return made

    replayed(monkeypatch, make=watched)
    assert len(runs) == 4
    assert all(run == runs[0] for run in runs)
    calls = [list(run) for run in runs]
    assert {call.split("/")[0] for call in calls[0]} == {f"continuum-swe-{n:05d}" for n in range(8)}
    first = [[call for call in run if call.endswith("/0")] for run in calls]
    assert first[0] == first[1] != first[2] == first[3], "the next repeat has another order"
    assert all(request.recorded and len(request.recorded) <= 40 for request in runs[0].values())


def test_where_costs_are_known_the_simulator_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    made = replayed(monkeypatch)
    for policy in PLAN.policies:
        assert made.predictions(policy) == pytest.approx([1.0, 1.0], abs=0.05)
        assert min(made.busy_s[policy]) > 0
    slow = Costs(PROFILE.scaled(2.0), 0.0)
    assert min(replayed(monkeypatch, costs=slow).predictions("fcfs-lru")) > 1.5


def test_ratios_are_taken_repeat_by_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    made = replayed(monkeypatch)
    run = made.measured["fcfs-lru"][0]

    def taking(mean: float, p99: float) -> Summary:
        tct_s = msgspec.structs.replace(run.tct_s, mean=mean, p99=p99)
        return msgspec.structs.replace(run, tct_s=tct_s, recomputed_tokens=30, context_tokens=20)

    made.measured = {
        "fcfs-lru": [taking(10.0, 30.0), taking(12.0, 30.0)],
        "agentsched": [taking(5.0, 60.0), taking(8.0, 60.0)],
    }
    made.predicted = {"fcfs-lru": [taking(11.0, 1.0)] * 2, "agentsched": [taking(4.0, 1.0)] * 2}
    assert made.ratios("agentsched", "tct_mean_s") == [2.0, 1.5]
    assert made.predictions("agentsched") == [0.8, 0.5]
    told = json.loads(json.dumps(made.figures()))
    assert told["ratios"]["fcfs-lru over agentsched"]["tct_p99_s"] == [0.5, 0.5]
    assert told["policies"]["fcfs-lru"]["recomputed_over_context"] == [1.5, 1.5]
    assert told["policies"]["agentsched"]["predicted_over_measured"] == [0.8, 0.5]
    assert made.goals() == {
        "mean TCT, fcfs-lru over agentsched": {"value": 1.75, "want": 1.0, "met": True},
        "P99 TCT, fcfs-lru over agentsched": {"value": 0.5, "want": 1.0, "met": False},
    }
    assert replaying.spread([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"


def test_pressure_is_contexts_over_kv() -> None:
    workload = replaying.workload_of(PLAN, 10_000)
    held = occupancy(workload, Serving(PROFILE, 512, 64), 6).tokens
    assert held / 2 - 16 < replaying.kv_tokens(PLAN, workload, PROFILE) <= held / 2


def test_what_makes_no_replay_is_named() -> None:
    crowded = planned(concurrency=2)
    workload = replaying.workload_of(crowded, 10_000)
    with pytest.raises(replaying.ReplayError, match="raise the concurrency"):
        replaying.kv_tokens(crowded, workload, PROFILE)
    with pytest.raises(replaying.ReplayError, match="contexts of at most 100 tokens"):
        replaying.workload_of(PLAN, 100)
    with pytest.raises(replaying.ReplayError, match="8 programs cannot be 9 at once"):
        planned(concurrency=9)
    with pytest.raises(ValueError, match="unknown policy 'none'"):
        planned(policies=("none",))


def planned(**fields: object) -> replaying.Plan:
    known = {name: getattr(PLAN, name) for name in ("trace", "programs", "concurrency", "token_divisor")}
    return replaying.Plan(**(known | fields))


def test_no_repeat_begins_that_would_end_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    made = replayed(monkeypatch, plan=planned(repeats=3, seconds=0.0))
    assert [len(runs) for runs in made.measured.values()] == [1, 1]


def test_a_step_takes_what_passes_on_the_clock() -> None:
    times = iter([10.0, 10.5, 20.0, 20.25])
    timed = Timed(engine(1_000), clock=lambda: next(times))
    prompt = GenerateRequest(
        call="c", program="p", prompt=[1, 2, 3], sampling=Sampling(max_output_tokens=2), recorded=[4, 5]
    )
    timed.submit(prompt, 0.0)
    assert [timed.step(0.0)[0], timed.step(0.5)[0]] == [0.5, 0.25]
    assert timed.busy_s == 0.75
    assert not timed.has_work


def test_scaled_programs_share_what_they_shared() -> None:
    prefix = (Piece("system", 1_000), Piece("tools", 3))
    turns = (Turn(1_010, 40, 8.0), Turn(3, 1, 4.0), Turn(2_000, 10, 0.0, fresh=True))
    pieces = (Turn(0, 10, 0.0, pieces=(Piece("a", 400), Piece("b", 4))),)
    made, spelt = scaled([Script("p", 0.0, turns, prefix), Script("q", 0.0, pieces)], tokens=100.0, gaps=4.0)
    assert made.prefix == (Piece("system", 10), Piece("tools", 1))
    assert [(turn.new_tokens, turn.output_tokens, turn.gap_s) for turn in made.turns] == [
        (12, 1, 2.0),
        (1, 1, 1.0),
        (20, 1, 0.0),
    ]
    assert spelt.turns[0].pieces == (Piece("a", 4), Piece("b", 1))


LOAD = promotion.Load(
    tokens=160, rows=2, row_tokens=32, filler_tokens=128, quiet_steps=2, rounds=2, chunk_tokens=64
)


def test_promotion_is_measured_where_the_engine_promotes(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentsched.engines.embedded.executor import TorchExecutor
    from tests.engines.test_embedded_engine import MODEL

    executor = TorchExecutor(MODEL, num_blocks=LOAD.kv_tokens // 16)
    made = promotion.promote(executor, LOAD, lambda line: None)
    assert len(made.shares) == len(made.slowed) == len(made.beside_s) == 2
    assert made.shares == [up / again for up, again in zip(made.promote_s, made.recompute_s, strict=True)]
    assert min(made.steps_meanwhile) >= 1
    made.promote_s, made.recompute_s, made.slowed = [1.0, 2.0], [10.0, 4.0], [0.05, 0.25]
    assert [(goal["value"], goal["met"]) for goal in made.goals().values()] == [(0.3, True), (0.15, False)]

    monkeypatch.setattr(Promotion, "pays", lambda self, blocks, running, now: False)
    with pytest.raises(promotion.PromotionError, match="only 0 tokens worth bringing up"):
        promotion.promote(executor, LOAD, lambda line: None)


def test_costs_are_found_again() -> None:
    from agentsched.engines.simulated import CostModelExecutor

    executor = CostModelExecutor(
        profile=PROFILE, num_blocks=2_000, block_tokens=16, vocabulary=500, max_context_tokens=4_000
    )
    rounds: list[str] = []
    # Steps of the cost model take no time to speak of.
    assert calibrate(executor, 400, 128, rounds.append, rounds=1).profile.prefill_token_s < 1e-4
    assert len(rounds) == 1


# The command

COMMAND = [sys.executable, "-m", "agentsched.workloads.bench.replay", "--quick", "--threads", "1"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def test_the_command_writes_its_results(tmp_path: Path) -> None:
    out = tmp_path / "made" / "replay.json"
    done = subprocess.run(
        [*COMMAND, "--out", str(out)], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(out.read_text())
    assert told["threads"] == 1
    assert told["goals"] == {}, "a tiny model shows nothing"
    assert told["figures"]["policies"].keys() == {"fcfs-lru", "agentsched"}
    assert told["figures"]["promotion"]["tokens"] == 512
    assert "recomputed / context" in done.stdout
    assert "repeat 2, agentsched" in done.stderr


def test_an_interrupted_run_writes_nothing(tmp_path: Path) -> None:
    command = [*COMMAND, "--repeats", "1000", "--out", str(tmp_path / "replay.json")]
    with subprocess.Popen(command, cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        assert "costs of" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        _, rest = run.communicate(timeout=30)
    assert run.returncode == 130
    assert rest.strip().splitlines()[-1] == "Interrupted; nothing is written."
    assert not list(tmp_path.iterdir())


IMPORTED = """
import builtins, sys
promised = {"torch", "triton", "transformers", "msgspec", "numpy", "safetensors", "networkx", "agentsched"}
promised |= {"huggingface_hub", "tokenizers"}  # transformers brings them
original, others = builtins.__import__, set()
def noting(name, globals=None, locals=None, fromlist=(), level=0):
    top = name.partition(".")[0]
    ours = (globals or {}).get("__name__", "").startswith("agentsched")
    if ours and not level and top not in promised and top not in sys.stdlib_module_names:
        others.add(name)
    return original(name, globals, locals, fromlist, level)
builtins.__import__ = noting
import agentsched.workloads.bench.engine_gpu
assert "torch" not in sys.modules, "Triton's interpreter must be asked for before"
import agentsched.engines.embedded.executor, agentsched.engines.embedded.transfer
import agentsched.engines.embedded.model, agentsched.engines.embedded.paged_triton
print(sorted(others))
"""


def test_the_gpu_benchmark_needs_no_more_than_it_says() -> None:
    pytest.importorskip("triton", reason="triton is not installed")
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.stdout == "[]\n", done.stderr
