"""A real vLLM server on the CPU, with a made-up Llama."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from agentsched.engines.tied import tied
from agentsched.workloads import sglang_model as model
from agentsched.workloads.sglang_server import SglangServer
from tests.daemon.serving import quiet_port

ROOT = Path(__file__).parents[2]
PYTHON_VARIABLE = "AGENTSCHED_VLLM_PYTHON"
BLOCK_TOKENS = 32
BLOCKS = 128
POOL_TOKENS = BLOCKS * BLOCK_TOKENS
LLAMA = {"head_dim": 64, "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}
"""Heads as large as vLLM has kernels for."""

ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
}
ARGUMENTS = (
    "--served-model-name tiny --load-format dummy --dtype float32 --enforce-eager --max-model-len 3000 "
    f"--block-size {BLOCK_TOKENS} --num-gpu-blocks-override {BLOCKS} --max-num-seqs 1 "
    "--max-num-batched-tokens 3000 --enable-prompt-tokens-details --scheduling-policy priority "
    "--host 127.0.0.1"
).split()


def vllm_python() -> Path:
    """The interpreter of the environment with vLLM."""
    stated = os.environ.get(PYTHON_VARIABLE)
    return Path(stated) if stated else ROOT / ".venv-vllm/bin/python"


def missing() -> str | None:
    """Why no vLLM can be started here; None if one can."""
    python = vllm_python()
    if not python.exists():
        return f"no vLLM: {python} is not there; 'scripts/test vllm' makes it"
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('vllm') is None)"
    found = subprocess.run([python, "-c", look], check=False)
    return None if found.returncode == 0 else f"no vLLM: {python} has none"


@dataclass
class VllmServer(SglangServer):
    """One server, started as SGLang's is."""

    events_port: int = field(default_factory=quiet_port)
    replay_port: int = field(default_factory=quiet_port)

    @property
    def said(self) -> str:
        """Its URL, with what it does not tell."""
        events, replay = (f"tcp://127.0.0.1:{port}" for port in (self.events_port, self.replay_port))
        return f"{self.url}#priority,events={events},replay={replay}"

    def launch(self) -> None:
        if not (self.folder / "config.json").exists():
            model.write_model(self.folder)
            config = self.folder / "config.json"
            config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | LLAMA), "utf-8")
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events_port}",
            "replay_endpoint": f"tcp://*:{self.replay_port}",
        }
        command = [str(vllm_python()), "-m", "vllm.entrypoints.openai.api_server"]
        command += ["--model", str(self.folder), *ARGUMENTS, "--port", str(self.port)]
        command += ["--kv-events-config", json.dumps(events)]
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

    def answers(self, path: str) -> bool:
        return super().answers("/health" if path == "/ready" else path)
