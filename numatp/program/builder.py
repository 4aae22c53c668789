"""Recording a Program: ops in order, and the barriers between them.

Every op says which buffers it reads and writes and how its threads divide each: two accesses with the same division touch the
same bytes on the same thread. A barrier is needed before an op that reads or writes what another op wrote, or writes what another
op read, since the last barrier, unless both divide the buffer the same way.

Recording takes no memory: arguments that point into buffers are written into the ops' records when the program is placed.
"""

import ctypes
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from numatp.kernels.compile import Kernel, make_all_ready
from numatp.machine import native
from numatp.program.layout import LINE, Layout, lay_out
from numatp.program.values import Access, Buffer, Pointer, ThreadStride

if TYPE_CHECKING:
    from numatp.weights.matrix import Matrix


@dataclass
class Op:
    name: str
    code: Kernel | int  # or the address of a C function
    record: np.ndarray
    reads: list[Access]
    writes: list[Access]
    matrices: Sequence["Matrix"] = ()  # weights that it multiplies with
    num_bytes: int = 0  # of them, that the whole rank reads in it for one row, for the roofline
    pieces: int = 0  # of equal size that the threads divide those among them by share() (kernels/compile.py)
    barrier: bool = False
    pointers: dict[str, Pointer | ThreadStride] = field(default_factory=dict)  # fields of the record that wait for the placing

    @property
    def accesses(self) -> list[Access]:
        return self.reads + self.writes

    @property
    def address(self) -> int:
        """Of the machine code; asking for it compiles a kernel that is not yet."""
        return self.code if isinstance(self.code, int) else self.code.address


@dataclass
class Program:
    """A flat list of ops as the C runtime executes it, and the memory that it refers to."""

    name: str
    ops: list[Op]
    num_syncs: int
    keep: list[object] = field(default_factory=list)
    times: np.ndarray | None = None  # int64 (threads, ops + 1, 2): a run adds the ns that a thread waited before, was in an op
    own_time: bool = False  # these are each thread's own cpu time
    layout: Layout | None = None  # of the memory for its values, if it has some
    crossings: int = 0  # ops in which this rank exchanges sums with other hosts
    told: list[native.Piece] = field(default_factory=list)  # by rank 0 to other hosts before a Step
    returned: list[native.Piece] = field(default_factory=list)  # by them to rank 0 after it

    @property
    def activation_bytes(self) -> int:
        """Memory that place() wants."""
        return self.layout.num_bytes + LINE if self.layout else 0

    def place(self, memory: np.ndarray | None = None) -> "Program":
        """Takes memory for the values, uint8 (activation_bytes,) or more, and writes their addresses into the ops' records.

        Programs that never run at the same time may have the same memory.
        """
        if self.layout:
            if memory is None:
                memory = unset_memory(self.activation_bytes)
            assert memory.nbytes >= self.activation_bytes
            self.keep.append(memory)
            self.layout.place(-(-memory.ctypes.data // LINE) * LINE)
        for op in self.ops:
            for name, pointer in op.pointers.items():
                op.record[name] = pointer.resolved()
        return self

    @cached_property
    def record(self) -> native.ProgramRecord:
        """What the C runtime reads; asking for it compiles the kernels that are not yet."""
        make_all_ready(op.code for op in self.ops if isinstance(op.code, Kernel))
        table = (native.Op * max(len(self.ops), 1))()
        for entry, op in zip(table, self.ops, strict=False):
            entry.run, entry.args = op.address, op.record.ctypes.data
            entry.barrier = op.barrier
        self.keep.append(table)
        return native.ProgramRecord(
            ctypes.cast(table, ctypes.POINTER(native.Op)), len(self.ops), self.num_syncs,
            None if self.times is None else self.times.ctypes.data, self.crossings, native.pieces(self.told),
            native.pieces(self.returned), self.own_time,
        )  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        return sum(op.num_bytes for op in self.ops)

    @cached_property
    def sections(self) -> Counter[tuple[tuple[int, int], ...]]:
        """How often the weights between two barriers are such products: of each (pieces, bytes) for one row."""
        sections: list[list[tuple[int, int]]] = [[]]
        for op in self.ops:
            if op.barrier:
                sections.append([])
            if op.pieces:
                sections[-1].append((op.pieces, op.num_bytes))
        return Counter(map(tuple, sections))

    def shares(self, threads: int) -> Iterator[tuple[int, np.ndarray]]:
        """Of the weights for one row: how often threads read so much between two barriers, float64 (threads,) bytes."""
        bounds = np.arange(threads + 1)
        for section, times in self.sections.items():
            read = np.zeros(threads)
            for pieces, num_bytes in section:
                read += np.diff(pieces * bounds // threads) * (num_bytes / pieces)
            yield times, read

    def busiest_bytes(self, threads: int) -> float:
        """Of the weights for one row, what one thread would read that were the busiest of `threads` between any two barriers."""
        return sum(times * float(read.max()) for times, read in self.shares(threads))

    def __str__(self) -> str:
        lines = [f"program {self.name}: {len(self.ops)} ops, {sum(op.barrier for op in self.ops)} barriers, {self.num_syncs} syncs"]
        for op in self.ops:
            if op.barrier:
                lines.append("  ------")
            names = (", ".join(access.buffer.name for access in side) for side in (op.writes, op.reads))
            lines.append("  {:<24} {} <- {}".format(op.name, *names))
        return "\n".join(lines)


def unset_memory(num_bytes: int) -> np.ndarray:
    """uint8 (num_bytes,) that holds not-a-number, so that a missing op is seen."""
    return np.full(num_bytes, 0xFF, np.uint8)


class Builder:
    """Takes ops one by one and places the barriers."""

    def __init__(self, name: str, threads: int = 1):
        """threads: that will run it, of this rank."""
        self.name, self.threads = name, threads
        self.ops: list[Op] = []
        self.num_syncs = self.crossings = 0
        self._read: list[Access] = []
        self._written: list[Access] = []

    def add(
        self, kernel: Kernel, reads: list[Access], writes: list[Access], matrices: Sequence["Matrix"] = (),
        num_bytes: int | None = None, pieces: int | None = None, /, **args: float | Pointer | ThreadStride,
    ) -> None:  # fmt: skip
        """Records one op; `args` are the fields of the kernel's argument record.

        matrices: weights that it multiplies with; num_bytes: of them, that it reads for one row, if not all; pieces: that threads
        divide those among them, if not their tiles.
        """
        pointers = {name: value for name, value in args.items() if isinstance(value, (Pointer, ThreadStride))}
        numbers = {name: value for name, value in args.items() if not isinstance(value, (Pointer, ThreadStride))}
        record = kernel.record(**numbers, **dict.fromkeys(pointers, 0))
        if num_bytes is None:
            num_bytes = sum(matrix.num_bytes for matrix in matrices)
        if pieces is None:
            pieces = sum(matrix.tiles for matrix in matrices)
        self._append(Op(kernel.name, kernel, record, reads, writes, matrices, num_bytes, pieces, pointers=pointers))

    def _append(self, op: Op) -> None:
        op.barrier = self._conflicts(op)
        if op.barrier:
            self._read.clear()
            self._written.clear()
        self._read += op.reads
        self._written += op.writes
        self.ops.append(op)

    def _conflicts(self, op: Op) -> bool:
        pairs = [(new, old) for new in op.accesses for old in self._written]
        pairs += [(new, old) for new in op.writes for old in self._read]
        return any(new.meets(old) and not new.agrees(old) for new, old in pairs)

    def sync(self, team: int, lane: Access) -> None:
        """Meeting of this lane of every rank: what each wrote in its lane before can be read after it."""
        self.num_syncs += 1
        record = np.array([(team, self.num_syncs)], dtype=[("team", np.uint64), ("ordinal", np.int64)])
        self._append(Op("sync", native.address_of("numatp_sync"), record, [lane], [lane]))

    def cross(
        self, team: int, rows: int | Pointer, row_bytes: int, outgoing: int, incoming: np.ndarray, reads: list[Access],
        writes: list[Access],
    ) -> None:  # fmt: skip
        """Rows go to this rank's counterparts on other hosts, and theirs come in. incoming: by host, uint64."""
        self.crossings += 1
        pointers = {"rows": rows} if isinstance(rows, Pointer) else {}
        values = (team, 0 if pointers else rows, row_bytes, outgoing, incoming.ctypes.data)
        names = ("team", "rows", "row_bytes", "outgoing", "incoming")
        record = np.array([values], dtype=[(name, np.uint64) for name in names])
        self._append(Op("cross", native.address_of("numatp_cross"), record, reads, writes, pointers=dict(pointers)))

    def finish(self, keep: list[object], until_end: Sequence[Buffer] = ()) -> Program:
        """until_end: buffers that may be read when the program is done."""
        layout = lay_out(self.ops, self.threads, list(until_end))
        return Program(self.name, self.ops, self.num_syncs, keep, layout=layout, crossings=self.crossings)
