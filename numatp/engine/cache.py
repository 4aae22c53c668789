"""What the layers of one rank keep between tokens, and where it lies. Who has which part of it: engine/blocks.py.

Keys and values lie in blocks of tokens. Layers that keep the same tokens (all, or the last `window`) share a pool, and a block of a
pool holds all its layers side by side, so that memory is touched as it is needed. So does a slot of the recurrent layers: each
sequence that runs has one, and there are some for checkpoints (engine/prefixes.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from numatp.kernels.layout import CACHE_BLOCK, NO_WINDOW
from numatp.models.layers import Borrowing, InBlocks, InSlots, Several, numbered_parts, parts_of
from numatp.models.spec import Spec
from numatp.program.values import Kept
from numatp.weights.splits import Split


def num_blocks(tokens: int) -> int:
    return -(-tokens // CACHE_BLOCK)


@dataclass(frozen=True)
class Pool:
    """Blocks of the layers that keep the same tokens."""

    window: int  # tokens that a row sees
    layers: Mapping[int, InBlocks]  # by their numbers; of such as keep several things, each has one
    blocks: int


def pools_of(spec: Spec, context: int, max_sequences: int, max_rows: int, prefix_cache: bool = False) -> list[Pool]:
    """context: tokens that all sequences together can have. The same on every rank."""
    pools = []
    kept = {i: layer for i, layer in enumerate(parts_of(spec.layers)) if isinstance(layer, InBlocks)}
    for window in sorted({layer.seen for layer in kept.values()}, reverse=True):
        layers = {i: layer for i, layer in kept.items() if layer.seen == window}
        # A sequence's last block is rarely full; a window moves on only when a whole Step is done.
        blocks = num_blocks(context) + max_sequences - 1
        if window != NO_WINDOW:
            held = num_blocks(window + max_rows) + 1
            behind = num_blocks(window) + 1 if prefix_cache else 0  # so that a text may be taken up where it was a window ago
            blocks = min(blocks, max_sequences * (held + behind))
        pools.append(Pool(window, layers, blocks))
    return pools


def read_bytes(spec: Spec, split: Split, tokens: int, cache_type: str) -> int:
    """What one rank reads of its cache to decode one more token after `tokens` others."""
    return sum(layer.read_bytes(split, cache_type, tokens) for layer in spec.layers)


class CacheLayout:
    """Where each layer's part of this rank's cache lies; the layers say how many bytes it has."""

    def __init__(self, spec: Spec, split: Split, pools: list[Pool], slots: int, cache_type: str, held: range | None = None):
        """slots: of recurrent layers. held: layers that are on this host, None for all."""
        self._layers = spec.layers
        numbered = enumerate(numbered_parts(spec.layers))
        self._held = {i for i, (layer, _) in numbered if held is None or layer in held}  # of what layers keep, by its number
        self._split, self._type = split, cache_type
        self._in_blocks: dict[int, tuple[int, int, int]] = {}  # (its start, bytes from block to block, number of the pool)
        self._in_slots: dict[int, int] = {}  # its start
        self.parts: list[tuple[int, int]] = []  # (start of the first, bytes of one): blocks of each pool, then states, if there are
        end = 0
        for table, pool in enumerate(pools):
            start = end
            sizes = {i: layer.block_bytes(split, cache_type) for i, layer in pool.layers.items() if i in self._held}
            for i, size in sizes.items():
                self._in_blocks[i] = start, sum(sizes.values()), table
                start += size
            self.parts.append((end, sum(sizes.values())))
            end += pool.blocks * sum(sizes.values())
        self.slots, self.slots_at, self.slot_bytes = slots, end, 0
        states = {i: part for i, part in enumerate(parts_of(spec.layers)) if isinstance(part, InSlots)}
        self.recurrent = bool(states)  # on some host, so on all
        for i in sorted(states.keys() & self._held):
            self._in_slots[i] = end + self.slot_bytes
            self.slot_bytes += (states[i].slot_bytes(split) + 63) // 64 * 64
        if self.recurrent:
            self.parts.append((self.slots_at, self.slot_bytes))
        self.num_bytes = max(end + slots * self.slot_bytes, 1)

    def at(self, address: int) -> list[Kept | tuple[Kept, ...] | None]:
        """Each layer's part of a cache at `address`; None for those on other hosts."""
        parts: list[Any] = []
        for i, part in enumerate(parts_of(self._layers)):
            if i not in self._held:
                parts.append(None)
            elif isinstance(part, Borrowing):
                parts.append(parts[part.lender])  # no layer of such a model keeps several things
            elif isinstance(part, InBlocks):
                start, stride, table = self._in_blocks[i]
                parts.append(part.placed(str(i), address + start, stride, table, self._split, self._type))
            else:
                parts.append(part.placed(str(i), address + self._in_slots[i], self.slot_bytes))
        rest = iter(parts)
        return [tuple(islice(rest, len(layer.parts))) if isinstance(layer, Several) else next(rest) for layer in self._layers]
