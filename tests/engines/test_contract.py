"""Our engines, each held to the contract suite."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from agentsched.engines.contract import TokenEngine
from agentsched.engines.cost import CostProfile
from agentsched.engines.inprocess import InProcessEngine
from agentsched.engines.process import EngineProcess
from agentsched.engines.simulated import simulated
from tests.engines.contract import EngineContract
from tests.engines.contract_host_tier import HostTierContract
from tests.engines.lab import BLOCK_TOKENS, CAPACITY_TOKENS, HOST_TOKENS

SIZES = ["--kv-tokens", str(CAPACITY_TOKENS), "--block-tokens", str(BLOCK_TOKENS)]


HOST_TIER = ["--host-tokens", str(HOST_TOKENS)]
NEEDS_TORCH = pytest.mark.skipif(find_spec("torch") is None, reason="the embedded engine needs torch")


def simulated_in_process(host_tokens: int = 0) -> TokenEngine:
    return InProcessEngine(
        simulated(CostProfile(), CAPACITY_TOKENS, host_tokens=host_tokens, block_tokens=BLOCK_TOKENS)
    )


def simulated_process(*more: str) -> TokenEngine:
    command = [sys.executable, "-m", "agentsched.engines.simulated", *SIZES, "--speed", "2", *more]
    return EngineProcess("simulated", command)


def embedded_process(folder: Path, *more: str) -> TokenEngine:
    from agentsched.engines.embedded.preset import ensure_model

    model = ensure_model(folder, progress=lambda line: None, preset="tiny")
    command = [sys.executable, "-m", "agentsched.engines.embedded", "--model", str(model), *SIZES, *more]
    return EngineProcess("embedded", command)


class TestSimulatedInProcess(EngineContract):
    @staticmethod
    def make(folder: Path) -> TokenEngine:
        return simulated_in_process()


class TestSimulatedProcess(EngineContract):
    @staticmethod
    def make(folder: Path) -> TokenEngine:
        return simulated_process()


@NEEDS_TORCH
class TestEmbeddedProcess(EngineContract):
    @staticmethod
    def make(folder: Path) -> TokenEngine:
        return embedded_process(folder)


class TestSimulatedInProcessHostTier(HostTierContract):
    @staticmethod
    def make(folder: Path) -> TokenEngine:
        return simulated_in_process(HOST_TOKENS)


class TestSimulatedProcessHostTier(HostTierContract):
    @staticmethod
    def make(folder: Path) -> TokenEngine:
        return simulated_process(*HOST_TIER)


@NEEDS_TORCH
class TestEmbeddedProcessHostTier(HostTierContract):
    @staticmethod
    def make(folder: Path) -> TokenEngine:
        return embedded_process(folder, *HOST_TIER)
