"""The proxies that ``gateway.py`` compares, as processes on one core: how each is started, and what it
uses."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

ROUTER_VERSION = "0.3.2"
START_S = 60.0
_NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 8192; }}
http {{
  access_log off; client_max_body_size 0; client_body_buffer_size 1m; client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  keepalive_requests 1000000000;
  upstream engine {{ server {upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"""


class Missing(Exception):
    """A contender is not here, and why."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Proxy:
    """A running one. ``name`` as in the results."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def _family(self) -> list[psutil.Process]:
        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def cpu_s(self) -> float:
        """CPU seconds so far, of all its processes."""
        return sum(sum(process.cpu_times()[:2]) for process in self._family())

    def memory_mb(self) -> float:
        """What only it has in memory (PSS): pages that it shares with others count in part."""
        return sum(process.memory_full_info().pss for process in self._family()) / 1e6


def _agentsched(port: int, upstream: str, folder: Path) -> list[str]:
    command = [sys.executable, "-m", "agentsched", "serve", "--port", str(port)]
    command += ["--state", str(folder / "state")]
    return [*command, "--upstream", f"http://{upstream}", "--upstream-kv-tokens", "100000000"]


def _plain(*options: str) -> Callable[[int, str, Path], list[str]]:
    def command(port: int, upstream: str, folder: Path) -> list[str]:
        module = "agentsched.workloads.bench._plain_proxy"
        return [sys.executable, "-m", module, str(port), f"http://{upstream}", *options]

    return command


def _nginx(port: int, upstream: str, folder: Path) -> list[str]:
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise Missing("nginx is not installed (apt-get install nginx)")
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, upstream=upstream, port=port))
    return [program, "-c", str(config), "-e", str(folder / "error.log")]


def _router(port: int, upstream: str, folder: Path) -> list[str]:
    program = router_program()
    command = [str(program), "launch", "--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    command += ["--worker-urls", f"http://{upstream}", "--prometheus-port", str(free_port())]
    return [*command, "--log-level", "error", "--disable-retries", "--disable-circuit-breaker"]


def router_program() -> Path:
    """The Rust router, in an environment of its own, installed on first use. Raises ``Missing``."""
    folder = Path.home() / ".cache" / "agentsched" / f"sglang-router-{ROUTER_VERSION}"
    program = folder / "bin" / "sglang-router"
    if not program.exists():
        steps = (
            [sys.executable, "-m", "venv", str(folder)],
            [str(folder / "bin" / "pip"), "install", "-q", f"sglang-router=={ROUTER_VERSION}"],
        )
        try:
            for step in steps:
                subprocess.run(step, check=True, capture_output=True, timeout=300)
        except (subprocess.SubprocessError, OSError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise Missing(f"sglang-router could not be installed: {error}") from None
    return program


CONTENDERS: dict[str, Callable[[int, str, Path], list[str]]] = {
    "aiohttp": _plain(),
    "aiohttp-uvloop": _plain("uvloop"),
    "agentsched": _agentsched,
    "nginx": _nginx,
    "sglang-router": _router,
}


@contextmanager
def running(name: str, upstream: str, core: int, folder: Path) -> Iterator[Proxy]:
    """One contender in front of ``upstream`` (HOST:PORT), on one core. Raises ``Missing``."""
    port = free_port()
    folder = folder / name
    folder.mkdir(parents=True, exist_ok=True)
    command = CONTENDERS[name](port, upstream, folder)
    with started(command, core, folder / "log") as process:
        await_port(port, process, folder / "log")
        yield Proxy(name, port, process)


@contextmanager
def started(command: list[str], core: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process on one core, ended in the end."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            ["taskset", "-c", str(core), *command], stdout=file, stderr=subprocess.STDOUT, env=os.environ
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def await_port(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Until a chat completion is answered there. Raises ``Missing`` if it never is."""
    body = b'{"model":"bench","messages":[{"role":"user","content":"hello"}]}'
    headers = {"Content-Type": "application/json"}
    deadline_s = time.monotonic() + START_S
    while time.monotonic() < deadline_s and process.poll() is None:
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        request = urllib.request.Request(url, body, headers)
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(0.1)
    raise Missing(f"it did not start; its log ends with: {log.read_text(errors='replace')[-300:]}")
