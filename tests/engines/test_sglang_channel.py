"""Both ends of the channel to SGLang's plugin, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentsched.core.decisions import EngineOrder, Rank, Release
from agentsched.core.events import StepReport
from agentsched.engines import wire
from agentsched.engines.contract import Capabilities
from agentsched.engines.sglang.channel import Channel
from agentsched.engines.sglang.place import UnsafePlace, make_folder, socket_path
from agentsched.engines.upstream.orders import NoChannel, OrdersLink, Standing
from tests.daemon.serving import until as until_it_is_so

CAN = Capabilities(kind="sglang", capacity_tokens=100, block_tokens=1, max_context_tokens=100, vocabulary=0)
DEADLINE_S = 10.0


async def until(condition: Callable[[], object]) -> None:
    await until_it_is_so(condition, "what the test waits for")


@dataclass
class Server:
    """The plugin's end, polled as SGLang's scheduler would."""

    path: Path
    life: str = "one"
    channel: Channel | None = None
    orders: list[EngineOrder] = field(default_factory=list)
    free_tokens: int = 7

    async def serve(self) -> None:
        self.channel = Channel(self.path, wire.hello(CAN, life=self.life))
        try:
            while True:
                self.orders += self.channel.poll()
                if self.channel.new:
                    self.channel.greet(self.report(snapshot=True))
                await asyncio.sleep(0)
        finally:
            self.channel.close()

    def report(self, *, snapshot: bool = False) -> StepReport:
        return StepReport(
            engine="sglang", free_tokens=self.free_tokens, evictable_tokens=0, snapshot=snapshot
        )


@asynccontextmanager
async def serving(server: Server) -> AsyncIterator[Server]:
    task = asyncio.create_task(server.serve())
    await until(server.path.exists)
    try:
        yield server
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@dataclass
class Daemon:
    """The other end."""

    path: Path
    reports: list[StepReport] = field(default_factory=list)
    others: int = 0

    def link(self) -> OrdersLink:
        return OrdersLink(
            self.path, "e", report=self.reports.append, other_life=self._other_life, retry_s=0.01
        )

    def _other_life(self) -> None:
        self.others += 1


def rank(program: str, seq: int) -> Rank:
    return Rank(program=program, engine="e", key=1.0, cause=1, epoch=1, seq=seq)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sockets" / "s.sock"


async def test_orders_go_there_and_reports_come_back(path: Path) -> None:
    daemon = Daemon(path)
    async with serving(Server(path)) as server:
        link = daemon.link()
        await link.open()
        assert [report.snapshot for report in daemon.reports] == [True]
        await link.send([rank("p", 1), rank("q", 2)])
        await until(lambda: server.orders == [rank("p", 1), rank("q", 2)])
        assert server.channel is not None
        server.channel.report(server.report())
        await until(lambda: len(daemon.reports) == 2)
        await link.close()
        channel = server.channel
        await until(lambda: not channel.linked)


async def test_a_lost_channel_is_said_once_and_all_orders_stand_again_when_it_is_back(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    daemon = Daemon(path)
    async with serving(Server(path)):
        link = daemon.link()
        await link.open()
        await link.send([rank("p", 1), rank("q", 2)])
    await until(lambda: not link.connected)
    await link.send([Release(program="p", engine="e", cause=1, epoch=1, seq=3), rank("r", 4)])
    assert sum("channel is lost" in message for message in caplog.messages) == 1
    async with serving(Server(path)) as server:
        await until(lambda: link.connected)
        await until(lambda: len(server.orders) == 3)
        assert [order.seq for order in server.orders] == [2, 3, 4]
        assert [report.snapshot for report in daemon.reports] == [True, True]
        assert daemon.others == 0
        await link.close()


async def test_another_process_at_the_same_place_is_noticed(path: Path) -> None:
    daemon = Daemon(path)
    async with serving(Server(path)):
        link = daemon.link()
        await link.open()
    async with serving(Server(path, life="two")):
        await until(lambda: daemon.others > 0)
        assert not link.connected
        await link.close()


async def test_the_latest_daemon_is_heard(path: Path) -> None:
    async with serving(Server(path)) as server:
        first, second = Daemon(path).link(), Daemon(path).link()
        await first.open()
        await second.open()
        await second.send([rank("p", 1)])
        await until(lambda: server.orders)
        await second.close()
        await first.close()


@pytest.mark.parametrize(
    "sent", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x01\xc1", wire.encode([wire.Abort("c")])]
)
async def test_who_speaks_something_else_is_cut_off(path: Path, sent: bytes) -> None:
    async with serving(Server(path)) as server:
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(sent)
        async with asyncio.timeout(DEADLINE_S):
            with contextlib.suppress(ConnectionError):
                await reader.read()
        writer.close()
        assert server.channel is not None
        assert not server.channel.linked
        assert not server.orders


async def test_an_engine_of_another_protocol_is_refused(path: Path) -> None:
    make_folder(path.parent)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.encode([wire.Hello(CAN, protocol=99, version="9.9")]))
        writer.close()

    async with await asyncio.start_unix_server(answer, str(path)):
        with pytest.raises(NoChannel, match="speaks protocol 99"):
            await Daemon(path).link().open()


async def test_where_nobody_listens_it_says_where(path: Path) -> None:
    with pytest.raises(NoChannel, match=str(path)):
        await Daemon(path).link().open()


async def test_a_daemon_that_does_not_read_costs_itself_the_channel(path: Path) -> None:
    async with serving(Server(path)) as server:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as deaf:
            deaf.connect(str(path))
            channel = server.channel
            assert channel is not None
            await until(lambda: channel.linked and not channel.new)
            report = StepReport(engine="e" * 1_000_000, free_tokens=0, evictable_tokens=0)
            for _ in range(20):  # 20 MB, more than is kept for it
                channel.report(report)
            assert not channel.linked


def test_the_folder_is_of_this_user_alone(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir(mode=0o755)
    open_to_all.chmod(0o755)
    with pytest.raises(UnsafePlace, match="mode 700"):
        make_folder(open_to_all)
    elsewhere = tmp_path / "link"
    elsewhere.symlink_to(tmp_path)
    with pytest.raises(UnsafePlace, match="mode 700"):
        make_folder(elsewhere)


def test_server_and_daemon_find_each_other_by_port(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AGENTSCHED_SGLANG_SOCKETS", str(tmp_path))
    assert socket_path(30000) == tmp_path / "sglang-30000.sock"
    monkeypatch.delenv("AGENTSCHED_SGLANG_SOCKETS")
    assert socket_path(30000).parent.name == f"agentsched-{os.getuid()}"


def test_what_stands_is_the_latest_of_each_kind() -> None:
    standing = Standing()
    standing.take([rank("p", 1), rank("p", 5), rank("q", 2)])
    standing.take([Release(program="q", engine="e", cause=1, epoch=1, seq=6)])
    assert [order.seq for order in standing.all()] == [5, 6]


async def test_who_gives_up_waiting_for_a_hello_leaves_no_connection_behind(tmp_path: Path) -> None:
    """As a daemon does that ends while the server starts anew."""
    came, went = asyncio.Event(), asyncio.Event()

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        await reader.read()
        went.set()
        writer.close()

    path = tmp_path / "silent.sock"
    async with await asyncio.start_unix_server(say_nothing, path):
        link = OrdersLink(path, "e", report=lambda report: None, other_life=lambda: None, retry_s=1.0)
        opening = asyncio.create_task(link.open())
        async with asyncio.timeout(DEADLINE_S):
            await came.wait()
            opening.cancel()
            await asyncio.wait([opening])
            await went.wait()
    assert opening.cancelled()
