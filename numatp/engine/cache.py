"""What the layers of one rank keep between tokens, and who may use which part of it.

Keys and values lie in blocks of tokens. Layers that keep the same tokens (all, or the last `window`) share a pool, and a block of a
pool holds all its layers side by side, so that memory is touched as it is needed. Recurrent layers have one slot per sequence.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from numatp.kernels.layout import CACHE_BLOCK, NO_WINDOW
from numatp.models.layers import InBlocks, InSlots
from numatp.models.spec import Spec
from numatp.program.values import Kept
from numatp.weights.splits import Split


def num_blocks(tokens: int) -> int:
    return -(-tokens // CACHE_BLOCK)


@dataclass(frozen=True)
class Pool:
    """Blocks of the layers that keep the same tokens."""

    window: int  # tokens that a row sees
    layers: Mapping[int, InBlocks]  # by their numbers
    blocks: int


def pools_of(spec: Spec, context: int, max_sequences: int, max_rows: int) -> list[Pool]:
    """context: tokens that all sequences together can have. The same on every rank."""
    pools = []
    kept = {i: layer for i, layer in enumerate(spec.layers) if isinstance(layer, InBlocks)}
    for window in sorted({layer.seen for layer in kept.values()}, reverse=True):
        layers = {i: layer for i, layer in kept.items() if layer.seen == window}
        # A sequence's last block is rarely full; a window moves on only when a whole Step is done.
        blocks = num_blocks(context) + max_sequences - 1
        if window != NO_WINDOW:
            blocks = min(blocks, max_sequences * (num_blocks(window + max_rows) + 1))
        pools.append(Pool(window, layers, blocks))
    return pools


def read_bytes(spec: Spec, split: Split, tokens: int, cache_type: str) -> int:
    """What one rank reads of its cache to decode one more token after `tokens` others."""
    return sum(layer.read_bytes(split, cache_type, tokens) for layer in spec.layers)


class CacheLayout:
    """Where each layer's part of this rank's cache lies; the layers say how many bytes it has."""

    def __init__(self, spec: Spec, split: Split, pools: list[Pool], max_sequences: int, cache_type: str):
        self._layers = spec.layers
        self._split, self._type = split, cache_type
        self._in_blocks: dict[int, tuple[int, int, int]] = {}  # (its start, bytes from block to block, number of the pool)
        self._in_slots: dict[int, tuple[int, int]] = {}  # (its start, bytes from slot to slot)
        end = 0
        for table, pool in enumerate(pools):
            start = end
            sizes = {i: layer.block_bytes(split, cache_type) for i, layer in pool.layers.items()}
            for i, size in sizes.items():
                self._in_blocks[i] = start, sum(sizes.values()), table
                start += size
            end += pool.blocks * sum(sizes.values())
        for i, layer in enumerate(spec.layers):
            if isinstance(layer, InSlots):
                slot = (layer.slot_bytes(split) + 63) // 64 * 64
                self._in_slots[i] = end, slot
                end += slot * max_sequences
        self.num_bytes = max(end, 1)

    def at(self, address: int) -> list[Kept]:
        """Each layer's part of a cache at `address`."""
        layers: list[Kept] = []
        for i, layer in enumerate(self._layers):
            if isinstance(layer, InBlocks):
                start, stride, table = self._in_blocks[i]
                layers.append(layer.placed(str(i), address + start, stride, table, self._split, self._type))
            else:
                start, slot = self._in_slots[i]
                layers.append(layer.placed(str(i), address + start, slot))
        return layers


class Blocks:
    """Which blocks are free, on rank 0; all ranks use the same numbers."""

    def __init__(self, pools: list[Pool], max_rows: int):
        """max_rows: of one Step."""
        self._pools, self._max_rows = pools, max_rows
        self._free = [list(range(pool.blocks))[::-1] for pool in pools]
        self._holders = [[0] * pool.blocks for pool in pools]  # sequences that read each block
        self._promised = [0] * len(pools)

    def _most(self, pool: Pool, tokens: int) -> int:
        held = num_blocks(tokens)
        return held if pool.window == NO_WINDOW else min(held, num_blocks(pool.window + self._max_rows) + 1)

    def reserve(self, tokens: int) -> "Tables | None":
        """The tables of a sequence of at most `tokens`, or None while there is no room for it."""
        most = [self._most(pool, tokens) for pool in self._pools]
        if any(promised + wanted > pool.blocks for pool, promised, wanted in zip(self._pools, self._promised, most, strict=True)):
            return None
        self._promised = [promised + wanted for promised, wanted in zip(self._promised, most, strict=True)]
        return Tables(self, most)

    def take(self, pool: int) -> int | None:
        """A free block, held once; None if there is none."""
        if not self._free[pool]:
            return None
        block = self._free[pool].pop()
        self._holders[pool][block] = 1
        return block

    def hold(self, pool: int, block: int) -> None:
        """One sequence more reads the block."""
        self._holders[pool][block] += 1

    def release(self, pool: int, blocks: list[int]) -> None:
        """One sequence less reads each of them; who is read by none is free."""
        holders = self._holders[pool]
        for block in blocks:
            holders[block] -= 1
            if not holders[block]:
                self._free[pool].append(block)

    def end(self, promised: list[int]) -> None:
        self._promised = [old - wanted for old, wanted in zip(self._promised, promised, strict=True)]

    @property
    def windows(self) -> list[int]:
        return [pool.window for pool in self._pools]


class Tables:
    """The blocks of one sequence: per pool, block numbers from its first token on; places before a window are meaningless."""

    def __init__(self, blocks: Blocks, promised: list[int]):
        self._blocks, self._promised = blocks, promised
        self.numbers: list[list[int]] = [[] for _ in promised]
        self._first = [0] * len(promised)  # blocks before it have been given back

    def prepare(self, position: int, count: int) -> list[list[int]]:
        """Makes room for `count` tokens from `position` on; gives back what no window reaches any more."""
        for pool, window in enumerate(self._blocks.windows):
            numbers, first = self.numbers[pool], max(position + 1 - window, 0) // CACHE_BLOCK
            if first > self._first[pool]:
                self._blocks.release(pool, numbers[self._first[pool] : first])
                self._first[pool] = first
            while len(numbers) * CACHE_BLOCK < position + count:
                block = self._blocks.take(pool)
                assert block is not None, "reserved"
                numbers.append(block)
        return self.numbers

    def release(self) -> None:
        for pool, numbers in enumerate(self.numbers):
            self._blocks.release(pool, numbers[self._first[pool] :])
            numbers.clear()
        self._blocks.end(self._promised)
