"""Real commands in real leaves: what both sources tell of them, and what BPF alone does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from agentsched.cgroups import Leaf
from agentsched.cgroups.bpf import Event, Executed, Exited, Forked, OomKilled, Source, Threads
from tests.bpf.conftest import Start, events_until
from tests.cgroups.looking import eventually

pytestmark = pytest.mark.cgroups

PYTHON = (sys.executable, "-S", "-c")
BURN = "import time\nwhile time.process_time() < {seconds}: pass\n"
TOUCH = (
    "import mmap\nx = mmap.mmap(-1, {mib} << 20)\nfor i in range(0, len(x), 4096): x[i] = 1\n"
    "open({done!r}, 'w').close()\nopen({go!r}).read()\n"
)


def exited(pid: int, events: list[Event]) -> bool:
    return any(isinstance(event, Exited) and event.pid == pid for event in events)


def words_of(events: list[Event]) -> list[tuple[str, ...]]:
    return [event.words for event in events if isinstance(event, Executed)]


def on_a_disk(folder: Path) -> None:
    """Skip where files are in memory, or in another machine."""
    if os.major(os.stat(folder).st_dev) == 0:
        pytest.skip(f"{folder} is on no block device")


@pytest.mark.full_v2
def test_commands_of_a_leaf_are_seen_in_full_and_in_order(
    source: Source, leaf: Leaf, start: Start, tmp_path: Path
) -> None:
    source.watch(leaf)
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    text = f"cat {first}; cat {second}" + " " * 1000 + "# end"
    os.mkfifo(first)
    os.mkfifo(second)
    shell = start("sh", "-c", text)
    events: list[Event] = []
    for fifo in (first, second):
        events += events_until(source, lambda seen, fifo=fifo: ("cat", fifo) in words_of(seen))  # type: ignore[misc]
        open(fifo, "w").close()  # it ends only now
    events += events_until(source, lambda seen: exited(shell.pid, seen))
    expected = [("sh", "-c", text), ("cat", first), ("cat", second)]
    assert [words for words in words_of(events) if words in expected] == expected
    children = {event.pid for event in events if isinstance(event, Forked) and event.parent == shell.pid}
    cats = {event.pid for event in events if isinstance(event, Executed) and event.words[0] == "cat"}
    assert cats <= children
    assert {event.leaf for event in events} == {leaf.cgroup_id}
    facts = source.facts(leaf)
    assert facts.exits == (facts.forks or 0) + (source.name == "bpf")  # the shell was forked outside


def test_what_happens_elsewhere_is_not_told(kernel: Source, leaf: Leaf, start: Start) -> None:
    kernel.watch(leaf)
    inside = start("true")
    outside = subprocess.Popen(["sh", "-c", "true; exit 3"])
    outside.wait(10)
    events = events_until(kernel, lambda seen: exited(inside.pid, seen))
    assert outside.pid not in {event.pid for event in events}


@pytest.mark.full_v2
@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143), ("trap '' TERM; kill -TERM $$; exit 5", 5)],
)
def test_how_a_process_ended_is_told(
    kernel: Source, leaf: Leaf, start: Start, script: str, status: int
) -> None:
    kernel.watch(leaf)
    shell = start("sh", "-c", script)
    events = events_until(kernel, lambda seen: exited(shell.pid, seen))
    ends = [event.status for event in events if isinstance(event, Exited) and event.pid == shell.pid]
    assert ends == [status]
    assert shell.wait(10) in (status, 128 - status)


def test_a_short_command_is_not_missed(kernel: Source, leaf: Leaf, start: Start) -> None:
    kernel.watch(leaf)
    shell = start("bash", "-c", "for i in $(seq 40); do /bin/true $i; done")
    events = events_until(kernel, lambda seen: exited(shell.pid, seen))
    assert [words[1] for words in words_of(events) if words[0] == "/bin/true"] == [
        str(i) for i in range(1, 41)
    ]


def test_a_storm_of_processes_is_told_in_portions(kernel: Source, leaf: Leaf, start: Start) -> None:
    """Who asks must hear of it while it goes on."""
    kernel.watch(leaf)
    shell = start("bash", "-c", "for i in $(seq 300); do /bin/true $i; done")
    assert shell.wait(60) == 0
    first = kernel.events(0.0)
    assert not exited(shell.pid, first)
    events = first + events_until(kernel, lambda seen: exited(shell.pid, seen))
    assert [words[1] for words in words_of(events) if words[0] == "/bin/true"] == [
        str(i) for i in range(1, 301)
    ]


def test_long_commands_are_cut_and_say_so_or_are_read_elsewhere(
    kernel: Source, leaf: Leaf, start: Start
) -> None:
    kernel.watch(leaf)
    text = "read x # " + "y" * 20_000
    read, write = os.pipe()
    shell = start("sh", "-c", text, stdin=read)
    events = events_until(
        kernel, lambda seen: any(words[:1] == ("sh",) and len(words) > 2 for words in words_of(seen))
    )
    os.close(write)
    os.close(read)
    (seen,) = [e for e in events if isinstance(e, Executed) and e.pid == shell.pid and e.words[0] == "sh"]
    assert seen.words == ("sh", "-c", text) or not seen.whole


def test_cpu_time_is_the_kernels_own(source: Source, leaf: Leaf, start: Start) -> None:
    source.watch(leaf)
    assert start(*PYTHON, BURN.format(seconds=0.3)).wait(60) == 0
    used = leaf.usage().cpu_s
    assert source.facts(leaf).running_s == pytest.approx(used, rel=0.15)


@pytest.mark.full_v2
def test_time_asleep_and_threads_that_sleep(kernel: Source, leaf: Leaf, start: Start) -> None:
    kernel.watch(leaf)
    sleeper = start("sleep", "0.5")
    events_until(kernel, lambda seen: ("sleep", "0.5") in words_of(seen))
    assert eventually(lambda: kernel.facts(leaf).threads == Threads(asleep=1))
    events_until(kernel, lambda seen: exited(sleeper.pid, seen))
    assert (kernel.facts(leaf).asleep_s or 0.0) >= 0.4


def test_a_sleeping_process_is_seen_asleep(polled: Source, leaf: Leaf, start: Start) -> None:
    polled.watch(leaf)
    start("sleep", "60")
    assert eventually(lambda: polled.facts(leaf).threads == Threads(asleep=1))


def test_waiting_for_a_cpu_is_seen(kernel: Source, leaf: Leaf, start: Start) -> None:
    """Two that burn on one CPU each wait for about as long as the other runs."""
    kernel.watch(leaf)
    cpu = min(os.sched_getaffinity(0))
    pin = f"import os; os.sched_setaffinity(0, {{{cpu}}}); os.read(0, 1)\n"
    begin, let_go = os.pipe()
    burners = [start(*PYTHON, pin + BURN.format(seconds=1.0), stdin=begin) for _ in range(2)]
    os.close(begin)
    assert eventually(lambda: kernel.facts(leaf).threads == Threads(asleep=2), 60)
    os.close(let_go)  # both begin now
    assert [burner.wait(60) for burner in burners] == [0, 0]
    assert (kernel.facts(leaf).ready_s or 0.0) >= 0.15


def test_page_faults_are_counted(source: Source, leaf: Leaf, start: Start, tmp_path: Path) -> None:
    source.watch(leaf)
    go, done = tmp_path / "go", tmp_path / "done"
    os.mkfifo(go)
    toucher = start(*PYTHON, TOUCH.format(mib=32, done=str(done), go=str(go)))
    with open(go, "w"):  # opens once the other end reads: all is touched, and nothing has ended
        assert done.exists()
        assert 8192 <= (source.facts(leaf).page_faults or 0) <= 8192 + 20_000
    assert toucher.wait(60) == 0


@pytest.mark.full_v2
def test_victims_of_the_oom_killer_are_told(kernel: Source, leaf: Leaf, start: Start) -> None:
    kernel.watch(leaf)
    leaf.limit_memory(32 << 20)
    victim = start(*PYTHON, "x = bytearray(96 << 20)")
    assert victim.wait(60) == -9
    events = events_until(kernel, lambda seen: exited(victim.pid, seen))
    assert [event.pid for event in events if isinstance(event, OomKilled)] == [victim.pid]
    assert [event.status for event in events if isinstance(event, Exited)][-1:] == [137]
    assert kernel.facts(leaf).oom_kills == 1


def test_time_of_reclaim_is_counted(kernel: Source, leaf: Leaf, start: Start, tmp_path: Path) -> None:
    on_a_disk(tmp_path)
    kernel.watch(leaf)
    leaf.limit_memory(16 << 20)
    assert (
        start("dd", "if=/dev/zero", f"of={tmp_path / 'file'}", "bs=1M", "count=64", "status=none").wait(60)
        == 0
    )
    assert (kernel.facts(leaf).reclaim_s or 0.0) > 0.0


def test_block_io_is_counted(source: Source, leaf: Leaf, start: Start, tmp_path: Path) -> None:
    on_a_disk(tmp_path)
    file = tmp_path / "file"
    file.write_bytes(b"x" * (4 << 20))
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)
    source.watch(leaf)
    go = tmp_path / "go"
    os.mkfifo(go)
    shell = start("sh", "-c", f"dd if={file} of=/dev/null bs=1M iflag=direct status=none && read x < {go}")
    with open(go, "w"):
        facts = source.facts(leaf)
    assert shell.wait(60) in (0, 1)
    if source.name == "bpf":
        assert (facts.read_bytes or 0) >= 4 << 20
        assert (facts.io_s or 0.0) > 0.0


@pytest.mark.full_v2
def test_a_cgroup_made_inside_counts_as_its_leaf(kernel: Source, leaf: Leaf, start: Start) -> None:
    kernel.watch(leaf)
    folder = os.path.dirname(leaf.entries()[-1])
    script = f"mkdir {folder}/inner && echo 0 > {folder}/inner/cgroup.procs && /bin/true inner; exit 4"
    shell = start("sh", "-c", script)
    events = events_until(kernel, lambda seen: exited(shell.pid, seen))
    assert ("/bin/true", "inner") in words_of(events)
    assert {event.leaf for event in events} == {leaf.cgroup_id}


def test_what_is_forgotten_is_silent(kernel: Source, leaf: Leaf, start: Start) -> None:
    kernel.watch(leaf)
    kernel.forget(leaf)
    assert start("true").wait(10) == 0
    assert kernel.events(0.05) == []
