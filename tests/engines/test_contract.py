"""Our engines, each held to the contract suite."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from agentsched.engines.contract import Engine
from agentsched.engines.cost import CostProfile
from agentsched.engines.inprocess import InProcessEngine
from agentsched.engines.process import EngineProcess
from agentsched.engines.simulated import simulated
from tests.engines.contract import EngineContract
from tests.engines.lab import BLOCK_TOKENS, CAPACITY_TOKENS

SIZES = ["--kv-tokens", str(CAPACITY_TOKENS), "--block-tokens", str(BLOCK_TOKENS)]


class TestSimulatedInProcess(EngineContract):
    @staticmethod
    def make(folder: Path) -> Engine:
        return InProcessEngine(simulated(CostProfile(), CAPACITY_TOKENS, block_tokens=BLOCK_TOKENS))


class TestSimulatedProcess(EngineContract):
    @staticmethod
    def make(folder: Path) -> Engine:
        command = [sys.executable, "-m", "agentsched.engines.simulated", *SIZES, "--speed", "2"]
        return EngineProcess("simulated", command)


@pytest.mark.skipif(find_spec("torch") is None, reason="the embedded engine needs torch")
class TestEmbeddedProcess(EngineContract):
    @staticmethod
    def make(folder: Path) -> Engine:
        from agentsched.engines.embedded.preset import ensure_model

        model = ensure_model(folder, progress=lambda line: None, preset="tiny")
        command = [sys.executable, "-m", "agentsched.engines.embedded", "--model", str(model), *SIZES]
        return EngineProcess("embedded", command)
