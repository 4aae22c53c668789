"""What the words of a forward pass hand to each other, and the memory that it lies in. Importing this loads no Numba."""

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Literal

from numatp.kernels.layout import NO_WINDOW

ANYHOW = None  # a division that matches no other, not even itself
PRIVATE = "private"  # every thread has its own copy


@dataclass(eq=False)
class Buffer:
    """Memory that ops hand to each other; compared by identity. It has an address, or gets one when its program is placed."""

    name: str
    stride: int = 0  # bytes from row to row
    address: int | None = None  # None: the program finds a place
    num_bytes: int = 0  # of one copy, for that; 0 where a rank has nothing of a matrix
    per_thread: bool = False  # whether every thread has a copy
    indexes: bool = False  # whether it holds integers that kernels go by, which lie apart: no other value's bits become an index
    copy_stride: int = 0  # bytes from one thread's copy to the next, once it is placed
    holds: "Value | None" = None  # the last value that was written into it

    @property
    def thread_stride(self) -> "ThreadStride | int":
        """From one thread's copy to the next, as an argument of an op; 0 if it is shared."""
        return ThreadStride(self) if self.per_thread else 0

    def at(self, offset: int) -> "Pointer":
        """A place in it, in bytes, as an argument of an op."""
        return Pointer(self, offset)


@dataclass(frozen=True)
class Pointer:
    """An argument of an op: an address that is known when its program is placed."""

    buffer: Buffer
    offset: int = 0

    def resolved(self) -> int:
        assert self.buffer.address is not None, f"{self.buffer.name} has no place yet"
        return self.buffer.address + self.offset


@dataclass(frozen=True)
class ThreadStride:
    """An argument of an op: bytes between the threads' copies of a buffer."""

    buffer: Buffer

    def resolved(self) -> int:
        return self.buffer.copy_stride


@dataclass(frozen=True)
class Access:
    """That an op reads or writes a buffer, all of it or some columns of its rows, and how its threads divide that."""

    buffer: Buffer
    division: Hashable = ANYHOW
    columns: range | None = None  # bytes of each row

    @property
    def pointer(self) -> Pointer:
        """Where it begins."""
        return self.buffer.at(0 if self.columns is None else self.columns.start)

    def agrees(self, other: "Access") -> bool:
        """Whether each thread touches the same bytes in both, if they touch the same at all."""
        if self.division == other.division == PRIVATE:
            return True
        return self.division is not ANYHOW and (self.division, self.columns) == (other.division, other.columns)

    def meets(self, other: "Access") -> bool:
        """Whether both touch some of the same bytes."""
        if self.buffer is not other.buffer:
            return False
        mine, theirs = self.columns, other.columns
        return mine is None or theirs is None or (mine.start < theirs.stop and theirs.start < mine.stop)


class Overwritten(Exception):
    """A forward pass reads a value in whose memory lies another by now."""


@dataclass(frozen=True, eq=False)
class Value:
    """float32 rows (rows, width), in memory of their own; columns were written by one op or by several side by side."""

    name: str
    buffer: Buffer
    width: int
    rows: int | Pointer  # where their number stands, and after it how many of them, the first ones, are of long prompts
    parts: tuple[range, ...] = ()  # the columns that each op wrote, in bytes of a row; (): all by one
    division: Hashable = ANYHOW  # how the op that made it divided it, for an op that reads it divided the same way
    most: int = 0  # rows at most, 0: those of a Step
    first: int = 0  # of its columns, in bytes of a row
    whole: "Value | None" = None  # whose columns these are, if they are not all
    heads: int = 1  # rows that each row of the memory is taken as

    def check(self) -> None:
        """Overwritten if another value lies in its memory."""
        holds = self.buffer.holds
        if holds is not (self.whole or self):
            raise Overwritten(
                f"'{self.name}' is read after '{holds.name if holds else 'nothing'}' was written into its memory: "
                "read it before, or go on with what the later word returned"
            )

    def accesses(self, division: Hashable | None = None) -> list[Access]:
        """As the op that made it divided it, or in another way."""
        self.check()
        division = self.division if division is None else division
        return [Access(self.buffer, division, part) for part in self.parts or (None,)]

    def columns(self, first: int, count: int) -> "Value":
        """Some of its columns, where they lie."""
        begin, end = self.first + 4 * first, self.first + 4 * (first + count)
        assert first >= 0 and first + count <= self.width, (self.name, first, count)
        parts = [range(max(part.start, begin), min(part.stop, end)) for part in self.parts or (range(self.buffer.stride),)]
        return replace(
            self, name=f"{self.name}[{first}:{first + count}]", width=count, first=begin, whole=self.whole or self,
            parts=tuple(part for part in parts if part),
        )  # fmt: skip

    def by_heads(self, count: int, width: int) -> "Value":
        """Each row as `count` rows below each other, one for each head, and of these the first `width` columns; of no heads one."""
        count = max(count, 1)
        assert self.width % count == 0 and self.stride == self.width * 4, self.name
        return replace(self, name=f"{self.name} by heads", width=width, parts=(), whole=self.whole or self, heads=count)

    @property
    def pointer(self) -> Pointer:
        return self.buffer.at(self.first)

    def at(self, column: int) -> Pointer:
        return self.buffer.at(self.first + 4 * column)

    @property
    def stride(self) -> int:
        return self.buffer.stride // self.heads

    @property
    def thread_stride(self) -> ThreadStride | int:
        return self.buffer.thread_stride


@dataclass(frozen=True)
class Heads:
    """This rank's heads of an attention layer: queries, keys and values of one size side by side in each row."""

    queries: range  # as numbers in the model
    keys: range  # all that these queries read, as numbers in the model
    group: int  # query heads that share one of keys and values
    size: int  # values of a head

    @property
    def count(self) -> int:
        """In a row: of queries, keys and values."""
        return len(self.queries) + 2 * len(self.keys)


@dataclass(frozen=True)
class LinearHeads:
    """This rank's heads of a layer of linear attention."""

    keys: range  # as numbers in the model; and as many of queries
    all_keys: int  # of the model
    group: int  # value heads that share a key head
    size: int  # values of a head
    tiled: bool  # whether those lie apart: first one of each key head, then the next of each; else they follow each other
    by_channel: bool = False  # whether each channel of a key has a decay of its own; then no key head has several value heads
    bound: float = 0.0  # of the logarithms of these decays, below 0 where they are made by a sigmoid

    @property
    def width(self) -> int:
        """Of all value heads together."""
        return len(self.keys) * self.group * self.size


class Kept:
    """What a layer keeps between tokens, for the words that go with it."""


@dataclass(frozen=True)
class LayerCache(Kept):
    """Keys and values of one layer for this rank's KV heads (kernels/attention.py); strides go from block to block."""

    keys: Buffer
    values: Buffer
    table: int  # which of the Step's tables lists its blocks
    type: str = "f16"  # one of kernels/caches
    window: int = NO_WINDOW  # tokens that a row sees, itself included
    chunked: bool = False  # it sees those of its own chunk of so many tokens
    index: Buffer | None = None  # keys of an indexer (kernels/sparse.py)
    every: int = 1  # tokens that each of them stands for

    @property
    def sees_all(self) -> bool:
        return self.window == NO_WINDOW


@dataclass(frozen=True)
class LayerRows(Kept):
    """Rows that are keys and values at once, for all heads (kernels/compressed.py), of tokens or of entries."""

    rows: Buffer
    table: int  # see LayerCache
    every: int  # tokens of an entry; 1: rows of tokens
    window: int
    index: Buffer | None = None  # keys of an indexer


@dataclass(frozen=True)
class LayerState(Kept):
    """The state of a recurrent layer; its stride goes from sequence to sequence."""

    state: Buffer


@dataclass(frozen=True, kw_only=True)
class Router:
    """How a row's experts are chosen, and what share of the sum each has."""

    used: int  # experts of a row
    function: Literal["softmax", "sigmoid", "root of softplus"]  # what makes shares of the scores; the last: of log(1 + e**score)
    normalize: bool  # divided by their sum
    factor: float = 1.0  # of the shares, in the end
    groups: int = 1  # of neighbouring experts
    groups_used: int = 1  # those with the two most wanted experts; the others' are not chosen
    pairs: bool = True  # else those with the one most wanted


@dataclass(frozen=True, eq=False, kw_only=True)
class Routes:
    """Which rows each expert takes (kernels/experts.py), all in one buffer."""

    buffer: Buffer
    used: int  # experts of a row
    most: int  # places at most
    counts: Pointer  # of places, and of active experts
    active: Pointer
    rows_of_places: Pointer
    experts_of_places: Pointer
    many: Pointer
    places: Pointer
    chosen: Pointer
    shares: Pointer

    @property
    def num_active(self) -> Pointer:
        return replace(self.counts, offset=self.counts.offset + 8)


@dataclass(frozen=True, eq=False, kw_only=True)
class HeadRoutes(Routes):
    """Of heads that rows go through (kernels/latent.py), and the rows that do not."""

    own_spans: Pointer  # of rows that do, as a Step has them
    num_own_spans: Pointer
    num_made: Pointer  # rows that do not
