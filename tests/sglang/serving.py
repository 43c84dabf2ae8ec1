"""A real SGLang server on the CPU, and a daemon's end of the channel to the plugin in it."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from agentsched.core.decisions import EngineOrder, Rank, Release, Retain, Segment, Worth
from agentsched.core.events import StepReport
from agentsched.engines.sglang.place import socket_path
from agentsched.engines.tied import tied
from agentsched.engines.upstream.orders import OrdersLink
from tests.daemon.serving import until

ROOT = Path(__file__).parents[2]
PYTHON_VARIABLE = "AGENTSCHED_SGLANG_PYTHON"
START_S = 240.0
POOL_TOKENS = 4_000
HEADER = "x-smg-routing-key"

ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_PLUGINS": "agentsched",
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
ARGUMENTS = (
    "--served-model-name tiny --device cpu --load-format dummy --dtype float32 "
    "--attention-backend torch_native --sampling-backend pytorch --grammar-backend none --disable-cuda-graph "
    f"--skip-server-warmup --max-total-tokens {POOL_TOKENS} --context-length 3000 --max-running-requests 8 "
    "--chunked-prefill-size 2048 --mem-fraction-static 0.2 --enable-metrics --enable-cache-report "
    "--host 127.0.0.1"
).split()
PLUGIN = ("--radix-cache-backend", "agentsched")


def sglang_python() -> Path:
    """The interpreter of the environment with SGLang."""
    stated = os.environ.get(PYTHON_VARIABLE)
    return Path(stated) if stated else ROOT / ".venv-sglang/bin/python"


def missing() -> str | None:
    """Why no SGLang can be started here; None if one can."""
    python = sglang_python()
    if not python.exists():
        return f"no SGLang: {python} is not there; 'scripts/test sglang' makes it"
    found = subprocess.run([python, "-c", "import sglang, agentsched"], capture_output=True, text=True)
    return None if found.returncode == 0 else f"no SGLang: {python} cannot import it: {found.stderr[-300:]}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class SglangServer:
    """One server, which may be started again at the same port. ``folder`` has the model, and gets the log."""

    folder: Path
    arguments: Sequence[str] = PLUGIN
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text("utf-8", errors="replace")

    def launch(self) -> None:
        command = [str(sglang_python()), "-m", "sglang.launch_server", "--model-path", str(self.folder)]
        command += [*ARGUMENTS, "--port", str(self.port), *self.arguments]
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                tied(command, signal.SIGKILL),
                cwd=self.folder,
                env=environment | ENVIRONMENT,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self) -> None:
        """Raises ``RuntimeError`` with the end of its log if it does not come up."""
        self.launch()
        assert self.process is not None
        deadline = time.monotonic() + START_S
        while not self.answers("/ready"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"SGLang did not start:\n{self.log[-3000:]}")
            time.sleep(0.2)

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        """All of its processes, at once."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def prompt(tokens: int, seed: int) -> list[int]:
    """Contexts of one seed continue one another; those of two have nothing in common."""
    return [(7 * i * i + seed * 31 + i * seed) % 500 + 5 for i in range(tokens)]


@dataclass
class Pilot:
    """Orders by hand, and calls without a daemon."""

    server: SglangServer
    http: aiohttp.ClientSession
    reports: list[StepReport] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    numbers: Any = field(default_factory=lambda: itertools.count(time.monotonic_ns()))
    link: OrdersLink | None = None

    async def connect(self) -> None:
        self.link = OrdersLink(
            socket_path(self.server.port), "e", report=self._take, other_life=lambda: None, retry_s=0.1
        )
        await self.link.open()

    def _take(self, report: StepReport) -> None:
        if report.snapshot:
            self.held.clear()
        self.reports.append(report)
        self.held |= {held.program: held.device_tokens for held in report.held}
        self.broken += report.broken_leases

    async def order(self, *orders: EngineOrder) -> None:
        """Returns when they are carried out: a new daemon is greeted after what came before it was read."""
        assert self.link is not None
        await self.link.send(list(orders))
        await self.look()

    async def look(self) -> StepReport:
        """A snapshot of now, by connecting anew."""
        if self.link is not None:
            await self.link.close()
        await self.connect()
        return self.reports[-1]

    async def call(self, program: str, tokens: int, *, seed: int, output: int = 4) -> int:
        """One call of so many tokens; how many of them were cached."""
        body = {
            "model": "tiny",
            "prompt": prompt(tokens, seed),
            "max_tokens": output,
            "temperature": 0,
            "ignore_eos": True,
        }
        async with self.http.post(
            self.server.url + "/v1/completions", json=body, headers={HEADER: program}
        ) as answer:
            said = await answer.json()
            assert answer.status == 200, said
            return int((said["usage"].get("prompt_tokens_details") or {}).get("cached_tokens") or 0)

    async def press(self, calls: int = 8, tokens: int = 700) -> None:
        """Fill the pool with contexts that nobody asked to keep."""
        for number in range(calls):
            await self.call(f"filler{number}", tokens, seed=100 + number)

    async def flush(self) -> None:
        """Forget all KV."""

        async def flushed() -> bool:
            async with self.http.post(self.server.url + "/flush_cache") as answer:
                return answer.status == 200

        await until(flushed, "the cache is flushed")

    async def post(self, path: str, body: Any) -> None:
        async with self.http.post(self.server.url + path, json=body) as answer:
            assert answer.status == 200, await answer.text()

    @asynccontextmanager
    async def slowly(self, forward_s: float) -> AsyncIterator[None]:
        """Each batch takes so many seconds longer."""
        await self.post("/slow_down", {"forward_sleep_time": forward_s})
        try:
            yield
        finally:
            await self.post("/slow_down", {"forward_sleep_time": None})

    async def sees(self, condition: Callable[[StepReport], bool], what: str) -> None:
        async def seen() -> bool:
            return condition(await self.look())

        await until(seen, what)

    def retain(self, program: str, *segments: tuple[int, int, float], ttl_s: float = 600.0) -> Retain:
        """Segments as start, end and value."""
        until_s = time.monotonic() + ttl_s
        kept = tuple(
            Segment(start_tokens=start, end_tokens=end, device=(Worth(until_s=until_s, value=value),))
            for start, end, value in segments
        )
        return Retain(**self._stamp(program), segments=kept, lease_until_s=until_s)

    def release(self, program: str) -> Release:
        return Release(**self._stamp(program))

    def rank(self, program: str, key: float) -> Rank:
        return Rank(**self._stamp(program), key=key)

    def _stamp(self, program: str) -> dict[str, Any]:
        return {"program": program, "engine": "e", "cause": 1, "epoch": 1, "seq": next(self.numbers)}
