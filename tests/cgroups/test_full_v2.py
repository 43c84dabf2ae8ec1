"""What only full cgroup v2 can do, on real control files: slow down, keep from reclaim, tell, delegate.

The controller's hands are tried on leaves of a small host; ``test_control`` has the whole of it. Machines
that mount v1 controllers skip this; the one of ``scripts/test vm`` has none of those.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from agentsched.cgroups import HostRefused, hierarchy, tree
from agentsched.cgroups.control.hands import Hands, Place
from agentsched.cgroups.control.sources import Events
from agentsched.cgroups.guard import Guard
from agentsched.cgroups.names import new_instance
from agentsched.cgroups.starting import inside
from agentsched.workloads.host_leaf import HostLeaf
from tests.cgroups.looking import eventually

pytestmark = [pytest.mark.cgroups, pytest.mark.full_v2]

MIB = 1 << 20
HOST_BYTES = 96 * MIB

# Takes so many MiB, and says when it had each.
GROW = """
import sys, time
held = []
for _ in range(int(sys.argv[1])):
    held.append(bytearray(b"x") * (1 << 20))
    print(time.monotonic(), flush=True)
"""
BURN = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass\n"


@pytest.fixture
def host() -> Iterator[HostLeaf]:
    if "memory" in hierarchy.here().v1:
        pytest.skip("memory is a v1 controller here, which has neither memory.high nor memory.low")
    try:
        leaf = HostLeaf("test-v2", HOST_BYTES)
    except HostRefused as error:
        pytest.skip(str(error))
    with leaf:
        yield leaf


@pytest.fixture
def hands() -> Iterator[Hands]:
    guard = Guard(new_instance())
    guard.watch([])
    yield Hands(guard)
    guard.close(wait=True)


def leaf_in(host: HostLeaf, program: str) -> Place:
    """A leaf where a runtime would have it."""
    folder = host.folder
    for part in ("agentsched", "instance", program, "call"):
        tree.write(f"{folder}/cgroup.subtree_control", "+cpu +memory")
        folder = f"{folder}/{part}"
        os.makedirs(folder, exist_ok=True)
    return Place(folder, {"v2": folder}, "v2", None)


def start(place: Place, *argv: str) -> subprocess.Popen[str]:
    words = inside(list(argv), os.environ, [f"{place.leaf}/cgroup.procs"])
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def grow(place: Place, mib: int) -> subprocess.Popen[str]:
    return start(place, sys.executable, "-S", "-c", GROW, str(mib))


def counted(place: Place, file: str, key: str) -> int:
    return tree.keyed(tree.read(f"{place.leaf}/{file}"), key)


def test_over_memory_high_a_call_is_slowed_more_and_more_and_goes_on_when_that_is_lifted(
    host: HostLeaf, hands: Hands
) -> None:
    place, events = leaf_in(host, "burst"), Events()
    hands.cap(place, 24 * MIB)
    events.watch_stop(place.leaf)
    with grow(place, 64) as burst:
        assert burst.stdout is not None
        had = [float(burst.stdout.readline())]
        while len(had) < 2 or had[-1] - had[-2] < 1.0:
            had.append(float(burst.stdout.readline()))
        first, *_, before, last = (later - earlier for earlier, later in pairwise(had))
        assert first < before < last, "the more it exceeds its cap, the longer each MiB takes"
        assert counted(place, "memory.events", "high") > 0
        assert counted(place, "memory.events", "oom_kill") == 0
        assert eventually(place.knobs().stopped), "it is known to wait"
        told = set[str]()
        while not {place.leaf, ""} <= told:  # by memory.events, and by the machine's pressure
            assert select.select([events], [], [], 20)[0]
            told |= events.take()
        events.close()
        hands.cap(place, None)
        rest = [float(line) for line in burst.stdout]
        assert len(had) + len(rest) == 64
        assert rest[-1] - rest[0] < 2 * last, "it is slowed no more"
    assert burst.returncode == 0


def test_a_cap_is_taken_back_by_the_watchdog_when_nobody_renews_it(host: HostLeaf, hands: Hands) -> None:
    place = leaf_in(host, "forgotten")
    hands.cap(place, 8 * MIB)
    hands.protect(place, 8 * MIB)
    hands.freeze(place)
    with start(place, "true") as frozen:
        assert eventually(lambda: frozen.pid in tree.pids(place.leaf))
        assert eventually(lambda: counted(place, "cgroup.events", "frozen") == 1)
        began_s = time.monotonic()
        assert frozen.wait(20) == 0
        assert time.monotonic() - began_s < 5.0
    assert tree.read(f"{place.leaf}/memory.high").strip() == "max"
    folder = place.leaf
    while folder != host.folder:
        assert tree.read(f"{folder}/memory.low").strip() == "0"
        folder = os.path.dirname(folder)


@pytest.fixture
def files(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """A small file and a large one that a page cache holds and can give back: /tmp may be in memory."""
    folder = request.config.rootpath / "out"
    folder.mkdir(exist_ok=True)
    small, large = folder / f"small-{os.getpid()}", folder / f"large-{os.getpid()}"
    for path, size in ((small, 32 * MIB), (large, 2 * HOST_BYTES)):
        with path.open("wb") as file:
            file.truncate(size)
    yield str(small), str(large)
    small.unlink()
    large.unlink()


def test_what_memory_low_protects_stays_when_a_neighbour_needs_memory(
    host: HostLeaf, hands: Hands, files: tuple[str, str]
) -> None:
    first, burst = leaf_in(host, "first"), leaf_in(host, "burst")
    with start(first, "sh", "-c", f"cat {files[0]} > /dev/null; echo; sleep 300") as survivor:
        assert survivor.stdout is not None
        survivor.stdout.readline()
        held = counted(first, "memory.stat", "file")
        if held < 30 * MIB:
            pytest.skip("the page cache of this file system is not counted")
        hands.protect(first, held + 4 * MIB)
        for protected in (True, False):
            if not protected:
                hands.protect(first, 0)
            with start(burst, "sh", "-c", f"cat {files[1]} > /dev/null") as reader:
                assert reader.wait(60) == 0
            assert (counted(first, "memory.stat", "file") > held * 7 // 8) == protected
        assert survivor.poll() is None
        hands.kill(first)
    assert survivor.returncode == -9


def test_cpu_time_goes_by_weight(host: HostLeaf, hands: Hands) -> None:
    heavy, light = leaf_in(host, "heavy"), leaf_in(host, "light")
    hands.weigh(os.path.dirname(heavy.leaf), 400, v1=False)
    with start(heavy, sys.executable, "-S", "-c", BURN), start(light, sys.executable, "-S", "-c", BURN):
        used = {}
        for place in (heavy, light):  # both burn
            assert eventually(lambda place=place: counted(place, "cpu.stat", "usage_usec") > 100_000)  # type: ignore[misc]
            used[place.leaf] = counted(place, "cpu.stat", "usage_usec")
        assert eventually(
            lambda: counted(light, "cpu.stat", "usage_usec") > used[light.leaf] + 200_000, within_s=30
        )
        gained = [counted(place, "cpu.stat", "usage_usec") - used[place.leaf] for place in (heavy, light)]
        hands.kill(heavy)
        hands.kill(light)
    assert gained[0] / gained[1] > 2.0


def test_growth_is_told_at_once_by_an_alarm_on_all_under_a_folder(host: HostLeaf, hands: Hands) -> None:
    place, events = leaf_in(host, "growing"), Events(pressure=False)
    above = os.path.join(host.folder, "agentsched")
    hands.alarm(above, 24 * MIB)
    events.watch_growth(above, 24 * MIB)
    assert events.take() == set()
    with grow(place, 64) as burst:
        readable, _, _ = select.select([events], [], [], 20)
        assert readable
        assert events.take() == {above}
        assert place.knobs().memory_now() < 48 * MIB, "in good time"
        hands.alarm(above, None)
        burst.communicate(timeout=20)
    events.close()
    assert burst.returncode == 0


DELEGATED = """
from agentsched.cgroups import Sandbox, ToolSpec
with Sandbox.open("p") as sandbox:
    print(sandbox.capabilities.memory_limit, sandbox.run(ToolSpec(argv=["true"])).exit_status)
    print(dict(sandbox.refused).get("v2"))
print(open("/proc/self/cgroup").read())
"""


@pytest.mark.parametrize("alone", [True, False])
def test_a_runtime_alone_in_its_folder_gets_all_controllers_and_one_in_company_says_why_not(
    host: HostLeaf, alone: bool
) -> None:
    own = f"{host.folder}/own"
    os.mkdir(own)
    company = [] if alone else ["sh", "-c", 'sleep 300 & exec "$@"', "sh"]
    words = [*company, sys.executable, "-c", DELEGATED]
    environment = os.environ | {"AGENTSCHED_CONTROL": "off"}
    entered = inside(words, environment, [f"{own}/cgroup.procs"])
    with subprocess.Popen(entered, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(3)]
        tree.kill(own)
    place = f"0::/{Path(own).relative_to('/sys/fs/cgroup')}"
    if alone:
        assert said == ["True 0", "None", f"{place}/agentsched-supervisor"]
    else:
        assert said[::2] == ["False 0", place]
        assert "1 other processes are in" in said[1]
        assert "Delegate=yes" in said[1]
