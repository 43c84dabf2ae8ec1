"""What holds for every test: one thread a library, no model hub, the same examples in every run."""

from __future__ import annotations

import os
import sys

# Before any test module imports the libraries that read them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A controller of tool calls of their own, gone soon after them: others may run beside these tests.
os.environ.setdefault("AGENTSCHED_CONTROL_NAME", f"tests-{os.getpid()}")
os.environ.setdefault("AGENTSCHED_CONTROL_LINGER_S", "5")

import pytest
from hypothesis import settings

# Deadlines measure the machine, not the code; fixed examples make a failure in CI one that repeats here.
# `HYPOTHESIS_PROFILE=search` looks for new ones.
settings.register_profile("repeat", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None, max_examples=2_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeat"))

CGROUP_ROOTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified", "/sys/fs/cgroup/memory")


def cgroups_missing() -> str | None:
    """Why tests marked ``cgroups`` cannot run here; None if they can."""
    if not sys.platform.startswith("linux"):
        return f"cgroups: needs Linux, this is {sys.platform}"
    if os.geteuid() != 0:
        return "cgroups: needs root"
    if not any(os.access(root, os.W_OK) for root in CGROUP_ROOTS):
        return "cgroups: no writable hierarchy under /sys/fs/cgroup"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reason = cgroups_missing()
    if reason is None:
        return
    for item in items:
        if item.get_closest_marker("cgroups"):
            item.add_marker(pytest.mark.skip(reason=reason))
