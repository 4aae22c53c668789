"""Which part of the model is this rank's? Pure arithmetic on sizes; nothing here knows tensors or bytes."""

from dataclasses import dataclass
from math import gcd

COLUMN_UNIT = 32  # a matrix is cut along its columns in steps of this many
ROW_UNIT = 16  # and along its rows in steps of this many


@dataclass(frozen=True)
class Sizes:
    """Sizes of a decoder, in the words of the tensor tables."""

    width: int  # of the residual stream
    heads: int
    kv_heads: int
    head_size: int
    ffn: int
    vocab: int

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads


@dataclass(frozen=True)
class Split:
    """This rank's range of every size that is cut; what is not named here is whole on every rank."""

    heads: range
    kv_heads: range  # all that its query heads read, so a KV head at a border is on both sides
    ffn: range
    vocab: range


def part(count: int, unit: int, rank: int, size: int) -> range:
    """The rank-th of `size` contiguous ranges of `count` things, cut in multiples of `unit`; the last unit may be short."""
    units = -(-count // unit)
    return range(min(units * rank // size * unit, count), min(units * (rank + 1) // size * unit, count))


def split(sizes: Sizes, rank: int, size: int) -> Split:
    """Any number of ranks; a rank may get nothing of a small size."""
    heads_per_unit = COLUMN_UNIT // gcd(COLUMN_UNIT, sizes.head_size)  # heads whose columns fill whole units
    heads = part(sizes.heads, heads_per_unit, rank, size)
    kv_heads = range(heads.start // sizes.group, -(-heads.stop // sizes.group)) if heads else range(0)
    return Split(heads, kv_heads, part(sizes.ffn, COLUMN_UNIT, rank, size), part(sizes.vocab, ROW_UNIT, rank, size))
