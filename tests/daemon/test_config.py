"""The configuration file: what it may say, what is wrong with it, and what a reload changes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import aiohttp
import msgspec
import pytest

from agentsched.daemon.config import ConfigError, load_config, options, restart_needed
from agentsched.daemon.config_pages import reference, template
from agentsched.daemon.settings import Config, Settings

REFERENCE = Path(__file__).parents[2] / "docs" / "configuration.md"


def written(folder: Path, text: str) -> Path:
    path = folder / "agentsched.toml"
    path.write_text(text, "utf-8")
    return path


def test_the_reference_page_is_the_one_of_the_code() -> None:
    assert REFERENCE.read_text("utf-8") == reference(), "agentsched config reference > docs/configuration.md"


def test_the_file_to_begin_with_says_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, template())) == Config()


def test_every_key_is_described_and_has_a_flag_of_its_own() -> None:
    flags = [option.flag for option in options()]
    assert len(set(flags)) == len(flags)
    assert all(option.meta.description for option in options())


def test_flags_stand_above_the_file_and_paths_are_relative_to_it(tmp_path: Path) -> None:
    path = written(tmp_path, '[daemon]\nport = 1\nping_s = 2\nlog = "events.jsonl"\n')
    config = load_config(path, {"daemon": {"port": 5}})
    assert (config.daemon.port, config.daemon.ping_s) == (5, 2.0)
    assert config.daemon.log == tmp_path / "events.jsonl"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[daemon]\nprot = 1", "daemon.prot is not known; did you mean port?"),
        ("[deamon]\nport = 1", "[deamon] is no table; did you mean daemon?"),
        ("port = 1", "port stands outside any table"),
        ('[daemon]\nport = "x"', "daemon.port: expected `int`, got `str`"),
        ("[daemon]\nmax_hold_s = 0", "daemon.max_hold_s: expected `float` > 0"),
        ('[daemon]\npolicy = "lru"', "there is no policy 'lru'; there are: fcfs-lru"),
        ('[daemon]\nno_care = ["x"]', "there is no rule 'x'; there are: claude-code-header"),
        ('[daemon]\nsocket_mode = "999"', "daemon.socket_mode"),
        ('[engine]\nkind = "gpu"', "there are: embedded, simulated"),
        ('[engine]\nkind = "simulated"\nmodel = "m"', "no meaning for the simulated engine"),
        ("[engine]\ncore = 4096", "core 4096 is not among those"),
        ('[telemetry]\notlp = "collector"', "http://"),
        ("[daemon", "is not TOML"),
        ("\x00", "is not TOML"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_config(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")


def test_what_needs_a_restart_is_told_apart(tmp_path: Path) -> None:
    new = Config(daemon=Settings(port=1, ping_s=1.0, policy="saga"))
    assert restart_needed(Config(), new) == ["daemon.port", "daemon.policy"]


def serve(*args: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "agentsched", "serve", "--engine", "simulated", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_hangup_reads_the_file_again_and_survives_a_wrong_one(tmp_path: Path) -> None:
    path = written(tmp_path, "[daemon]\nport = 0\n")
    with serve("--config", path) as process:
        assert process.stdout is not None
        assert "listening on" in process.stdout.readline()
        path.write_text("[daemon]\nport = 0\nping_s = -1\n")
        process.send_signal(signal.SIGHUP)
        assert "nothing is changed" in process.stdout.readline()
        path.write_text("[daemon]\nport = 1\nobserve = true\n")
        process.send_signal(signal.SIGHUP)
        assert "needs a restart to change: daemon.port" in process.stdout.readline()
        assert "read anew" in process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert "stopped" in process.stdout.read()
    assert process.returncode == 0


async def test_a_unix_socket_has_its_mode_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "agentsched.sock"
    process = await asyncio.to_thread(serve, "--socket", path, "--socket-mode", "0660")
    assert process.stdout is not None
    try:
        assert f"unix:{path}" in await asyncio.to_thread(process.stdout.readline)
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as http,
            http.get("http://daemon/health") as response,
        ):
            assert response.status == 200
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.communicate)
    assert not path.exists()


def test_what_a_killed_daemon_left_is_no_hindrance_but_a_file_is(tmp_path: Path) -> None:
    path = tmp_path / "agentsched.sock"
    with serve("--socket", path) as killed:
        assert killed.stdout is not None
        killed.stdout.readline()
        with serve("--socket", path) as second:
            assert "another process listens" in second.communicate()[0]
        killed.kill()
    with serve("--socket", path) as again:
        assert again.stdout is not None
        assert "listening" in again.stdout.readline()
        again.send_signal(signal.SIGTERM)
    path.write_text("")
    with serve("--socket", path) as refused:
        assert "is no socket" in refused.communicate()[0]


def test_the_command_checks_and_shows(tmp_path: Path) -> None:
    def run(*args: str | Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "agentsched", "config", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    path = written(tmp_path, "[daemon]\nport = 7\n")
    assert run("check", path).returncode == 0
    shown = json.loads(run("show", path).stdout)
    assert shown["daemon"]["port"] == 7
    assert shown["engine"] == json.loads(msgspec.json.encode(Config().engine, enc_hook=str))
    path.write_text("[daemon]\nport = -7\n")
    wrong = run("check", path)
    assert (wrong.returncode, "daemon.port" in wrong.stderr) == (1, True)
    assert os.linesep not in wrong.stderr.strip()
