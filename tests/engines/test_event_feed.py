"""KV events over real sockets: what arrives, what is repeated, and what is forgotten."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest

from agentsched.engines.upstream.kv_events import Unreadable, read_batch, take
from agentsched.engines.upstream.kv_ledger import KvLedger
from agentsched.engines.upstream.probe import EventsAt
from tests.daemon.serving import until
from tests.engines.published import CLEARED, Publisher, removed, stored

EventFeed = pytest.importorskip("agentsched.engines.upstream.event_feed").EventFeed


@asynccontextmanager
async def feeding(*publishers: Publisher) -> AsyncIterator[Any]:
    """A feed that has heard of what was published so far, where that is repeated."""
    endpoints = tuple(publisher.endpoint for publisher in publishers)
    replays = tuple(publisher.replay for publisher in publishers if publisher.replay)
    feed = EventFeed(EventsAt(endpoints=endpoints, replays=replays), "e", lambda: None)
    await feed.open()
    try:
        yield feed
    finally:
        await feed.close()


async def heard(feed: Any, publisher: Publisher) -> None:
    """A subscription takes a moment to reach the publisher, and until then what it sends is for nobody."""

    async def arrived() -> bool:
        await publisher.publish(stored([10**18], session="beacon"))
        return bool(feed.ledger.held("beacon"))

    await until(arrived, "the feed hears the publisher")


async def holds(feed: Any, **tokens: int) -> None:
    await until(
        lambda: {name: feed.ledger.held(name) for name in tokens} == tokens, f"{tokens} are known to be held"
    )


async def test_what_is_published_is_known_by_program() -> None:
    async with Publisher() as publisher, feeding(publisher) as feed:
        await heard(feed, publisher)
        await publisher.publish(stored([1, 2], session="%2F%2Facme%2Fp"), stored([3], 2, session="q"))
        await holds(feed, **{"//acme/p": 32, "q": 48})
        await publisher.publish(removed([3]))
        await holds(feed, q=32)
        await publisher.publish(CLEARED)
        await holds(feed, **{"//acme/p": 0, "q": 0})


async def test_what_was_published_before_is_repeated_at_the_start() -> None:
    async with Publisher() as publisher:
        await publisher.publish(stored([b"one", b"two"], session="p"))
        await publisher.publish(removed([b"two"]))
        async with feeding(publisher) as feed:
            assert feed.ledger.held("p") == 16
            assert publisher.asked == [0]


async def test_what_is_missing_is_asked_for() -> None:
    async with Publisher() as publisher, feeding(publisher) as feed:
        await heard(feed, publisher)
        missing = len(publisher.sent)
        await publisher.publish(stored([1], session="p"), lost=True)
        await publisher.publish(stored([2], 1, session="p"))
        await holds(feed, p=32)
        assert publisher.asked[-1] == missing


async def test_what_is_missing_for_good_makes_all_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    async with Publisher(repeats=False) as publisher, feeding(publisher) as feed:
        await heard(feed, publisher)
        await publisher.publish(stored([1], session="p"))
        await holds(feed, p=16)
        await publisher.publish(removed([1]), lost=True)
        await publisher.publish(stored([5], session="q"))
        await holds(feed, p=0, q=16)
    assert any("KV events are lost (1 batches are missing)" in message for message in caplog.messages)


async def test_a_publisher_that_begins_anew_holds_nothing() -> None:
    async with Publisher(repeats=False) as publisher, feeding(publisher) as feed:
        await heard(feed, publisher)
        await publisher.publish(stored([1], session="p"))
        await holds(feed, p=16)
        publisher.restart()
        await publisher.publish(stored([2], session="q"))
        await holds(feed, p=0, q=16)


async def test_ranks_are_numbered_apart_and_their_blocks_are_their_own() -> None:
    async with (
        Publisher(repeats=False) as first,
        Publisher(repeats=False, rank=1) as second,
        feeding(first, second) as feed,
    ):
        await heard(feed, first)
        feed.ledger.cleared()
        await heard(feed, second)
        await first.publish(stored([1], session="p"))
        await second.publish(stored([1], session="p"))
        await holds(feed, p=32)
        await second.publish(removed([1]))
        await holds(feed, p=16)


async def test_what_is_not_understood_is_said_once_and_nothing_is_known(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Publisher(repeats=False) as publisher, feeding(publisher) as feed:
        await heard(feed, publisher)
        for _ in range(2):
            await publisher.publish({"type": "BlockMoved"})
        await holds(feed, beacon=0)
        await publisher.publish(stored([1], session="p"))
        await holds(feed, p=16)
    assert sum("are not understood" in message for message in caplog.messages) == 1


def test_events_as_arrays_are_read_too() -> None:
    """As earlier versions of vLLM write them."""
    events = [["BlockStored", [1, 2], None, [0] * 32, 16, None, "GPU"], ["BlockRemoved", [2], "GPU"]]
    ledger = KvLedger()
    take(read_batch(msgspec.msgpack.encode([1.0, [*events, ["AllBlocksCleared"]]])), ledger, str)
    assert (ledger.tokens, ledger.evicted_tokens) == (0, 16)
    take(read_batch(msgspec.msgpack.encode([1.0, events[:1], 0])), ledger, str)
    assert ledger.tokens == 32


def test_other_media_and_further_groups_are_not_counted() -> None:
    ledger = KvLedger()
    events = [
        stored([1], session="p"),
        stored([2], session="p", medium="CPU"),
        stored([3], session="p", medium="CPU_PINNED"),
        stored([4], session="p", group_idx=1),
        removed([1], medium="CPU"),
        removed([1], group_idx=1),
    ]
    take(read_batch(msgspec.msgpack.encode([1.0, events, None])), ledger, str)
    assert (ledger.held("p"), ledger.tokens) == (16, 16)


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x93\x01", b"\x93\xcb\x00", b"\x92\xc0\x90", b"\xff" * 40]
)
def test_what_is_no_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(Unreadable):
        read_batch(payload)
