"""What every word needs to record its ops: the place where the program will run, buffers for values, and activations made once.

Two programs are recorded from one description: for Steps of one row, where every thread makes small activations for itself
(cheaper than a barrier), and for Steps of many rows, where threads share the rows. A third ends in scores instead of logits.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace

import numpy as np

from numatp import quants
from numatp.kernels import activation
from numatp.kernels.digest import digest
from numatp.kernels.layout import CACHE_BLOCK, PANELS_BYTES
from numatp.kernels.rows import GROUP, MANY
from numatp.program.builder import Builder, Program
from numatp.program.step import StepWindow
from numatp.program.values import ANYHOW, PRIVATE, Access, Buffer, Pointer, Routes, ThreadStride, Value
from numatp.quants.table import Format
from numatp.weights.splits import Split


@dataclass(frozen=True)
class Wires:
    """How sums go between hosts: the first `count` ranks of each exchange one slice of the columns with their counterparts."""

    count: int
    hosts: int
    half: bool  # whether BF16 goes between hosts, not float32
    outgoing: int  # address of (max_rows + GROUP, columns of this rank's slice); 0: its partial is what goes out
    incoming: np.ndarray  # addresses uint64 (hosts,), of as much from each of the others
    sums: tuple[np.ndarray, np.ndarray]  # per parity: addresses uint64 (count, hosts), where each slice of each host's sum lies


@dataclass(frozen=True)
class Passage:
    """How rows go between the layers of two hosts: the first `count` ranks of each pass one slice of the columns."""

    host: int  # the other one
    count: int
    half: bool  # as BF16, not float32
    slices: np.ndarray  # addresses uint64 (count,), each of (max_rows + GROUP, columns of the slice)


@dataclass(frozen=True)
class Passages:
    """Where the rows of a host that holds a run of layers come from and go to; None: it is the first, the last."""

    layers: range
    before: Passage | None
    after: Passage | None
    width: int  # numbers of a token that go from layer to layer
    residual: int  # address of this rank's (max_rows + GROUP, width) float32, the rows between layers
    tiled: bool  # whether a product of an earlier layer, on another host, may take rows through tile registers


class NoLogits(Exception):
    """The forward pass ends behind its layers: it goes on on the next host, or no row wants logits."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where a program will run: this rank, its threads, and the memory that it shares with others."""

    rank: int  # among those that cut a layer; 0 adds what is added once
    seat: int  # among the ranks of this host, which share the memory below
    seats: int
    threads: int
    lanes: int  # smallest thread count of any rank
    team: int  # address of the C runtime's team
    width: int  # of the residual stream
    step: StepWindow
    partials: tuple[np.ndarray, np.ndarray]  # per parity: addresses uint64 (seats,), each of (max_rows + GROUP, width) float32
    logits: int  # address of (max_spans, logit_stride bytes), in the part of seat 0
    logit_stride: int
    scores: int  # address of this rank's (max_rows, segments, 4) float32, see kernels/score.py
    tops: int  # and of its most probable tokens, likewise
    segments: tuple[Split, ...] = ()  # of this rank's part, each summed for itself; (): it is one
    wires: Wires | None = None  # None: all ranks that cut a layer are on one host
    passages: Passages | None = None  # None: this host has all layers
    half: int | None = None  # of a Step in two halves: 0 goes ahead and makes no logits, 1 follows (program/halves.py)
    digests: int = 0  # address of this rank's int64 digests of what all ranks must hold alike; 0: none are made


@dataclass(frozen=True)
class Activation:
    """Rows as a kernel multiplies them (kernels/activation.py)."""

    pointer: Pointer
    group_bytes: int  # from group to group
    thread_stride: ThreadStride | int
    access: Access


class Recorder:
    """Records one program; `max_rows` is the most rows a Step of it may have, a multiple of GROUP or 1."""

    def __init__(self, name: str, site: Site, max_rows: int, scored: bool = False):
        self.site = site
        self.max_rows = max_rows
        self.scored = scored
        self.private = max_rows == 1
        self.pitch = 1 if self.private else GROUP
        assert max_rows % self.pitch == 0
        # Rows that products may write: those after a long prompt's begin with a group of their own, whose spare rows lie behind.
        self.room = max_rows + (0 if self.private else GROUP)
        self.digests: list[str] = []  # of what, in order
        self._builder = Builder(name, site.threads)
        self._constants: dict[int, np.ndarray] = {}  # by identity
        self._zeros: dict[int, int] = {}
        self._of_ones: dict[int, int] = {}
        self._row_numbers = Buffer("row numbers")  # 0, 1, 2, ...: for kernels that take some rows, and here take all
        self._most_rows = 0  # of them
        self._activations: dict[tuple[Value, str, int, bool, Routes | None], Activation] = {}
        # Whether a product so far may take rows through tile registers: attention does likewise (not in models of plain numbers).
        self._tiled = site.passages is not None and site.passages.tiled
        self._until_end: list[Buffer] = []
        self._num_exchanges = 0
        self._partials = [
            Buffer(f"partial{parity}", site.width * 4, address=int(site.partials[parity][site.seat])) for parity in (0, 1)
        ]
        passages, row_bytes = site.passages, site.width * 4
        self._residual = Buffer("residual", row_bytes, num_bytes=self.room * row_bytes)
        self._passed = self._residual  # what goes from layer to layer, and from host to host
        if passages:
            self._passed = Buffer("rows between layers", passages.width * 4, passages.residual)
            if passages.width == site.width:
                self._residual = self._passed
        self._outgoing = Buffer("outgoing", address=site.wires.outgoing if site.wires else 0)
        self._arrived = Buffer("sums of hosts", address=0)  # several pieces, see Wires
        step = site.step
        self._rows, self._num_logits, self._num_spans = (a.ctypes.data for a in (step.num_rows, step.num_logits, step.num_spans))
        self._positions, self._sequences, self._spans = (a.ctypes.data for a in (step.positions, step.sequences, step.spans))
        self._joined, self._num_joined = step.joined.ctypes.data, step.num_joined.ctypes.data

    @property
    def longest(self) -> int:
        """Tokens that a sequence may have, in whole blocks of the cache."""
        return int(self.site.step.shape.table_length * CACHE_BLOCK)

    def finish(self) -> Program:
        """Its memory is counted, and taken by Program.place."""
        self._row_numbers.address = self._constant(np.arange(self._most_rows))
        return self._builder.finish(list(self._constants.values()), self._until_end)

    def _constant(self, array: np.ndarray) -> int:
        """The address of an array that lives as long as the program."""
        self._constants[id(array)] = array
        return array.ctypes.data

    def _ones(self, count: int) -> int:
        """The address of float32 (count,) that are 1."""
        if count not in self._of_ones:
            self._of_ones[count] = self._constant(np.ones(count, np.float32))
        return self._of_ones[count]

    def _every_row(self, most: int) -> Pointer:
        """The numbers of all rows, `most` at most."""
        self._most_rows = max(self._most_rows, most)
        return Pointer(self._row_numbers)

    # ------------------------------------------------------------ memory

    def _buffer(
        self, name: str, row_bytes: int, per_thread: bool = False, rows: int | None = None, indexes: bool = False
    ) -> Buffer:
        """Memory for (room, row_bytes), or as many rows; it is free again after the last op that reads it."""
        return Buffer(name, row_bytes, num_bytes=(rows or self.room) * row_bytes, per_thread=per_thread, indexes=indexes)

    def _made(
        self, buffer: Buffer, width: int, rows: int | Pointer, name: str = "", division: Hashable = ANYHOW, most: int = 0,
        parts: tuple[range, ...] = (),
    ) -> Value:  # fmt: skip
        """What now lies in the buffer; whatever lay there can be read no more."""
        value = Value(name or buffer.name, buffer, width, rows, parts, division, most)
        buffer.holds = value
        return value

    def _changed(self, x: Value, name: str) -> Value:
        """x after a word has written over it, under a new name."""
        x.check()
        assert not x.whole, f"{x.name} is a part of a value"
        return self._made(x.buffer, x.width, x.rows, name, x.division, x.most, x.parts)

    # ------------------------------------------------------------ how threads divide a value

    def _columns(self, width: int) -> Hashable:
        """The columns of a matrix product, among this rank's threads."""
        return ("columns", width, self.site.threads)

    def _lanes(self, width: int) -> Hashable:
        return ("columns", width, self.site.lanes)

    def _heads(self, heads: int) -> Hashable:
        """The heads of all rows."""
        return ("heads", heads, self.site.threads)

    def _share_of_rows(self, rows: int | Pointer) -> Hashable:
        return PRIVATE if self.private else ("rows", rows, self.site.threads)

    # ------------------------------------------------------------ activations

    def _activation(self, x: Value, format: Format, routes: Routes | None = None) -> Activation:
        """x as matrices of a format want it, made once for all that read it.

        routes: it is wanted at the places of their experts; x has these places or the rows of the Step.
        """
        x.check()
        if routes and self.private and not x.most and x.heads == 1:  # every place has the one row
            return replace(self._activation(x, format), group_bytes=0)
        kernels = quants.kernels_of(format.name)
        tiled = kernels.expand is not None
        self._tiled |= tiled
        wanted = x, kernels.ACTIVATION, kernels.ZERO, tiled, routes
        if wanted not in self._activations:
            self._activations[wanted] = self._make_activation(*wanted)
        return self._activations[wanted]

    def _make_activation(self, x: Value, form: str, zero: int, tiled: bool, routes: Routes | None) -> Activation:
        # A product reads all rows on every thread, however they were written.
        if form == "f32" and self.private and (x.most or not routes):
            access = Access(x.buffer, PRIVATE if x.division == PRIVATE else ANYHOW)
            return Activation(x.pointer, x.stride, x.thread_stride, access)
        group = activation.group_bytes(form, x.width, self.pitch)
        reads, name = x.accesses(), f"{x.name}.{form}"
        most, rows = x.most or self.max_rows, x.rows
        select = self._every_row(most)
        many: int | Pointer = 0
        if routes:
            reads, name, many = [*reads, Access(routes.buffer)], f"{name}.routed", routes.many
            if not x.most:
                most, rows, select = routes.most, routes.counts, routes.rows_of_places
        out = self._buffer(name, group, self.private, rows=(most if routes else self.room) // self.pitch)
        # Whole groups on one thread would divide few rows badly, so rows are divided: the access is not by column or group.
        division = self._share_of_rows(rows)
        kernel, width = (activation.quantize, {"blocks": x.width // activation.BLOCK, "zero": zero}) if form == "q8" else (
            activation.interleave, {"width": x.width}
        )  # fmt: skip
        self._builder.add(
            kernel, reads, [Access(out, division)],
            x=x.pointer, x_stride=x.stride, x_thread_stride=x.thread_stride, select=select, rows=rows,
            tiled=tiled, routed=routes is not None, many=many,
            out=out.at(0), out_group=group, out_thread_stride=out.thread_stride, pitch=self.pitch, private=self.private,
            **width,
        )  # fmt: skip
        return Activation(out.at(0), group, out.thread_stride, Access(out, PRIVATE if self.private else ANYHOW))

    def _panels(self) -> tuple[dict[str, Pointer | ThreadStride | int], list[Access]]:
        """(arguments of a product, what it writes): each thread's room for panels of weights, where rows may be many."""
        if self.private or not MANY:  # no row goes through tile registers
            return {"panels": 0, "panels_thread_stride": 0}, []
        room = self._buffer("panels", PANELS_BYTES, per_thread=True, rows=1)
        return {"panels": room.at(0), "panels_thread_stride": room.thread_stride}, [Access(room, PRIVATE)]

    # ------------------------------------------------------------ ranks that compare

    def _digest(self, what: str, access: Access, x: Pointer, stride: int, words: int, rows: int | Pointer) -> None:
        if self.site.digests:
            out = self.site.digests + 8 * len(self.digests)
            self._builder.add(digest, [access], [], x=x, stride=stride, rows=rows, words=words, out=out)
            self.digests.append(f"{what} after exchange {self._num_exchanges}")
