"""What readers make of the output of real tools, recorded as they ran (``outputs/``)."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentsched.cgroups.commands import Words, programs
from agentsched.cgroups.progress import Reader, Told, Tracker, register
from agentsched.cgroups.progress import registry as registry_module

OUTPUTS = Path(__file__).parent / "outputs"
RECORDED = sorted(path.name for path in OUTPUTS.iterdir())

COMMANDS = {
    "cargo_test.txt": "cargo test",
    "cmake_make.txt": "make -C build",
    "curl.txt": "curl -O http://host/blob",
    "dpkg.txt": "dpkg -i one.deb two.deb three.deb",
    "git.txt": "git clone --progress a b",
    "jest.txt": "npx jest jt",
    "make.txt": "make",
    "mocha.txt": "npx mocha",
    "mocha_tap.txt": "npx mocha -R tap",
    "ninja.txt": "ninja -C build",
    "node_test.txt": "node --test",
    "pip.txt": "pip install pytest httpx",
    "pnpm.txt": "npx -y pnpm@9 install",
    "pytest.txt": "cd suite && python -m pytest",
    "pytest_count.txt": "pytest",
    "pytest_quiet.txt": "pytest -q",
    "pytest_verbose.txt": "python3 -m pytest -v",
    "pytest_xdist.txt": "timeout 60 pytest -n 2",
    "pytest_xdist_verbose.txt": "pytest -n 2 -v",
    "tqdm.txt": "python train.py",
    "unittest.txt": "python -m unittest utest",
    "unittest_verbose.txt": "python -m unittest -v utest",
    "vitest.txt": "npx vitest run",
    "wget.txt": "wget http://host/blob",
    "yarn.txt": "npx -y yarn@1 install",
}


def output(name: str) -> bytes:
    return (OUTPUTS / name).read_bytes()


def track(command: str, data: bytes, known: dict[str, int] | None = None, chunk: int = 64) -> list[Told]:
    """What was told, each time that it rose. All at one time, so that shares are those of the work."""
    tracker = Tracker(programs((), command), known)
    told: list[Told] = []
    for begin in range(0, len(data), chunk):
        tracker.feed(data[begin : begin + chunk], 1.0)
        now = tracker.told(1.0)
        if now is not None and (not told or now != told[-1]):
            told.append(now)
    return told


def counted(command: str, data: bytes) -> dict[str, int]:
    tracker = Tracker(programs((), command))
    tracker.feed(data, 1.0)
    return tracker.counted()


def up_to(data: bytes, mark: bytes) -> bytes:
    return data[: data.index(mark) + len(mark)]


def test_every_recorded_tool_has_a_command() -> None:
    assert sorted(COMMANDS) == RECORDED


# What was told when the output had come to the mark.
HALFWAY = [
    ("pytest.txt", b"test_b.py ...", 28 / 32),
    ("pytest.txt", b"test_a.py .........", 9 / 32),
    ("pytest_count.txt", b"[25/32]", 25 / 32),
    ("pytest_verbose.txt", b"test_a[15] \x1b[32mPASSED", 16 / 32),
    ("pytest_verbose.txt", b"test_a[15]", 15 / 32),
    ("pytest_xdist.txt", b"\n........", 8 / 32),
    ("pytest_xdist_verbose.txt", b"[ 12%] PASSED test_a.py::test_a[1] \n", 4 / 32),
    ("cmake_make.txt", b"[ 42%]", 0.35),
    ("cmake_make.txt", b"[ 42%] Building", 0.42),
    ("ninja.txt", b"[7/14] Building", 0.5),
    ("pip.txt", b"Installing collected packages: typing", None),
    ("pip.txt", b"httpcore, anyio, httpx\n", 0.6),
    ("cargo_test.txt", b"test tests::a ... ok", 3 / 5),
    ("dpkg.txt", b"Setting up fix-one (1.0) ...\n", 4 / 6),
    ("yarn.txt", b"[3/4] Linking", 0.5),
    ("pnpm.txt", b"downloaded 2, added 2", 0.9),
    ("curl.txt", b" 43 8789k   43 3840k    0     0  3195k", 0.43),
    ("wget.txt", b"  1450K .......... .......... .......... .......... .......... 51%", 0.51),
    ("git.txt", b"Receiving objects:  44%", 0.05 + 0.75 * 0.44),
    ("tqdm.txt", b"", None),
    ("make.txt", b"cc -O1 -c -o f9.o f9.c\n", None),
    ("mocha.txt", b"t5\n", None),
    ("pytest_quiet.txt", b"............................s..", None),
]


# Tools that tell no total do so once the same command has run before.
RUN_BEFORE = [
    ("pytest_quiet.txt", b"................", 16 / 32),
    ("unittest.txt", b"............", 12 / 40),
    ("unittest_verbose.txt", b"test_10 (utest.T.test_10) ... ok", 3 / 40),
    ("mocha.txt", b"t5\n", 6 / 12),
    ("jest.txt", b"PASS jt/b.test.js\n", 2 / 3),
    ("vitest.txt", b"207\x1b[2mms\x1b[22m\x1b[39m\n", 1 / 2),
    ("node_test.txt", b"ok 4 - t3\n", 4 / 8),
    ("cargo_test.txt", b"test tests::a ... ok", 3 / 7),
]


@pytest.mark.parametrize(
    ("name", "mark", "share", "ran_before"),
    [*((*case, False) for case in HALFWAY), *((*case, True) for case in RUN_BEFORE)],
)
def test_the_share_halfway(name: str, mark: bytes, share: float | None, ran_before: bool) -> None:
    data = output(name)
    assert mark in data
    known = counted(COMMANDS[name], data) if ran_before else None
    told = track(COMMANDS[name], up_to(data, mark), known)
    assert (told[-1].done_fraction if told else None) == (None if share is None else pytest.approx(share))


@pytest.mark.parametrize("name", RECORDED)
def test_shares_rise_and_where_all_was_seen_reach_the_end(name: str) -> None:
    data = output(name)
    told = track(COMMANDS[name], data, counted(COMMANDS[name], data), chunk=7)
    shares = [each.done_fraction for each in told]
    assert shares == sorted(shares)
    assert all(0 < share <= 1 for share in shares)
    assert all(each.source for each in told)
    if name == "make.txt":
        assert told == []
    elif name not in ("yarn.txt", "git.txt"):  # silent in the last step; no deltas to resolve
        assert shares[-1] >= 0.95


@pytest.mark.parametrize("name", RECORDED)
def test_a_script_that_runs_the_tool_tells_as_much_or_nothing(name: str) -> None:
    told = track("./run.sh", output(name))
    assert [each.done_fraction for each in told] == sorted(each.done_fraction for each in told)


def test_a_script_that_runs_pytest_is_read_as_pytest() -> None:
    told = track("tox -e py311", up_to(output("pytest.txt"), b"test_b.py ..."))
    assert told[-1] == Told(28 / 32, "28 of 32 tests")


def test_quiet_pytest_is_read_by_its_percentages_once_a_line_is_full() -> None:
    line = b"." * 72 + b" [ 12%]\n"
    told = track("pytest -q", line + b"." * 36)
    assert told[-1].done_fraction == pytest.approx(0.18, abs=0.01)


def test_subtests_are_no_tests() -> None:
    line = b"........................uu.uu.uu....s.....uu....uuu..............u...... [ 47%]\n"
    told = track("pytest -q -n 2", line)
    assert told[-1].done_fraction == pytest.approx(0.47, abs=0.01)
    assert told[-1].source.startswith("60 of 128")


def test_deselected_tests_do_not_count() -> None:
    told = track("pytest", b"collected 40 items / 30 deselected / 10 selected\n\ntest_a.py .....")
    assert told[-1].done_fraction == 0.5


def test_what_tests_print_is_no_result() -> None:
    data = b"collected 4 items\n\ntest_a.py .\n=== FAILURES ===\n....\nE   x::y FAILED\n"
    assert track("pytest", data[: data.index(b"\n===")])[-1].done_fraction == 0.25
    assert track("pytest", b"hello\nFAILED to connect\n3 of 4 planets\n") == []


def test_several_programs_share_the_whole() -> None:
    pip = output("pip.txt")
    tests = output("pytest.txt")
    command = "pip install -e . && pytest"
    assert track(command, up_to(pip, b"anyio, httpx\n"))[-1].done_fraction == pytest.approx(0.3)
    assert track(command, pip)[-1].done_fraction == pytest.approx(0.5)
    halfway = pip + up_to(tests, b"test_a.py ........")
    assert track(command, halfway)[-1].done_fraction == pytest.approx(0.5 + 0.5 * 8 / 32)
    twice = "pytest a; pytest b"
    assert track(twice, tests + up_to(tests, b"test_a.py ........"))[-1].done_fraction == pytest.approx(0.625)


def test_a_counter_that_begins_anew_tells_nothing_more() -> None:
    bars = b"".join(b"\rload: %d%%" % share for share in range(0, 60, 10))
    told = track("python fetch.py", bars + b"\rload: 5%" + b"\rload: 99%")
    assert told[-1].done_fraction == 0.5


@pytest.mark.parametrize(
    "line",
    [b"coverage: 80%\n", b"on 3/4 at 12/31\n", b"a.py 10 2 80%\nb.py 10 1 90%\nc.py 5 0 100%\n", b"50%\n"],
)
def test_a_number_alone_is_no_progress(line: bytes) -> None:
    assert track("python x.py", line * 3) == []


def test_time_before_the_work_began_does_not_come_again() -> None:
    tracker = Tracker(programs((), "pytest"))
    tracker.feed(b"collected 10 items\n", 6.0)
    tracker.told(6.0)
    tracker.feed(b"\ntest_a.py .....", 8.0)
    told = tracker.told(8.0)
    assert told is not None
    assert told.done_fraction == pytest.approx(8.0 / 10.0)
    young = Tracker(programs((), "pytest"))
    young.feed(b"collected 100 items\n", 6.0)
    young.feed(b"\ntest_a.py .", 6.01)
    told = young.told(6.01)
    assert told is not None
    assert told.done_fraction == pytest.approx(0.5, abs=0.02)


def test_escape_sequences_and_carriage_returns_are_no_text() -> None:
    data = b"\x1b[1mcollecting ... \x1b[0m\rcollected 2 items\r\n\r\n\x1b[32mtest_a.py .\x1b[0m"
    assert track("pytest", data)[-1].done_fraction == 0.5


@given(st.sampled_from(RECORDED), st.lists(st.integers(0, 5000), max_size=30))
def test_where_chunks_end_changes_nothing(name: str, cuts: list[int]) -> None:
    data, command = output(name), COMMANDS[name]
    known = counted(command, data)
    tracker = Tracker(programs((), command), known)
    at = 0
    for cut in [*sorted(cuts), len(data)]:
        tracker.feed(data[at:cut], 2.0)
        at = max(at, cut)
    whole = Tracker(programs((), command), known)
    whole.feed(data, 2.0)
    assert tracker.told(2.0) == whole.told(2.0)
    assert tracker.counted() == whole.counted()


PIECES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([output(name)[:3000] for name in RECORDED]),
    st.sampled_from(
        [b"collected 9 items\n", b"[3/0] x\n", b"1..0\n", b"%\r", b"\x1b[", b"9/0\n", b"." * 9000]
    ),
)


@given(st.sampled_from([*COMMANDS.values(), "make", "", "x" * 9000]), st.lists(PIECES, max_size=12))
def test_nothing_raises_and_nothing_falls_whatever_comes(command: str, pieces: list[bytes]) -> None:
    tracker = Tracker(programs((), command), {"pytest": 3, "unittest": 1})
    before = 0.0
    for number, piece in enumerate(pieces):
        tracker.feed(piece, float(number))
        told = tracker.told(float(number))
        assert told is None or before <= told.done_fraction <= 1.0
        before = told.done_fraction if told else before
    assert all(count > 0 for count in tracker.counted().values())


def test_a_flood_is_read_in_part_and_held_for_no_time() -> None:
    tracker = Tracker(programs((), "pytest"))
    tracker.feed(b"collected 4 items\n\ntest_a.py .\n", 0.1)
    for number in range(3000):
        tracker.feed(b"y\n" * 32768, number / 1000)
    assert tracker.told(3.0) == Told(0.25, "1 of 4 tests")
    tracker.feed(b"\ntest_b.py ..                          [ 75%]\n", 10.0)
    told = tracker.told(10.0)
    assert told is not None
    assert told.done_fraction > 0.7


class Broken(Reader):
    def line(self, text: bytes) -> None:
        raise RuntimeError("no")

    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        return 2.0


class Halfway(Reader):
    def fraction(self, unfinished: bytes, elapsed_s: float) -> float | None:
        self.source = "lines"
        return 0.5 if elapsed_s > 0 else None


def test_others_can_add_readers_and_their_faults_stay_theirs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry_module, "_added", [])

    def mine(words: Words) -> Reader | None:
        return {"ours": Halfway, "bad": Broken}.get(words[0], lambda: None)()

    register(mine)
    assert track("ours --all", b"anything")[-1] == Told(0.5, "lines")
    with caplog.at_level(logging.ERROR):
        assert track("bad", b"one\ntwo\n") == []
    assert "the progress reader Broken failed" in caplog.text
