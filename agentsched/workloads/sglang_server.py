"""A real SGLang server on this machine's CPU: for tests and benchmarks.

SGLang has an environment of its own, ``.venv-sglang``, which ``tests/sglang/environment/setup`` makes; or the
variable AGENTSCHED_SGLANG_PYTHON names the interpreter of another. The plugin in it is that of this checkout.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentsched.engines.sglang.plugin import NAME
from agentsched.engines.tied import tied

ROOT = Path(__file__).parents[2]
PYTHON_VARIABLE = "AGENTSCHED_SGLANG_PYTHON"
START_S = 240.0
PLUGIN = ("--radix-cache-backend", NAME)
"""The arguments that have the plugin's cache used."""

WITHOUT_PLUGINS = {"SGLANG_PLUGINS": "none"}
"""The variables that keep SGLang from even loading the plugin."""

_ENVIRONMENT = {
    "SGLANG_USE_CPU_ENGINE": "1",
    "SGLANG_PLUGINS": NAME,
    "CUDA_VISIBLE_DEVICES": "",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
_ARGUMENTS = shlex.split(
    "--served-model-name tiny --device cpu --load-format dummy --dtype float32 "
    "--attention-backend torch_native --sampling-backend pytorch --grammar-backend none --disable-cuda-graph "
    "--skip-server-warmup --mem-fraction-static 0.2 --enable-metrics --enable-cache-report --host 127.0.0.1"
)


class SglangFailed(Exception):
    """There is no SGLang here, or its server did not start; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of a server, in tokens: its KV, the longest context, what one batch prefills; and calls at once."""

    kv_tokens: int = 4_000
    context_tokens: int = 3_000
    chunk_tokens: int = 2_048
    max_running: int = 8

    def arguments(self) -> list[str]:
        return [
            *("--max-total-tokens", str(self.kv_tokens), "--context-length", str(self.context_tokens)),
            *("--chunked-prefill-size", str(self.chunk_tokens)),
            *("--max-running-requests", str(self.max_running)),
        ]


def sglang_python() -> Path:
    """The interpreter of the environment with SGLang."""
    stated = os.environ.get(PYTHON_VARIABLE)
    return Path(stated) if stated else ROOT / ".venv-sglang/bin/python"


def missing() -> str | None:
    """Why no SGLang can be started here; None if one can. Takes some seconds."""
    python = sglang_python()
    if not python.exists():
        return f"no SGLang: {python} is not there; tests/sglang/environment/setup makes it"
    found = subprocess.run(
        [python, "-c", "import sglang, agentsched"], capture_output=True, text=True, env=_environment({})
    )
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
    limits: Limits = Limits()
    environment: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_path(self) -> Path:
        return self.folder / f"server-{self.port}.log"

    @property
    def log(self) -> str:
        return self.log_path.read_text("utf-8", errors="replace")

    def start(self) -> None:
        """Returns when it takes calls. Raises ``SglangFailed`` with the end of its log if it does not come
        up. From a thread that lives as long as the server may."""
        self._launch()
        assert self.process is not None
        deadline = time.monotonic() + START_S
        while not self.answers("/ready"):
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise SglangFailed(f"SGLang did not start:\n{self.log[-3000:]}")
            time.sleep(0.2)

    def _launch(self) -> None:
        command = [str(sglang_python()), "-m", "sglang.launch_server", "--model-path", str(self.folder)]
        command += [*_ARGUMENTS, "--port", str(self.port), *self.limits.arguments(), *self.arguments]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                tied(command, signal.SIGKILL),
                cwd=self.folder,
                env=_environment(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def answers(self, path: str) -> bool:
        try:
            with urllib.request.urlopen(self.url + path, timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def signal(self, number: signal.Signals) -> None:
        """To all of its processes."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """All of its processes, at once."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """Ours, without what leads to our packages: only a checkout's own code is the same for both."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ours = {"PYTHONPATH": str(ROOT)} if (ROOT / "pyproject.toml").exists() else {}
    return inherited | _ENVIRONMENT | ours | dict(more)
