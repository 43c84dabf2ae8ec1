"""Our engines, each held to the contract suite."""

from __future__ import annotations

import sys

from agentsched.engines.contract import Engine
from agentsched.engines.inprocess import InProcessEngine
from agentsched.engines.process import EngineProcess
from agentsched.engines.simulated import CostProfile, simulated
from tests.engines.contract import BLOCK_TOKENS, CAPACITY_TOKENS, EngineContract


class TestSimulatedInProcess(EngineContract):
    @staticmethod
    def make() -> Engine:
        return InProcessEngine(simulated(CostProfile(), CAPACITY_TOKENS, block_tokens=BLOCK_TOKENS))


class TestSimulatedProcess(EngineContract):
    @staticmethod
    def make() -> Engine:
        sizes = ["--kv-tokens", str(CAPACITY_TOKENS), "--block-tokens", str(BLOCK_TOKENS)]
        command = [sys.executable, "-m", "agentsched.engines.simulated", *sizes, "--speed", "10"]
        return EngineProcess("simulated", command)
