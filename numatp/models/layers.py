"""What kinds of layers keep between tokens, and how many bytes of it are on one rank: the cache, plans and bench ask them."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from numatp.kernels.layout import CACHE_BLOCK, NO_WINDOW, cache_bytes, cache_refusal
from numatp.kernels.states import ENTRY_TILE, PIECE
from numatp.program.values import Buffer, Kept, LayerCache, LayerRows, LayerState
from numatp.weights.splits import Split


class InBlocks:
    """A layer that keeps something of every token, or of the last `window`, in blocks of CACHE_BLOCK tokens."""

    window: int | None
    needs: int | None = None  # an earlier layer that must be on the same host, as more comes from there than one row of a token

    @property
    def seen(self) -> int:
        """Tokens that a row sees at most."""
        return self.window or NO_WINDOW

    def block_bytes(self, split: Split, cache_type: str) -> int:
        """Of one block."""
        raise NotImplementedError

    def refusal(self, cache_type: str) -> str:
        """Why it cannot be kept so, "" if it can."""
        raise NotImplementedError

    def placed(self, name: str, address: int, stride: int, table: int, split: Split, cache_type: str) -> Kept:
        """For ops: what begins at `address` in the first block, and `stride` bytes later in each other."""
        raise NotImplementedError

    def read_bytes(self, split: Split, cache_type: str, tokens: int) -> int:
        """What decoding one more token after `tokens` others reads."""
        return self.block_bytes(split, cache_type) // CACHE_BLOCK * min(tokens, self.seen)


class InSlots:
    """A layer that keeps a state of fixed size for each sequence."""

    # Tokens that change it together: all can be taken back but the last of a piece, and those before it; of 1, none.
    piece: int
    needs: int | None = None

    def slot_bytes(self, split: Split) -> int:
        """Of one sequence."""
        raise NotImplementedError

    def refusal(self, cache_type: str) -> str:
        """A state has one type."""
        return ""

    def placed(self, name: str, address: int, stride: int) -> Kept:
        """For ops: the first sequence's at `address`, and `stride` bytes later each other's."""
        raise NotImplementedError

    def read_bytes(self, split: Split, cache_type: str, tokens: int) -> int:
        return self.slot_bytes(split)


@dataclass(frozen=True)
class Several:
    """A layer that keeps several things."""

    parts: tuple[InBlocks | InSlots, ...]
    needs: int | None = None  # see InBlocks

    def refusal(self, cache_type: str) -> str:
        """See InBlocks."""
        return next(filter(None, (part.refusal(cache_type) for part in self.parts)), "")

    def read_bytes(self, split: Split, cache_type: str, tokens: int) -> int:
        """See InBlocks."""
        return sum(part.read_bytes(split, cache_type, tokens) for part in self.parts)


Layer = InBlocks | InSlots | Several


def parts_of(layers: Iterable[Layer]) -> list[InBlocks | InSlots]:
    """All that they keep, in order."""
    return [part for _, part in numbered_parts(layers)]


def numbered_parts(layers: Iterable[Layer]) -> list[tuple[int, InBlocks | InSlots]]:
    """The same, with the number of the layer that keeps it."""
    of_layers = ((i, layer.parts if isinstance(layer, Several) else (layer,)) for i, layer in enumerate(layers))
    return [(i, part) for i, parts in of_layers for part in parts]


@dataclass(frozen=True)
class Attention(InBlocks):
    """Keys and values of the KV heads that a rank's query heads read."""

    key_size: int
    value_size: int
    window: int | None = None
    heads: str = "kv_heads"  # the word that counts them
    chunked: bool = False  # whether rows see no window before them but their own chunk of so many tokens
    needs: int | None = None  # see InBlocks

    def _parts(self, split: Split, cache_type: str) -> Iterator[int]:
        """Bytes of the keys and of the values in a block."""
        return (len(split[self.heads]) * cache_bytes(cache_type, size) for size in (self.key_size, self.value_size))

    def block_bytes(self, split: Split, cache_type: str) -> int:
        return sum(self._parts(split, cache_type))

    def refusal(self, cache_type: str) -> str:
        return cache_refusal(cache_type, self.key_size) or cache_refusal(cache_type, self.value_size)

    def placed(self, name: str, address: int, stride: int, table: int, split: Split, cache_type: str) -> LayerCache:
        keys, _ = self._parts(split, cache_type)
        return LayerCache(
            Buffer(f"keys{name}", stride, address), Buffer(f"values{name}", stride, address + keys), table, cache_type, self.seen,
            self.chunked,
        )  # fmt: skip


@dataclass(frozen=True)
class IndexedAttention(Attention):
    """Of whose tokens a row sees the `top` that an indexer chooses, which keeps a key of each, or of each run of several; or which
    another layer's has chosen, without keys.
    """

    top: int = NO_WINDOW
    index_size: int = 0  # of the indexer's keys
    every: int = 1  # tokens of a run

    def _index_bytes(self) -> int:
        """Of a block."""
        return cache_bytes("f16", self.index_size) if self.every == 1 else ENTRY_TILE * self.index_size * 2

    def block_bytes(self, split: Split, cache_type: str) -> int:
        return super().block_bytes(split, cache_type) + self._index_bytes()

    def refusal(self, cache_type: str) -> str:
        return "" if cache_type == "f16" else f"tokens are chosen from a float16 cache only, not from {cache_type}: use f16"

    def placed(self, name: str, address: int, stride: int, table: int, split: Split, cache_type: str) -> LayerCache:
        cache = super().placed(name, address, stride, table, split, cache_type)
        start = address + super().block_bytes(split, cache_type)
        cache = replace(cache, every=self.every)
        return replace(cache, index=Buffer(f"index{name}", stride, start)) if self.index_size else cache

    def read_bytes(self, split: Split, cache_type: str, tokens: int) -> int:
        rows = super().block_bytes(split, cache_type) // CACHE_BLOCK
        return rows * min(tokens, self.top) + self._index_bytes() // CACHE_BLOCK * tokens


@dataclass(frozen=True)
class Borrowing(Attention):
    """Which reads the keys and values of an earlier layer, and keeps none."""

    lender: int = 0  # the number of that layer

    def block_bytes(self, split: Split, cache_type: str) -> int:
        return 0

    def read_bytes(self, split: Split, cache_type: str, tokens: int) -> int:
        return super().block_bytes(split, cache_type) // CACHE_BLOCK * min(tokens, self.seen)


@dataclass(frozen=True)
class Recurrent(InSlots):
    """A state that every token changes; state_bytes(split): its bytes on one rank."""

    state_bytes: Callable[[Split], int]
    piece: int = PIECE

    def slot_bytes(self, split: Split) -> int:
        return self.state_bytes(split)

    def placed(self, name: str, address: int, stride: int) -> LayerState:
        return LayerState(Buffer(f"state{name}", stride, address))


@dataclass(frozen=True)
class SharedRows(InBlocks):
    """Rows of float16 that are keys and values at once, for all heads: of tokens, or of entries that stand for several each
    (kernels/compressed.py), of which a row sees `top` at most, that an indexer chooses by keys of its own.
    """

    size: int
    window: int | None = None
    every: int = 1  # tokens of an entry
    top: int = NO_WINDOW
    index_size: int = 0  # of the indexer's keys; 0: there is none
    needs: int | None = None  # see InBlocks

    def _rows_bytes(self) -> int:
        """Of a block, in which an entry lies that ends there."""
        return max(CACHE_BLOCK // self.every, 1) * self.size * 2

    def block_bytes(self, split: Split, cache_type: str) -> int:
        return self._rows_bytes() + ENTRY_TILE * self.index_size * 2

    def refusal(self, cache_type: str) -> str:
        if cache_type == "f16":
            return ""
        return f"rows that are keys and values at once are kept as float16, not as {cache_type}: use f16"

    def placed(self, name: str, address: int, stride: int, table: int, split: Split, cache_type: str) -> LayerRows:
        index = Buffer(f"index{name}", stride, address + self._rows_bytes()) if self.index_size else None
        return LayerRows(Buffer(f"rows{name}", stride, address), table, self.every, self.seen, index)

    def read_bytes(self, split: Split, cache_type: str, tokens: int) -> int:
        entries = min(tokens, self.seen) // self.every
        return min(entries, self.top) * self.size * 2 + entries * self.index_size * 2
