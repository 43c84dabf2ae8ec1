"""What is on its way between device and host memory, and what is to be sent there next."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

from agentsched.engines.host_tier import Move
from agentsched.engines.prefix import Block


class Transit:
    """Promotions are numbered as they begin, and end in that order; ``arrived`` of them have.

    Each round of them has a path that is referenced until its last one has come.
    """

    def __init__(self) -> None:
        self.begun = self.arrived = 0
        self._demotions: dict[int, int] = {}
        self._promotions: list[Move] = []
        self._slots: deque[int] = deque()
        self._rounds: deque[tuple[int, list[Block]]] = deque()

    def demote(self, index: int, slot: int) -> None:
        self._demotions[slot] = index

    def forget(self, slot: int) -> None:
        """Nothing need be saved in this slot any more."""
        self._demotions.pop(slot, None)

    def promote(self, slot: int, block: Block) -> None:
        """Another block of the round has a place on the device."""
        self.begun += 1
        block.arrives = self.begun
        self._slots.append(slot)
        self._promotions.append(Move(slot, block.index))

    def end_round(self, path: list[Block]) -> None:
        self._rounds.append((self.begun, path))

    def settle(self, arrived: int) -> tuple[list[int], list[list[Block]]]:
        """So many promotions have ended: the slots that are free now, and the paths that have come."""
        slots = [self._slots.popleft() for _ in range(arrived - self.arrived)]
        self.arrived = arrived
        paths = []
        while self._rounds and self._rounds[0][0] <= arrived:
            paths.append(self._rounds.popleft()[1])
        return slots, paths

    def take_moves(self) -> tuple[list[Move], list[Move]]:
        """Demotions and promotions since this was asked last, to be carried out in this order."""
        demotions = [Move(index, slot) for slot, index in self._demotions.items()]
        promotions, self._promotions = self._promotions, []
        self._demotions.clear()
        return demotions, promotions

    @property
    def slots(self) -> tuple[int, ...]:
        """Slots of host memory that are still read."""
        return tuple(self._slots)

    def paths(self) -> Iterator[list[Block]]:
        """The paths that are referenced for the way."""
        return (path for _, path in self._rounds)
