"""What the layers of one rank keep between tokens, and who may use which part of it.

Keys and values lie in blocks of tokens. Layers that keep the same tokens (all, or the last `window`) share a pool, and a block of a
pool holds all its layers side by side, so that memory is touched as it is needed. Recurrent layers have one slot per sequence.
"""

from dataclasses import dataclass

from numatp.kernels.layout import CACHE_BLOCK, NO_WINDOW, cache_bytes
from numatp.models.spec import Attention, Recurrent, Spec
from numatp.program.values import Buffer, LayerCache, LayerState
from numatp.weights.splits import Split


def num_blocks(tokens: int) -> int:
    return -(-tokens // CACHE_BLOCK)


@dataclass(frozen=True)
class Pool:
    """Blocks of the layers that keep the same tokens."""

    window: int  # tokens that a row sees
    layers: tuple[int, ...]
    blocks: int


def pools_of(spec: Spec, context: int, max_sequences: int, max_rows: int) -> list[Pool]:
    """context: tokens that all sequences together can have. The same on every rank."""
    pools = []
    kept = [layer.window or NO_WINDOW for layer in spec.layers if isinstance(layer, Attention)]
    for window in sorted(set(kept), reverse=True):
        layers = tuple(i for i, x in enumerate(spec.layers) if isinstance(x, Attention) and (x.window or NO_WINDOW) == window)
        # A sequence's last block is rarely full; a window moves on only when a whole Step is done.
        blocks = num_blocks(context) + max_sequences - 1
        if window != NO_WINDOW:
            blocks = min(blocks, max_sequences * (num_blocks(window + max_rows) + 1))
        pools.append(Pool(window, layers, blocks))
    return pools


def read_bytes(spec: Spec, split: Split, tokens: int, cache_type: str) -> int:
    """What one rank reads of its cache to decode one more token after `tokens` others."""
    token, total = 2 * len(split.kv_heads) * cache_bytes(cache_type, spec.sizes.head_size) // CACHE_BLOCK, 0
    for layer in spec.layers:
        total += layer.state_bytes(split) if isinstance(layer, Recurrent) else token * min(tokens, layer.window or tokens)
    return total


class CacheLayout:
    """Where each layer's part of this rank's cache lies."""

    def __init__(self, spec: Spec, split: Split, pools: list[Pool], max_sequences: int, cache_type: str):
        self._type = cache_type
        self._part = len(split.kv_heads) * cache_bytes(cache_type, spec.sizes.head_size)  # keys of one layer in one block
        self._pools, self._starts, end = pools, [], 0
        for pool in pools:
            self._starts.append(end)
            end += pool.blocks * 2 * self._part * len(pool.layers)
        self._layers = spec.layers
        self._states = {}
        for i, layer in enumerate(spec.layers):
            if isinstance(layer, Recurrent):
                slot = (layer.state_bytes(split) + 63) // 64 * 64
                self._states[i] = end, slot
                end += slot * max_sequences
        self.num_bytes = max(end, 1)

    @property
    def token_bytes(self) -> int:
        """Of one token in one layer, keys and values, for this rank's KV heads."""
        return 2 * self._part // CACHE_BLOCK

    def at(self, address: int) -> list[LayerCache | LayerState]:
        """Each layer's part of a cache at `address`."""
        layers: dict[int, LayerCache | LayerState] = {}
        for table, (pool, start) in enumerate(zip(self._pools, self._starts, strict=True)):
            stride = 2 * self._part * len(pool.layers)
            for place, i in enumerate(pool.layers):
                keys = address + start + 2 * place * self._part
                layers[i] = LayerCache(
                    Buffer(f"keys{i}", stride, keys), Buffer(f"values{i}", stride, keys + self._part), table, self._type,
                    pool.window,
                )  # fmt: skip
        for i, (start, slot) in self._states.items():
            layers[i] = LayerState(Buffer(f"state{i}", slot, address + start))
        return [layers[i] for i in range(len(self._layers))]


class Blocks:
    """Which blocks are free, on rank 0; all ranks use the same numbers."""

    def __init__(self, pools: list[Pool], max_rows: int):
        """max_rows: of one Step."""
        self._pools, self._max_rows = pools, max_rows
        self._free = [list(range(pool.blocks))[::-1] for pool in pools]
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

    def take(self, pool: int) -> int:
        return self._free[pool].pop()

    def give(self, pool: int, blocks: list[int]) -> None:
        self._free[pool] += blocks

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
                self._blocks.give(pool, numbers[self._first[pool] : first])
                self._first[pool] = first
            while len(numbers) * CACHE_BLOCK < position + count:
                numbers.append(self._blocks.take(pool))
        return self.numbers

    def release(self) -> None:
        for pool, numbers in enumerate(self.numbers):
            self._blocks.give(pool, numbers[self._first[pool] :])
            numbers.clear()
        self._blocks.end(self._promised)
