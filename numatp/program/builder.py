"""Recording a Program: ops in order, and the barriers between them.

Every op says which buffers it reads and writes and how its threads divide each: two accesses with the same division touch the
same bytes on the same thread. A barrier is needed before an op that reads or writes what another op wrote, or writes what another
op read, since the last barrier, unless both divide the buffer the same way.
"""

import ctypes
from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from numatp.kernels.compile import Kernel, make_all_ready
from numatp.machine import native

ANYHOW = None  # a division that matches no other, not even itself
PRIVATE = "private"  # every thread has its own copy


@dataclass(eq=False)
class Buffer:
    """Memory that ops hand to each other; compared by identity."""

    name: str
    address: int
    stride: int = 0  # bytes from row to row
    thread_stride: int = 0  # bytes from one thread's private copy to the next, 0 if it is shared


@dataclass(frozen=True)
class Access:
    buffer: Buffer
    division: Hashable = ANYHOW

    def agrees(self, other: "Access") -> bool:
        return self.division is not ANYHOW and self.division == other.division


@dataclass
class Op:
    name: str
    code: Kernel | int  # or the address of a C function
    record: np.ndarray
    reads: list[Access]
    writes: list[Access]
    num_bytes: int = 0  # weights that the whole rank reads in it, for the roofline
    barrier: bool = False

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

    @cached_property
    def record(self) -> native.ProgramRecord:
        """What the C runtime reads; asking for it compiles the kernels that are not yet."""
        make_all_ready(op.code for op in self.ops if isinstance(op.code, Kernel))
        table = (native.Op * max(len(self.ops), 1))()
        for entry, op in zip(table, self.ops, strict=False):
            entry.run, entry.args, entry.barrier = op.address, op.record.ctypes.data, op.barrier
        self.keep.append(table)
        return native.ProgramRecord(
            ctypes.cast(table, ctypes.POINTER(native.Op)), len(self.ops), self.num_syncs,
            None if self.times is None else self.times.ctypes.data,
        )  # fmt: skip

    @property
    def weight_bytes(self) -> int:
        return sum(op.num_bytes for op in self.ops)

    def __str__(self) -> str:
        lines = [f"program {self.name}: {len(self.ops)} ops, {sum(op.barrier for op in self.ops)} barriers, {self.num_syncs} syncs"]
        for op in self.ops:
            if op.barrier:
                lines.append("  ------")
            names = (", ".join(access.buffer.name for access in side) for side in (op.writes, op.reads))
            lines.append("  {:<24} {} <- {}".format(op.name, *names))
        return "\n".join(lines)


class Builder:
    """Takes ops one by one and places the barriers."""

    def __init__(self, name: str):
        self.name = name
        self.ops: list[Op] = []
        self.num_syncs = 0
        self._read: list[Access] = []
        self._written: list[Access] = []

    def add(self, kernel: Kernel, reads: list[Access], writes: list[Access], num_bytes: int = 0, **args: float) -> None:
        """Records one op; `args` are the fields of the kernel's argument record."""
        self._append(Op(kernel.name, kernel, kernel.record(**args), reads, writes, num_bytes))

    def _append(self, op: Op) -> None:
        op.barrier = self._conflicts(op)
        if op.barrier:
            self._read.clear()
            self._written.clear()
        self._read += op.reads
        self._written += op.writes
        self.ops.append(op)

    def _conflicts(self, op: Op) -> bool:
        pairs = [(new, old) for new in op.reads + op.writes for old in self._written]
        pairs += [(new, old) for new in op.writes for old in self._read]
        return any(new.buffer is old.buffer and not new.agrees(old) for new, old in pairs)

    def sync(self, team: int, lane: Access) -> None:
        """Meeting of this lane of every rank: what each wrote in its lane before can be read after it."""
        self.num_syncs += 1
        record = np.array([(team, self.num_syncs)], dtype=[("team", np.uint64), ("ordinal", np.int64)])
        self._append(Op("sync", native.address_of("numatp_sync"), record, [lane], [lane]))

    def finish(self, keep: list[object]) -> Program:
        return Program(self.name, self.ops, self.num_syncs, keep)
