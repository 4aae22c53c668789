"""Recording a Program: ops in order, and the barriers between them.

Every op says which buffers it reads and writes and how its threads divide each: two accesses with the same division touch the
same bytes on the same thread. A barrier is needed before an op that reads or writes what another op wrote, or writes what another
op read, since the last barrier, unless both divide the buffer the same way.

Recording takes no memory: arguments that point into buffers are written into the ops' records when the program is placed.
"""

import ctypes
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from numatp.kernels.compile import Kernel, make_all_ready
from numatp.machine import native
from numatp.program import division
from numatp.program.division import Tiles
from numatp.program.layout import LINE, Layout, lay_out
from numatp.program.values import Access, Buffer, Pointer, ThreadStride

if TYPE_CHECKING:
    from numatp.program.halves import Layouts
    from numatp.weights.matrix import Matrix


@dataclass(frozen=True)
class Arguments:
    """The fields of an op's argument record. Those that point into buffers have no value before the program is placed."""

    dtype: np.dtype
    values: Mapping[str, float | Pointer | ThreadStride]

    def values_of(self, placed: bool) -> tuple[float, ...]:
        """In the record's order. placed: whether the program is; else 0 stands for what points into buffers."""
        names: tuple[str, ...] = self.dtype.names or ()
        return tuple(
            (value.resolved() if placed else 0) if isinstance(value := self.values[name], (Pointer, ThreadStride)) else value
            for name in names
        )


@dataclass
class Op:
    name: str
    code: Kernel | int  # or the address of a C function
    arguments: Arguments | np.ndarray  # or its record, which then points nowhere that is not known yet
    reads: list[Access]
    writes: list[Access]
    matrices: Sequence["Matrix"] = ()  # weights that it multiplies with
    num_bytes: int = 0  # of them, that the whole rank reads in it for one row, for the roofline
    tiles: Tiles | None = None  # that the threads divide among them
    together: bool = False  # with those of the op before
    barrier: bool = False

    @property
    def accesses(self) -> list[Access]:
        return self.reads + self.writes

    @cached_property
    def record(self) -> np.ndarray:
        """What its code reads, shape (1,); a program that only shows what a rank would do needs none."""
        if isinstance(self.arguments, np.ndarray):
            return self.arguments
        return np.array([self.arguments.values_of(placed=False)], self.arguments.dtype)

    def place(self) -> None:
        """Writes addresses into its record, as the buffers have some now."""
        if isinstance(self.arguments, Arguments):
            values = self.arguments.values_of(placed=True)
            if "record" in vars(self):  # where others know its address
                self.record[0] = values
            else:
                self.record = np.array([values], self.arguments.dtype)

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
    layout: "Layout | Layouts | None" = None  # of the memory for its values, if it has some
    crossings: int = 0  # ops in which this rank exchanges sums with other hosts
    turns: list[int] = field(default_factory=list)  # ops before which it may rest while sums travel, the same on all ranks
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
            op.place()
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
    def sections(self) -> Counter[tuple[tuple[Tiles, ...], ...]]:
        """How often the weights between two barriers are such products, with those in one tuple that threads divide together."""
        sections: list[list[tuple[Tiles, ...]]] = [[]]
        for op in self.ops:
            if op.barrier:
                sections.append([])
            if op.tiles and op.together and sections[-1]:
                sections[-1][-1] += (op.tiles,)
            elif op.tiles:
                sections[-1].append((op.tiles,))
        return Counter(map(tuple, sections))

    def shares(self, threads: int) -> Iterator[tuple[int, np.ndarray]]:
        """Of the weights for one row: how often threads read so much between two barriers, float64 (threads,) bytes."""
        for section, times in self.sections.items():
            yield times, np.sum([division.shares(together, threads) for together in section], axis=0) + np.zeros(threads)

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
        self._turns: list[int] = []
        self._read: dict[Buffer, list[Access]] = {}  # since the last barrier
        self._written: dict[Buffer, list[Access]] = {}

    def add(
        self, kernel: Kernel, reads: list[Access], writes: list[Access], matrices: Sequence["Matrix"] = (),
        num_bytes: int | None = None, tiles: Tiles | None = None, together: bool = False, /,
        **args: float | Pointer | ThreadStride,
    ) -> None:  # fmt: skip
        """Records one op; `args` are the fields of the kernel's argument record.

        matrices: weights that it multiplies with; num_bytes: of them, that it reads for one row, if not all; tiles: that threads
        divide among them; together: with those of the op before.
        """
        assert args.keys() == kernel.fields.keys(), (kernel.name, set(args) ^ set(kernel.fields))
        if num_bytes is None:
            num_bytes = sum(matrix.num_bytes for matrix in matrices)
        self._append(Op(kernel.name, kernel, Arguments(kernel.dtype, args), reads, writes, matrices, num_bytes, tiles, together))

    def _append(self, op: Op) -> None:
        op.barrier = self._conflicts(op)
        if op.barrier:
            self._read.clear()
            self._written.clear()
        for accesses, since in ((op.reads, self._read), (op.writes, self._written)):
            for access in accesses:
                since.setdefault(access.buffer, []).append(access)
        self.ops.append(op)

    def _conflicts(self, op: Op) -> bool:
        for accesses, since in ((op.accesses, self._written), (op.writes, self._read)):
            for new in accesses:
                for old in since.get(new.buffer, ()):
                    if new.meets(old) and not new.agrees(old):
                        return True
        return False

    def sync(self, team: int, lane: Access) -> None:
        """Meeting of this lane of every rank: what each wrote in its lane before can be read after it."""
        self.num_syncs += 1
        record = np.array([(team, self.num_syncs)], dtype=[("team", np.uint64), ("ordinal", np.int64)])
        self._append(Op("sync", native.address_of("numatp_sync"), record, [lane], [lane]))

    def cross(
        self, team: int, rows: int | Pointer, row_bytes: int, outgoing: int, incoming: np.ndarray, reads: list[Access],
        writes: list[Access], half: int | None = None,
    ) -> None:  # fmt: skip
        """Rows go to this rank's counterparts on other hosts, and theirs come in. incoming: by host, uint64. half: of a Step, after
        whose sending the program may rest; None: it waits.
        """
        self.crossings += 1
        values = {
            "team": team, "rows": rows, "row_bytes": row_bytes, "outgoing": outgoing, "incoming": incoming.ctypes.data,
            "half": half or 0,
        }  # fmt: skip
        arguments = Arguments(np.dtype([(name, np.uint64) for name in values]), values)
        if half is None:
            self._append(Op("cross", native.address_of("numatp_cross"), arguments, reads, writes))
            return
        self._append(Op("begin cross", native.address_of("numatp_cross_begin"), arguments, reads, []))
        self.rest()
        self._append(Op("end cross", native.address_of("numatp_cross_end"), arguments, [], writes))

    def rest(self) -> None:
        """Here another half of the Step may be computed."""
        self._turns.append(len(self.ops))

    def pass_rows(
        self, team: int, rows: int, row_bytes: int, at: int, host: int, take: bool, reads: list[Access], writes: list[Access]
    ) -> None:  # fmt: skip
        """Rows at an address go to this rank's counterpart on another host, or come from it."""
        names = ("team", "rows", "row_bytes", "at", "host", "take")
        record = np.array([(team, rows, row_bytes, at, host, take)], dtype=[(name, np.uint64) for name in names])
        self._append(Op("pass", native.address_of("numatp_pass"), record, reads, writes))

    def hand_on(self, team: int, sums: Access) -> None:
        """What a thread wrote of `sums` before can be read by the next thread after its next take_over()."""
        self._meet("hand_on", {"team": team}, sums)

    def take_over(self, team: int, waits: int, sums: Access) -> None:
        """waits: address of int64 (threads,), not 0 for each that goes on with what the thread before it has handed on."""
        self._meet("take_over", {"team": team, "waits": waits}, sums)

    def _meet(self, name: str, values: dict[str, int], sums: Access) -> None:
        arguments = Arguments(np.dtype([(field, np.uint64) for field in values]), values)
        self._append(Op(name, native.address_of(f"numatp_{name}"), arguments, [sums], [sums]))

    def finish(self, keep: list[object], until_end: Sequence[Buffer] = ()) -> Program:
        """until_end: buffers that may be read when the program is done."""
        layout = lay_out(self.ops, self.threads, list(until_end))
        return Program(self.name, self.ops, self.num_syncs, keep, layout=layout, crossings=self.crossings, turns=self._turns)
