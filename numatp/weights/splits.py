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
    linear_key_heads: int = 0  # of linear attention; its queries have as many heads
    linear_value_heads: int = 0
    linear_head_size: int = 0
    conv_width: int = 0  # inputs that a short convolution sees
    experts: int = 0
    expert_ffn: int = 0  # of each expert
    shared_ffn: int = 0  # of the expert that all tokens go through

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.heads // self.kv_heads

    @property
    def linear_group(self) -> int:
        """Value heads that share a key head in linear attention."""
        return self.linear_value_heads // max(self.linear_key_heads, 1)


@dataclass(frozen=True)
class Split:
    """This rank's range of every size that is cut; what is not named here is whole on every rank."""

    heads: range
    kv_heads: range  # all that its query heads read, so a KV head at a border is on both sides
    ffn: range
    vocab: range
    linear_key_heads: range = range(0)  # each with all its value heads
    expert_ffn: range = range(0)  # of every expert
    shared_ffn: range = range(0)


def part(count: int, unit: int, rank: int, size: int) -> range:
    """The rank-th of `size` contiguous ranges of `count` things, cut in multiples of `unit`; the last unit may be short."""
    units = -(-count // unit)
    return range(min(units * rank // size * unit, count), min(units * (rank + 1) // size * unit, count))


def split(sizes: Sizes, rank: int, size: int) -> Split:
    """Any number of ranks; a rank may get nothing of a small size."""
    heads = part(sizes.heads, _heads_per_unit(sizes.head_size), rank, size)
    kv_heads = range(heads.start // sizes.group, -(-heads.stop // sizes.group)) if heads else range(0)
    linear = part(sizes.linear_key_heads, _heads_per_unit(sizes.linear_group * sizes.linear_head_size), rank, size)
    ffn, expert_ffn, shared_ffn = (
        part(count, COLUMN_UNIT, rank, size) for count in (sizes.ffn, sizes.expert_ffn, sizes.shared_ffn)
    )
    return Split(heads, kv_heads, ffn, part(sizes.vocab, ROW_UNIT, rank, size), linear, expert_ffn, shared_ffn)


def _heads_per_unit(columns: int) -> int:
    """Heads of so many columns each that together fill whole units."""
    return COLUMN_UNIT // gcd(COLUMN_UNIT, columns)
