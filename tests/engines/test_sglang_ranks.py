"""Orders and time reach all ranks of a server in the same turn."""

from __future__ import annotations

import pickle
from typing import Any

from agentsched.core.decisions import EngineOrder, Release
from agentsched.engines.sglang.ranks import Ranks, Told
from agentsched.engines.sglang.retained import TICK_S


def release(seq: int) -> Release:
    return Release(program="p", engine="e", cause=1, epoch=1, seq=seq)


class Server:
    """Two ranks, and SGLang's broadcast between them, which may leave a turn out."""

    def __init__(self) -> None:
        self.sent: list[EngineOrder] = []
        self.now_s = 100.0
        self.first, self.other = Ranks(2, self._polled, lambda: self.now_s), Ranks(2, None)

    def _polled(self) -> list[EngineOrder]:
        polled, self.sent = self.sent, []
        return polled

    def turn(self, *, standing: bool = False, skipped: bool = False) -> tuple[list[Told], list[Told]]:
        """What each rank begins it with."""
        reached: list[Any] = []

        def receive(local: list[Any] | None) -> list[Any]:
            requests = [] if skipped else ["a request", *(local or ())]
            reached.extend(pickle.loads(pickle.dumps(requests)))
            return requests

        requests = self.first.around_receiving(receive, ["an abort"], standing=standing)
        begun = self.first.begun(requests), self.other.begun(reached)
        assert requests == reached == ([] if skipped else ["a request", "an abort"])
        return begun


def test_what_the_first_rank_takes_all_begin_with() -> None:
    server = Server()
    server.sent = [release(1), release(2)]
    (first,), (other,) = server.turn()
    assert first == other
    assert first.orders == (release(1), release(2))
    assert server.turn() == ([], []), "nothing is new, and time decides nothing"


def test_where_orders_stand_the_time_is_told_once_a_tick() -> None:
    server = Server()
    assert server.turn(standing=True) == ([Told(100.0, ())], [Told(100.0, ())])
    server.now_s += TICK_S / 2
    assert server.turn(standing=True) == ([], [])
    server.now_s += TICK_S
    assert server.turn() == ([], [])
    assert server.turn(standing=True) == ([Told(server.now_s, ())], [Told(server.now_s, ())])


def test_orders_of_a_turn_that_was_left_out_are_told_in_the_next() -> None:
    server = Server()
    server.sent = [release(1)]
    assert server.turn(skipped=True) == ([], [])
    server.sent = [release(2)]
    (first,), (other,) = server.turn()
    assert first.orders == other.orders == (release(1), release(2))
    assert server.turn() == ([], [])


def test_one_rank_alone_asks_nobody() -> None:
    sent = [[release(1)], []]
    alone, requests = Ranks(1, lambda: sent.pop(0)), ["a request"]
    assert [told.orders for told in alone.begun(requests)] == [(release(1),)]
    assert [told.orders for told in alone.begun(requests)] == [()]
    assert requests == ["a request"]
