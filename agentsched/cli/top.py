"""``agentsched top``: a daemon in the terminal, as the dashboard shows it."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

import aiohttp
import click
import msgspec
from rich.console import Console
from rich.live import Live

from agentsched.cli.screen import ORDERS, Screen
from agentsched.daemon.access import DASHBOARD_PATH, VIEW_PATH
from agentsched.daemon.dashboard.rows import FORMAT, View

PATIENCE_S = 5.0

# \b keeps click from rewrapping the paragraph that follows
EPILOG = """\b
Keys: q quits, s changes the order, up and down (or k and j) scroll,
space holds what is shown.

\b
Examples:
  agentsched top
  agentsched top --url http://127.0.0.1:8091 --every 0.5
  agentsched top --once                      # print it and end
  ssh -t HOST agentsched top
"""


@click.command(epilog=EPILOG)
@click.option(
    "--url", default="http://127.0.0.1:8090", envvar="AGENTSCHED_URL", show_default=True, show_envvar=True
)
@click.option(
    "--key",
    default="",
    envvar="AGENTSCHED_API_KEY",
    show_envvar=True,
    help="A tenant's key shows its own programs, an admin's all.",
)
@click.option("--every", default=1.0, show_default=True, type=click.FloatRange(0.1), help="Seconds.")
@click.option(
    "--once", is_flag=True, help="Print what is now, and end; so it does where there is no terminal."
)
def top(url: str, key: str, every: float, once: bool) -> None:
    """Watch what a daemon does: which program waits for what, what holds the KV, how near the cliff is."""
    once = once or not (sys.stdin.isatty() and sys.stdout.isatty())
    with contextlib.suppress(asyncio.CancelledError):
        asyncio.run(_once(url, key) if once else _watch(url, key, every))


async def _once(url: str, key: str) -> None:
    async with _asking(url, key) as daemon:
        console = Console()
        console.print(Screen().render(await daemon.view(), console.width, height=None))


async def _watch(url: str, key: str, every: float) -> None:
    async with _asking(url, key) as daemon:
        view = await daemon.view()
        screen, pressed = Screen(), _Pressed()
        console = Console()
        with _keys(pressed), Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                live.update(screen.render(view, console.width, console.height), refresh=True)
                key_pressed = await pressed.within(every)
                if key_pressed in ("q", "\x03"):
                    return
                _obey(screen, key_pressed)
                if key_pressed is None and not screen.held:
                    try:
                        view, screen.lost = await daemon.view(), ""
                    except click.ClickException as error:
                        screen.lost = error.message


def _obey(screen: Screen, key: str | None) -> None:
    match key:
        case "s":
            screen.order = ORDERS[(ORDERS.index(screen.order) + 1) % len(ORDERS)]
        case "j" | "\x1b[B":
            screen.first += 1
        case "k" | "\x1b[A":
            screen.first = max(0, screen.first - 1)
        case " ":
            screen.held = not screen.held


@dataclass
class _Pressed:
    """Keys, one after the other; those with a sequence of their own (arrows) whole."""

    _queue: asyncio.Queue[str] = field(default_factory=asyncio.Queue)

    def read(self) -> None:
        text = sys.stdin.buffer.raw.read(64) if hasattr(sys.stdin.buffer, "raw") else b""
        keys = (text or b"\x03").decode(errors="replace")
        if keys.startswith("\x1b"):
            self._queue.put_nowait(keys)
        else:
            for key in keys:
                self._queue.put_nowait(key)

    async def within(self, seconds: float) -> str | None:
        try:
            async with asyncio.timeout(seconds):
                return await self._queue.get()
        except TimeoutError:
            return None


@contextlib.contextmanager
def _keys(pressed: _Pressed) -> Iterator[None]:
    """Keys come at once, and are not echoed; the terminal is as it was afterwards."""
    stdin = sys.stdin.fileno()
    before = termios.tcgetattr(stdin)
    loop = asyncio.get_running_loop()
    tty.setcbreak(stdin)
    loop.add_reader(stdin, pressed.read)
    try:
        yield
    finally:
        loop.remove_reader(stdin)
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


class _Daemon:
    def __init__(self, http: aiohttp.ClientSession, url: str) -> None:
        self._http = http
        self._url = url.rstrip("/")

    async def view(self) -> View:
        """What is now. Raises ``click.ClickException`` that says what to do."""
        try:
            async with self._http.get(f"{self._url}{VIEW_PATH}", params={"brief": "1"}) as answer:
                body = await answer.read()
        except aiohttp.InvalidURL:
            raise click.ClickException(
                f"--url {self._url!r} is no URL of a daemon, as http://127.0.0.1:8090 is"
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            raise click.ClickException(
                f"no daemon answers at {self._url} ({error or type(error).__name__}): start one with "
                "'agentsched serve', or name another with --url"
            ) from None
        if answer.status == 401:
            raise click.ClickException("the daemon asks for a key: give one with --key or AGENTSCHED_API_KEY")
        if answer.status != 200:
            raise click.ClickException(
                f"{self._url} answers {answer.status}: it is no agentsched daemon, or one without "
                f"{DASHBOARD_PATH}"
            )
        try:
            view = msgspec.json.decode(body, type=View)
        except msgspec.MsgspecError:
            view = None
        if view is None or view.format != FORMAT:
            raise click.ClickException(f"the daemon at {self._url} is of another version of agentsched")
        return view


@contextlib.asynccontextmanager
async def _asking(url: str, key: str) -> AsyncIterator[_Daemon]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    timeout = aiohttp.ClientTimeout(total=PATIENCE_S)
    async with aiohttp.ClientSession(headers=headers, timeout=timeout) as http:
        yield _Daemon(http, url)
