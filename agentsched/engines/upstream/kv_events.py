"""The KV events that SGLang and vLLM publish over ZMQ, as they stand on the wire.

A message has three parts: topic, number, batch; the batch is ``[time, events, rank]`` in msgpack. Events are
maps with their kind as ``type``; earlier versions of vLLM wrote them as arrays instead.

What is not needed (the tokens of blocks above all) is skipped unread.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from agentsched.engines.upstream.kv_ledger import KvLedger

ON_DEVICE = (None, "GPU")
"""Other media (host memory, disks) are not counted."""

FIRST_GROUP = (None, 0)
"""Models with several kinds of attention name their blocks once for each; the first stands for all."""

_Hash = int | bytes


class Unreadable(Exception):
    """A batch that is not understood."""


class BlockStored(msgspec.Struct, tag="BlockStored"):
    block_hashes: list[_Hash]
    parent_block_hash: _Hash | None
    block_size: int
    medium: str | None = None
    session_id: str | None = None
    group_idx: int | None = None


class BlockRemoved(msgspec.Struct, tag="BlockRemoved"):
    block_hashes: list[_Hash]
    medium: str | None = None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag="AllBlocksCleared"):
    pass


class _StoredArray(msgspec.Struct, tag="BlockStored", array_like=True):
    block_hashes: list[_Hash]
    parent_block_hash: _Hash | None
    token_ids: msgspec.Raw
    block_size: int
    lora_id: msgspec.Raw = msgspec.Raw(b"\xc0")
    medium: str | None = None


class _RemovedArray(msgspec.Struct, tag="BlockRemoved", array_like=True):
    block_hashes: list[_Hash]
    medium: str | None = None


class _ClearedArray(msgspec.Struct, tag="AllBlocksCleared", array_like=True):
    pass


class _Maps(msgspec.Struct, array_like=True):
    time_s: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    rank: int | None = None


class _Arrays(msgspec.Struct, array_like=True):
    time_s: float
    events: list[_StoredArray | _RemovedArray | _ClearedArray]
    rank: int | None = None


_maps = msgspec.msgpack.Decoder(_Maps).decode
_arrays = msgspec.msgpack.Decoder(_Arrays).decode


class Batch(msgspec.Struct, frozen=True):
    """The events of one step of the server, of one of its ranks; ``time_s`` is by its clock."""

    rank: int
    time_s: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]


def read_batch(payload: bytes) -> Batch:
    """Raises ``Unreadable``."""
    try:
        try:
            batch = _maps(payload)
        except msgspec.ValidationError as error:
            if "got `array`" not in str(error):
                raise
            batch = _of_arrays(_arrays(payload))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Unreadable(str(error)) from error
    return Batch(batch.rank or 0, batch.time_s, batch.events)


def _of_arrays(batch: _Arrays) -> _Maps:
    events: list[BlockStored | BlockRemoved | AllBlocksCleared] = []
    for event in batch.events:
        match event:
            case _StoredArray():
                events.append(
                    BlockStored(
                        block_hashes=event.block_hashes,
                        parent_block_hash=event.parent_block_hash,
                        block_size=event.block_size,
                        medium=event.medium,
                    )
                )
            case _RemovedArray():
                events.append(BlockRemoved(block_hashes=event.block_hashes, medium=event.medium))
            case _ClearedArray():
                events.append(AllBlocksCleared())
    return _Maps(time_s=batch.time_s, events=events, rank=batch.rank)


def take(batch: Batch, ledger: KvLedger, program_of: Callable[[str], str]) -> None:
    """Enter a batch. ``program_of`` gives the program that a session is named for."""
    rank = batch.rank
    for event in batch.events:
        if isinstance(event, AllBlocksCleared):
            ledger.cleared()
            continue
        if event.medium not in ON_DEVICE or event.group_idx not in FIRST_GROUP:
            continue
        blocks = [(rank, block) for block in event.block_hashes] if rank else event.block_hashes
        if isinstance(event, BlockRemoved):
            ledger.removed(blocks)
            continue
        parent = event.parent_block_hash
        session = None if event.session_id is None else program_of(event.session_id)
        ledger.stored(
            blocks, (rank, parent) if rank and parent is not None else parent, event.block_size, session
        )
