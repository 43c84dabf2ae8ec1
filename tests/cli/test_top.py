"""``agentsched top`` of a real daemon, in a real terminal and without one."""

from __future__ import annotations

import asyncio
import os
import pty
import sys

import pytest

from tests.daemon.keyed import ACME, two_tenants
from tests.daemon.serving import served

DEADLINE_S = 60.0


async def top(*args: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, output and errors."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "agentsched", "top", *args),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"COLUMNS": "140"} | environment,
    )
    async with asyncio.timeout(DEADLINE_S):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_without_a_terminal_it_prints_what_is_now() -> None:
    async with served() as daemon:
        await daemon.chat("hello", program="mine")
        status, out, _ = await top("--url", daemon.url)
    assert status == 0
    assert "allowed" in out, "what is expected is told at once"
    assert "mine" in out
    assert "its agent is busy" in out
    assert "gets a place on simulated" in out


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9", "no daemon answers at http://127.0.0.1:9"),
        ("nonsense", "is no URL"),
    ],
)
async def test_where_there_is_no_daemon_it_says_what_to_do(url: str, said: str) -> None:
    status, _, err = await top("--url", url)
    assert status == 1
    assert said in err
    assert "Traceback" not in err


async def test_with_keys_it_shows_ones_own() -> None:
    async with served(declared=two_tenants()) as daemon:
        await daemon.chat("hello", program="ours", key=ACME)
        status, _, err = await top("--url", daemon.url)
        assert (status, "--key" in err) == (1, True)
        status, out, _ = await top("--url", daemon.url, AGENTSCHED_API_KEY=ACME)
    assert status == 0
    assert "tenant acme" in out
    assert "ours" in out


async def test_in_a_terminal_it_follows_and_q_quits() -> None:
    async with served() as daemon:
        terminal, theirs = pty.openpty()
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "agentsched", "top", "--url", daemon.url, "--every", "0.1"),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "140", "LINES": "30"},
        )
        os.close(theirs)
        seen = _Screen(terminal)
        try:
            async with asyncio.timeout(DEADLINE_S):
                await seen.wait_for("no program is open")
                await daemon.chat("hello", program="a-newcomer")
                await seen.wait_for("a-newcomer")
                os.write(terminal, b"s")
                await seen.wait_for("by KV")
                os.write(terminal, b"q")
                assert await process.wait() == 0
        finally:
            seen.close()
            if process.returncode is None:
                process.kill()


class _Screen:
    """What was written to a terminal."""

    def __init__(self, terminal: int) -> None:
        self._terminal = terminal
        self._text = b""
        self._came = asyncio.Event()
        os.set_blocking(terminal, False)
        asyncio.get_running_loop().add_reader(terminal, self._read)

    def _read(self) -> None:
        try:
            self._text += os.read(self._terminal, 65_536)
        except OSError:  # the other side is closed
            asyncio.get_running_loop().remove_reader(self._terminal)
        self._came.set()

    async def wait_for(self, text: str) -> None:
        while text.encode() not in self._text:
            self._came.clear()
            await self._came.wait()

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._terminal)
        os.close(self._terminal)
