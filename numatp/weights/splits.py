"""Which part of the model is this rank's? Pure arithmetic on sizes; nothing here knows tensors or bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, gcd, isfinite

from numatp.errors import UserError

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


def shares_of(wish: Sequence[float] | str | None, nodes: Sequence[int], bandwidth: Mapping[int, float]) -> list[float] | None:
    """Each rank's share of the work, for ranks on these nodes; None is even.

    wish "auto" is as the bandwidth of the nodes (in any unit), which the ranks of a node divide. UserError where it is not known,
    or unless there is one share above 0 for each rank.
    """
    if wish is None:
        return None
    if isinstance(wish, str):
        unknown = [str(node) for node in sorted(set(nodes)) if node not in bandwidth]
        if unknown:
            raise UserError(f"-ts {wish}: the bandwidth of node {', '.join(unknown)} is not known: run 'numatp bandwidth' once")
        return [bandwidth[node] / nodes.count(node) for node in nodes]
    text = ",".join(f"{share:g}" for share in wish)
    if not all(isfinite(share) and share > 0 for share in wish):
        raise UserError(f"-ts {text}: every share must be above 0; for a node that should hold nothing use fewer ranks")
    if len(wish) != len(nodes):
        raise UserError(f"-ts {text} is for {len(wish)} ranks and this job has {len(nodes)}: give one share per rank")
    return list(wish)


def part(count: int, unit: int, rank: int, size: int, shares: Sequence[float] | None = None) -> range:
    """The rank-th of `size` contiguous ranges of `count` things, cut in multiples of `unit`; the last unit may be short.

    Their sizes are as `shares`, to the nearest unit, without them even. The arithmetic is exact: all ranks cut at the same places.
    """
    units = -(-count // unit)
    exact = [Fraction(share) for share in shares or [1] * size]

    def edge(before: int) -> int:
        return min(ceil(units * sum(exact[:before], Fraction()) / sum(exact) - Fraction(1, 2)) * unit, count)

    return range(edge(rank), edge(rank + 1))


def split(sizes: Sizes, rank: int, size: int, shares: Sequence[float] | None = None) -> Split:
    """Any number of ranks, with work as `shares` (see part); a rank may get nothing of a small size."""

    def mine(count: int, unit: int) -> range:
        return part(count, unit, rank, size, shares)

    heads = mine(sizes.heads, _heads_per_unit(sizes.head_size))
    kv_heads = range(heads.start // sizes.group, -(-heads.stop // sizes.group)) if heads else range(0)
    linear = mine(sizes.linear_key_heads, _heads_per_unit(sizes.linear_group * sizes.linear_head_size))
    ffn, expert_ffn, shared_ffn = (mine(count, COLUMN_UNIT) for count in (sizes.ffn, sizes.expert_ffn, sizes.shared_ffn))
    return Split(heads, kv_heads, ffn, mine(sizes.vocab, ROW_UNIT), linear, expert_ffn, shared_ffn)


def _heads_per_unit(columns: int) -> int:
    """Heads of so many columns each that together fill whole units."""
    return COLUMN_UNIT // gcd(COLUMN_UNIT, columns)
