"""Who watches: what is told, resumed, cut off, and that nothing is computed for nobody."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from agentsched.core import Core, make_policy
from agentsched.core import events as ev
from agentsched.daemon.dashboard import live
from agentsched.daemon.dashboard.live import Client, Live, Scope
from agentsched.daemon.dashboard.model import Model
from agentsched.daemon.errors import ApiError
from agentsched.daemon.programs import Programs

ALL = Scope(None, str)


class Watched:
    """A core under a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.core = Core(make_policy("agentsched"))
        self.programs = Programs()
        self.live = Live(self.core, self.programs, "agentsched", clock=lambda: self.now)
        self.post(ev.EngineAttached(engine="e", capacity_tokens=10_000, block_tokens=16))

    def post(self, event: ev.AnyEvent) -> None:
        decided = self.core.handle(self.now, event)
        self.programs.observe(self.now, event, decided)
        self.live.observe(self.now, event, decided)

    def open(self, name: str, tenant: str = "default") -> None:
        self.post(ev.ProgramOpened(program=name, tenant=tenant))

    async def tick(self) -> None:
        self.now += live.LOOK_S
        assert self.live._model is not None
        await self.live._tick(self.live._model)


@pytest.fixture
async def watched() -> Any:
    run = Watched()
    yield run
    run.live.close()


def never() -> None:
    raise AssertionError("it was cut off")


async def told(client: Client) -> list[tuple[str, str, dict[str, Any]]]:
    """(id, event, data) of all that is unread."""
    found = []
    while client._unread.qsize():
        message = await client.next(1.0)
        assert message is not None
        number, event, data = (line.partition(b": ")[2] for line in message.strip().split(b"\n"))
        found.append((number.decode(), event.decode(), msgspec.json.decode(data)))
    return found


async def test_nothing_is_computed_while_nobody_watches(watched: Watched) -> None:
    watched.open("p")
    assert not watched.live.watched
    await watched.live.view(ALL)
    assert watched.live.watched


async def test_who_comes_is_given_all_and_then_what_changes(watched: Watched) -> None:
    watched.open("before")
    client = await watched.live.join(ALL, "", never)
    ((_, event, view),) = await told(client)
    assert event == "view"
    assert [row["program"] for row in view["programs"]] == ["before"]
    watched.open("after")
    await watched.tick()
    ((_, event, delta),) = await told(client)
    assert event == "delta"
    assert [row["program"] for row in delta["programs"]] == ["after"]


async def test_who_lost_the_connection_goes_on_where_it_was(watched: Watched) -> None:
    client = await watched.live.join(ALL, "", never)
    ((last, _, _),) = await told(client)
    watched.live.leave(client)
    watched.open("missed")
    await watched.tick()
    again = await watched.live.join(ALL, last, never)
    messages = await told(again)
    assert [event for _, event, _ in messages] == ["delta"]
    assert messages[0][2]["programs"][0]["program"] == "missed"


@pytest.mark.parametrize("last", ["", "nonsense", "00000000.3", "{name}.99999", "{name}.x"])
async def test_who_names_what_is_not_known_begins_anew(watched: Watched, last: str) -> None:
    first = await watched.live.join(ALL, "", never)
    name = (await told(first))[0][0].partition(".")[0]
    client = await watched.live.join(ALL, last.format(name=name), never)
    assert (await told(client))[0][1] == "view"


async def test_a_slow_client_is_cut_off_and_holds_up_nobody(watched: Watched) -> None:
    cut: list[str] = []
    slow = await watched.live.join(ALL, "", lambda: cut.append("slow"))
    quick = await watched.live.join(ALL, "", never)
    for number in range(live.MOST_UNREAD + 5):
        watched.open(f"p{number}")
        await watched.tick()
        await told(quick)
    assert set(cut) == {"slow"}
    assert slow._unread.qsize() <= live.MOST_UNREAD


async def test_more_than_is_remembered_is_made_good_from_the_core(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched.live, "_recent", type(watched.live._recent)(maxlen=5))
    await watched.live.view(ALL)
    for number in range(40):
        watched.open(f"p{number}")
    assert len((await watched.live.view(ALL)).programs) == 40


async def test_who_watches_is_not_left_because_the_daemon_was_busy_for_long(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = watched.live._take

    def take_long(model: Model, many: int) -> None:
        watched.now += 2 * live.LINGER_S
        take(model, many)

    monkeypatch.setattr(live, "TICK_S", 0.0)
    await watched.live.join(ALL, "", never)
    monkeypatch.setattr(watched.live, "_take", take_long)
    for _ in range(20):
        await asyncio.sleep(0)
    assert watched.live.watched


async def test_there_is_a_limit_to_who_may_watch(watched: Watched) -> None:
    for _ in range(live.MOST_WATCHERS):
        await watched.live.join(ALL, "", never)
    with pytest.raises(ApiError, match="watch already"):
        await watched.live.join(ALL, "", never)


async def test_a_tenant_is_told_nothing_of_others(watched: Watched) -> None:
    def outside(name: str) -> str:
        return name.removeprefix("//acme/")

    client = await watched.live.join(Scope("acme", outside), "", never)
    watched.open("//acme/mine", "acme")
    watched.open("//rival/secret", "rival")
    await watched.tick()
    seen = await told(client)
    text = msgspec.json.encode(seen).decode()
    assert "mine" in text
    assert "secret" not in text
    assert "rival" not in text
    assert "//acme/" not in text
    assert seen[1][2]["engines"] == []


async def test_it_ends_for_all_when_the_daemon_does(watched: Watched) -> None:
    client = await watched.live.join(ALL, "", never)
    await told(client)
    watched.live.close()
    assert await client.next(1.0) is None


async def test_after_a_while_without_anybody_nothing_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "TICK_S", 0.0)
    watched = Watched()
    await watched.live.view(ALL)
    watched.now += live.LINGER_S + 1
    assert watched.live._ticking is not None
    async with asyncio.timeout(10):
        await watched.live._ticking
    assert not watched.live.watched
