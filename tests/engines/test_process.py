"""Engine processes: their life and death, and the wire between them and the daemon."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.core.decisions import EngineTerms
from agentsched.core.events import CallFinished, FirstToken, StepReport
from agentsched.engines.batching import BatchingEngine
from agentsched.engines.contract import Capabilities, EngineGone, EngineOutput, GenerateRequest, Sampling
from agentsched.engines.cost import CostProfile
from agentsched.engines.inprocess import InProcessEngine
from agentsched.engines.process import EngineProcess, ReportPace
from agentsched.engines.simulated import simulated
from agentsched.engines.wire import (
    MAX_FRAME_BYTES,
    Abort,
    Close,
    Frames,
    Hello,
    Orders,
    Submit,
    ToEngine,
    WireError,
    encode,
)

PATIENCE_S = 30.0
SIMULATED = [sys.executable, "-m", "agentsched.engines.simulated", "--kv-tokens", "4096", "--speed", "10"]


def request(call: str = "c", output: int = 2000) -> GenerateRequest:
    sampling = Sampling(max_output_tokens=output)
    return GenerateRequest(call=call, program="p", prompt=[1, 2, 3], sampling=sampling)


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_for_end(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not ended(pid):
        assert time.monotonic() < deadline, f"process {pid} lives on"
        time.sleep(0.01)


@pytest.fixture
async def engine() -> AsyncIterator[EngineProcess]:
    engine = EngineProcess("sim", SIMULATED)
    await engine.start()
    yield engine
    await engine.close()


# Life and death


async def test_a_killed_engine_fails_its_calls_and_can_be_started_again(engine: EngineProcess) -> None:
    async def killed_at_first_token() -> None:
        async for item in engine.generate(request()):
            if isinstance(item, FirstToken):
                os.kill(engine.pid, signal.SIGKILL)

    reports = engine.reports()
    assert (await anext(reports)).snapshot
    with pytest.raises(EngineGone, match="sim was killed by signal 9"):
        await killed_at_first_token()
    async with asyncio.timeout(PATIENCE_S):
        assert not any([report.snapshot async for report in reports])
    with pytest.raises(EngineGone):
        await anext(engine.generate(request("again")))
    with pytest.raises(EngineGone):
        await engine.order([])
    await engine.start()
    items = [item async for item in engine.generate(request("again", output=2))]
    assert isinstance(items[-1], CallFinished)


async def test_closing_ends_the_process_and_may_be_repeated(engine: EngineProcess) -> None:
    pid = engine.pid
    run = asyncio.ensure_future(anext(engine.generate(request())))
    await run
    await engine.close()
    await engine.close()
    assert ended(pid)
    with pytest.raises(EngineGone, match="not started"):
        engine.generate(request())


async def test_the_engine_is_in_a_session_of_its_own(engine: EngineProcess) -> None:
    assert os.getsid(engine.pid) == engine.pid


async def test_the_engine_is_confined_to_its_core() -> None:
    core = min(os.sched_getaffinity(0))
    engine = EngineProcess("sim", SIMULATED, cpu_core=core)
    await engine.start()
    assert os.sched_getaffinity(engine.pid) == {core}
    await engine.close()
    with pytest.raises(EngineGone, match="no core 100000"):
        await EngineProcess("sim", SIMULATED, cpu_core=100_000).start()


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("raise SystemExit('no weights in /models')", "ended with status 1.*no weights in /models"),
        ("import os; print('seed', os.environ['SEED'], flush=True); os.abort()", "signal 6.*seed 17"),
        ("import time; time.sleep(600)", "not ready after 0.5 s"),
        ("import os, sys; os.write(int(sys.argv[-1]), b'HTTP/1.1 200 OK')", "over the limit"),
        ("import os, sys; os.write(int(sys.argv[-1]), b'\\0\\0\\0\\2{}')", "not a message"),
    ],
)
async def test_a_start_that_fails_says_why(script: str, says: str) -> None:
    timeout_s = 0.5 if "sleep" in script else PATIENCE_S
    command = [sys.executable, "-c", script]
    engine = EngineProcess("odd", command, env={"SEED": "17"}, start_timeout_s=timeout_s)
    with pytest.raises(EngineGone, match=f"(?s)engine odd.*{says}"):
        await engine.start()
    await engine.close()


async def test_a_program_that_does_not_exist_says_so() -> None:
    with pytest.raises(EngineGone, match="cannot be run"):
        await EngineProcess("odd", ["/no/such/program"]).start()


@pytest.mark.parametrize("busy", [False, True])
def test_the_engine_ends_when_its_socket_does(busy: bool) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        arguments = [*SIMULATED, "--fd", str(theirs.fileno())]
        process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
    with ours:
        frames = Frames()
        assert isinstance(frames.for_daemon(ours.recv(1 << 16))[0], Hello)
        if busy:
            ours.sendall(encode([Submit(request())]))
            assert frames.for_daemon(ours.recv(1 << 16))
    assert process.wait(timeout=PATIENCE_S) == 0


def test_the_engine_ends_when_the_daemon_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "daemon.py"
    script.write_text(
        "import asyncio\n"
        "from agentsched.engines.process import EngineProcess\n"
        "async def main():\n"
        f"    engine = EngineProcess('sim', {SIMULATED!r})\n"
        "    await engine.start()\n"
        "    print(engine.pid, flush=True)\n"
        "    await asyncio.sleep(600)\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        assert not ended(pid)
        daemon.kill()
    wait_for_end(pid)


# The wire


def test_frames_survive_any_cut() -> None:
    messages: list[ToEngine] = [
        Submit(request()),
        Orders([EngineTerms(engine="e", cause=1, epoch=2, seq=3, device_price=float("inf"))]),
        Abort("c"),
        Close(),
    ]
    stream = encode(messages[:2]) + encode(messages[2:]) + encode([])
    frames = Frames()
    received = [message for byte in stream for message in frames.for_engine(bytes([byte]))]
    assert received == messages


@given(st.binary(max_size=200))
def test_garbage_is_refused_or_waited_for(data: bytes) -> None:
    limits = Capabilities(kind="k", capacity_tokens=1, block_tokens=1, max_context_tokens=1, vocabulary=1)
    stream = encode([Hello(limits)]) + data
    try:
        messages = Frames().for_daemon(stream)
    except WireError:
        return
    assert messages[0] == Hello(limits)


def test_a_frame_over_the_limit_is_refused_on_both_sides() -> None:
    with pytest.raises(WireError, match="over the limit"):
        Frames().for_engine((MAX_FRAME_BYTES + 1).to_bytes(4, "big"))
    with pytest.raises(WireError, match="over the limit"):
        encode([Abort("x" * (MAX_FRAME_BYTES + 1))])


# Reports, and the form in the daemon's own loop


def test_reports_come_faster_when_room_runs_out() -> None:
    report = StepReport(engine="e", free_tokens=20, evictable_tokens=40)

    def interval(pace: ReportPace, report: StepReport) -> float:
        pace.reported(report, 10.0)
        return next(ms for ms in range(1000) if pace.due(10.0 + (ms + 0.5) / 1000)) / 1000

    pace = ReportPace(capacity_tokens=1000)
    assert interval(pace, report) == ReportPace.INTERVAL_S
    assert interval(pace, msgspec.structs.replace(report, evictable_tokens=0)) == ReportPace.SHORT_INTERVAL_S
    pace.ordered([EngineTerms(engine="e", cause=1, epoch=1, seq=1, free_floor_tokens=100)])
    assert interval(pace, report) == ReportPace.SHORT_INTERVAL_S


class Broken(BatchingEngine):
    """An engine with a bug of its own."""

    def __init__(self, sound: BatchingEngine) -> None:
        self.__dict__.update(sound.__dict__)

    def step(self, now: float) -> tuple[float, list[EngineOutput]]:
        raise ZeroDivisionError("a bug")


async def test_an_engine_that_breaks_in_the_loop_fails_its_calls() -> None:
    engine = InProcessEngine(Broken(simulated(CostProfile(), 256)))
    await engine.start()
    with pytest.raises(EngineGone, match="a bug"):
        await anext(engine.generate(request(output=3)))
    with pytest.raises(EngineGone):
        engine.generate(request(output=3))
    await engine.close()


async def test_steps_take_their_time_unless_it_is_virtual() -> None:
    async def seconds(step_s: float, virtual_time: bool) -> float:
        engine = InProcessEngine(simulated(CostProfile(step_s=step_s), 256), virtual_time=virtual_time)
        await engine.start()
        began = time.monotonic()
        async for _ in engine.generate(request(output=5)):
            pass
        await engine.close()
        return time.monotonic() - began

    assert await seconds(0.02, virtual_time=False) >= 0.1
    assert await seconds(1000.0, virtual_time=True) < 1000.0


def test_costs_must_be_finite() -> None:
    with pytest.raises(ValueError, match="step_s"):
        CostProfile(step_s=float("nan"))


def refused_options(options: Sequence[str]) -> str:
    result = subprocess.run([*SIMULATED, "--fd", "0", *options], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    return result.stderr


def test_a_speed_of_nothing_is_refused() -> None:
    assert "--speed must be > 0" in refused_options(["--speed", "0"])
