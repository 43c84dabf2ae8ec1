"""The state file: schemas, files that cannot be used, and disks that are full."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentsched import __version__
from agentsched.daemon.charges import Charges
from agentsched.daemon.state import Database, StateError
from agentsched.daemon.state.database import FILE
from agentsched.daemon.state.migrations import MIGRATIONS
from agentsched.daemon.state.records import CHARGES, ProgramFacts, SavedProgram, models, programs, records
from tests.daemon.serving import SLOW, chat, served

LATER = ("ALTER TABLE programs ADD COLUMN mood TEXT NOT NULL DEFAULT 'calm'", "CREATE TABLE more (a)")
SAVED = SavedProgram("p", "default", "above", 100.5, 200.5, 3, 4_000, ProgramFacts(asked={"call_1": "bash"}))


def written(folder: Path) -> SavedProgram:
    database = Database(folder)
    database.write({("programs", ("p",)): SAVED.row()})
    database.close()
    return SAVED


def schema_of(folder: Path) -> tuple[int, list[str]]:
    with sqlite3.connect(folder / FILE) as connection:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        rows = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
        found = [row[0] for row in rows]
    connection.close()
    return version, found


def test_what_is_written_is_read_by_the_next_and_by_nobody_else(tmp_path: Path) -> None:
    saved = written(tmp_path / "a" / "b")
    folder = tmp_path / "a" / "b"
    assert stat.S_IMODE((folder / FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    database = Database(folder)
    assert programs(database) == [saved]
    database.close()
    database.close()


@pytest.mark.parametrize("known", range(len(MIGRATIONS) + 1))
def test_every_earlier_schema_comes_to_the_present_one(tmp_path: Path, known: int) -> None:
    """As do the rows, from the schema on that has them."""
    old, new = tmp_path / "old", tmp_path / "new"
    Database(old, MIGRATIONS[:known]).close()
    if known:
        written(old)
    database = Database(old)
    assert programs(database) == ([SAVED] if known else [])
    database.close()
    Database(new).close()
    assert schema_of(old) == schema_of(new)


def test_a_later_step_keeps_what_there_is(tmp_path: Path) -> None:
    written(tmp_path)
    database = Database(tmp_path, (*MIGRATIONS, LATER))
    assert list(database.rows("SELECT program, mood FROM programs")) == [("p", "calm")]
    database.close()
    assert schema_of(tmp_path)[0] == len(MIGRATIONS) + 1


def test_a_step_that_fails_changes_nothing(tmp_path: Path) -> None:
    written(tmp_path)
    before = schema_of(tmp_path)
    with pytest.raises(StateError, match="no such table: nowhere"):
        Database(tmp_path, (*MIGRATIONS, (*LATER, "INSERT INTO nowhere VALUES (1)")))
    assert schema_of(tmp_path) == before
    database = Database(tmp_path)
    assert programs(database) == [SAVED]
    database.close()


def test_a_later_version_s_file_is_refused_and_kept(tmp_path: Path) -> None:
    database = Database(tmp_path, (*MIGRATIONS, LATER))
    database.write({("facts", ("agentsched",)): ("9.8.7",)})
    database.close()
    with pytest.raises(StateError) as refused:
        Database(tmp_path)
    for words in (
        str(tmp_path / FILE),
        f"schema {len(MIGRATIONS) + 1}, written by agentsched 9.8.7",
        f"this is agentsched {__version__}, which knows schemas up to {len(MIGRATIONS)}",
    ):
        assert words in str(refused.value)
    assert schema_of(tmp_path)[0] == len(MIGRATIONS) + 1


def test_somebody_else_s_database_is_refused_and_kept(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    connection.close()
    with pytest.raises(StateError, match="something else"):
        Database(tmp_path)
    assert schema_of(tmp_path) == (0, ["CREATE TABLE theirs (a)"])


@pytest.mark.parametrize("damage", ["a text", "pages"])
def test_a_damaged_file_is_set_aside_loudly(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path)
    data = bytearray((tmp_path / FILE).read_bytes())
    if damage == "a text":
        data = bytearray(b"this is no database, whatever its name says. " * 40)
    else:
        data[4096:] = bytes(len(data) - 4096)
    (tmp_path / FILE).write_bytes(data)
    database = Database(tmp_path)
    assert programs(database) == []
    database.close()
    (aside,) = tmp_path.glob(f"{FILE}.damaged-*")
    assert aside.read_bytes() == data
    (said,) = [record for record in caplog.records if record.levelname == "ERROR"]
    assert "IS DAMAGED" in said.getMessage()
    assert str(aside) in said.getMessage()


def test_a_row_that_cannot_be_read_is_left_out_and_that_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    written(tmp_path)
    database = Database(tmp_path)
    database.write({("programs", ("q",)): (*SAVED.row()[:-1], "no JSON"), ("models", ("core",)): (1.0, b"x")})
    assert programs(database) == [SAVED]
    assert models(database) is None
    database.close()
    assert [record.getMessage().split(":")[0] for record in caplog.records] == [
        "1 rows of the state's programs cannot be read and are left out",
        "1 rows of the state's models cannot be read and are left out",
    ]


def test_two_daemons_cannot_share_a_state(tmp_path: Path) -> None:
    first = Database(tmp_path)
    with pytest.raises(StateError, match=r"in use by another daemon \(process \d+\); choose another"):
        Database(tmp_path)
    first.close()
    Database(tmp_path).close()


def test_a_folder_that_cannot_be_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot be used"):
        Database(tmp_path / "file" / "state")


def test_epochs_rise_also_when_clocks_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []
    for unix_s in (1e9, 1e9, 5e8, 2e9):
        monkeypatch.setattr("time.time", lambda unix_s=unix_s: unix_s)
        database = Database(tmp_path)
        epochs.append(database.begin_epoch())
        database.close()
    assert epochs == [10**9, 10**9 + 1, 10**9 + 2, 2 * 10**9]


@pytest.fixture
def short_of_disk(tmp_path: Path) -> Iterator[None]:
    """No file of this process can grow beyond what a daemon's state begins with."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


async def test_with_a_full_disk_the_daemon_goes_on_and_says_so_once(
    tmp_path: Path, short_of_disk: None, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentsched.daemon.state.writer.RETRY_S", 0.05)
    state = tmp_path / "state"
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with served(state=state) as served_:
        await served_.chat("/say before", program="before")
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, most))
        while not served_.daemon.state_failing:
            assert (await served_.chat("/say meanwhile", program="meanwhile"))[0] == 200
        assert await served_.metric("agentsched_state_failing") == 1
        for number in range(30):
            assert (await served_.chat("/say meanwhile", program=f"meanwhile-{number}"))[0] == 200
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        await served_.chat("/say after", program="after")
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(said) == 2
    assert "cannot be written" in said[0]
    assert "written again" in said[1]
    database = Database(state)
    names = {saved.program for saved in programs(database)}
    database.close()
    assert {"before", "after", *(f"meanwhile-{number}" for number in range(30))} <= names


FULL_FROM_THE_START = """
import resource, sys
from pathlib import Path
from agentsched.daemon.state import Database
database = Database(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
print(database.begin_epoch())
"""


def test_with_a_full_disk_a_daemon_begins_all_the_same(tmp_path: Path) -> None:
    written(tmp_path)
    argv = [sys.executable, "-c", FULL_FROM_THE_START, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 10**9
    assert "cannot be written" in done.stderr


async def test_a_call_with_two_clients_counts_once(tmp_path: Path) -> None:
    async with served(SLOW, state=tmp_path) as served_:
        calls = [served_.chat("no meaning", program="p", max_tokens=30) for _ in range(2)]
        first, second = await asyncio.gather(*calls)
        assert first[1]["id"] == second[1]["id"]
    database = Database(tmp_path)
    assert records(database, CHARGES, Charges)["default"].calls_finished == 1
    database.close()


async def test_accounts_count_what_was_answered(tmp_path: Path) -> None:
    async with served(state=tmp_path) as served_:
        used = [(await served_.chat("/say yes", program="p"))[1]["usage"] for _ in range(3)]
        async with served_.http.post(
            served_.url + "/v1/chat/completions", json=chat("/say yes", stream=True)
        ) as answer:
            await answer.read()
        assert (await served_.chat("x" * 100_000))[0] == 400
    database = Database(tmp_path)
    account = records(database, CHARGES, Charges)["default"]
    database.close()
    prompt, output = (4 * used[0][f"{kind}_tokens"] for kind in ("prompt", "completion"))
    assert (account.calls_finished, account.prompt_tokens, account.output_tokens) == (4, prompt, output)
    assert 0 < account.cached_tokens < prompt
