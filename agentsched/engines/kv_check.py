"""What must hold in the prefix tree at all times; ``KvCache.check_invariants`` asks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from agentsched.engines.holdings import Holdings
from agentsched.engines.prefix import NOWHERE, Block, Table


def check_tree(root: Block, block_tokens: int) -> list[Block]:
    """All cached blocks, each of which is where the tree says, and in one place."""
    cached: list[Block] = []
    waiting = [root]
    while waiting:
        block = waiting.pop()
        assert block.device_children == sum(child.on_device for child in block.children.values()), block
        for key, child in block.children.items():
            assert child.cached, child
            assert child.parent is block, child
            assert child.key == key, child
            assert child.start_tokens == block.start_tokens + block_tokens, child
            assert child.on_device is (child.slot == NOWHERE), f"{child} is nowhere, or twice"
            if child.on_device:
                assert block is root or block.on_device, f"{child} hangs on what is not there"
            cached.append(child)
            waiting.append(child)
    return cached


def check_references(
    cached: Iterable[Block], tables: Iterable[Table], loads: Iterable[Sequence[Block]], holdings: Holdings
) -> None:
    """References are those of tables and loads, and holdings are what owners and tables add up to."""
    references = dict.fromkeys(cached, 0)
    device: dict[str, int] = {}
    host: dict[str, int] = {}
    for table in tables:
        assert table.blocks[: len(table.path)] == [block.index for block in table.path]
        device[table.program] = device.get(table.program, 0) + len(table.blocks) - len(table.path)
        for block in table.path:
            references[block] += 1
    for path in loads:
        for block in path:
            references[block] += 1
    for block, count in references.items():
        assert block.references == count, f"{block} is referenced {count} times"
        assert not count or block.on_device, f"{block} is in use, and not there"
        books = device if block.on_device else host
        for program in block.owners:
            books[program] = books.get(program, 0) + 1
    assert {program: blocks for program, blocks in device.items() if blocks} == holdings.device
    assert host == holdings.host
    assert {*holdings.latest} <= {*device, *host}, "a program that holds nothing is remembered"
