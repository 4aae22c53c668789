"""Which part of the model is this rank's? Pure arithmetic on sizes; nothing here knows tensors or bytes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, gcd, isfinite
from typing import TypeVar

from numatp.errors import UserError

COLUMN_UNIT = 32  # a matrix is cut along its columns in steps of this many
ROW_UNIT = 16  # and along its rows in steps of this many
SEGMENTS = 8  # that a sum over ranks has where its bits shall be the same for 1, 2, 4 and 8 of them

Value = TypeVar("Value")
Node = TypeVar("Node", int, str)  # what a node is called


@dataclass(frozen=True)
class Cut:
    """A size that is cut between ranks, into contiguous ranges of multiples of `unit`."""

    count: int
    unit: int


@dataclass(frozen=True)
class Shared:
    """A size of which each rank has what its range of another word reads: `group` of those read the same one.

    What two ranks read at a border, both have.
    """

    count: int
    by: str  # the other word
    group: int


def cut_columns(count: int) -> Cut:
    """Where a matrix has so many columns."""
    return Cut(count, COLUMN_UNIT)


def cut_rows(count: int) -> Cut:
    """Where a matrix has so many rows, and no other has them as columns."""
    return Cut(count, ROW_UNIT)


def cut_heads(count: int, columns: int) -> Cut:
    """Heads of so many columns each, where whole units of columns begin."""
    return Cut(count, COLUMN_UNIT // gcd(COLUMN_UNIT, columns))


class Words(Mapping[str, Value]):
    """Values by word, as attributes too."""

    def __init__(self, values: Mapping[str, Value]):
        self._values = dict(values)

    def __getitem__(self, word: str) -> Value:
        return self._values[word]

    def __getattr__(self, word: str) -> Value:
        if not word.startswith("_") and word in self._values:
            return self._values[word]
        raise AttributeError(f"no size is called {word!r}")

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._values})"


class Sizes(Words[int]):
    """Sizes of a model, in the words of its tensor tables; every architecture may say words of its own, and how each is cut.

    What is a plain number is whole on every rank.
    """

    def __init__(self, **words: int | Cut | Shared):
        super().__init__({word: size if isinstance(size, int) else size.count for word, size in words.items()})
        self.cuts = {word: size for word, size in words.items() if not isinstance(size, int)}


class Split(Words[range]):
    """This rank's range of every word that is cut; what is not named here is whole on every rank."""


def shares_of(wish: Sequence[float] | str | None, nodes: Sequence[Node], bandwidth: Mapping[Node, float]) -> list[float] | None:
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
    ranges = {word: part(cut.count, cut.unit, rank, size, shares) for word, cut in sizes.cuts.items() if isinstance(cut, Cut)}
    for word, cut in sizes.cuts.items():
        if isinstance(cut, Shared):
            readers = ranges[cut.by]
            ranges[word] = range(readers.start // cut.group, -(-readers.stop // cut.group)) if readers else range(0)
    return Split(ranges)


def segments(sizes: Sizes, rank: int, size: int) -> tuple[Split, ...]:
    """What a rank has, in segments that are the same for every number of ranks: the parts that SEGMENTS ranks would have.

    One of a small size may be empty. UserError for a number of ranks that they cannot be dealt to evenly.
    """
    if SEGMENTS % size:
        raise UserError(
            f"--same-bits holds for 1, 2, 4 and {SEGMENTS} ranks, and this job has {size}: ask for one of these, or leave it out"
        )
    return tuple(split(sizes, segment, SEGMENTS) for segment in range(rank * SEGMENTS // size, (rank + 1) * SEGMENTS // size))
