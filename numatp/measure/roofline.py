"""What this machine could do at most: read bandwidth and integer dot products, on the threads and kind of pages that are compared.

The question belongs to machine/, but its loops are kernels (kernels/roofline.py), and those stand above machine/. The loops run
on one team alone (run = team.run), or as Steps on all ranks at once.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from numatp.errors import MachineError
from numatp.kernels import roofline as loops
from numatp.kernels.compile import Kernel
from numatp.machine import pages, topology
from numatp.program.builder import Op, Program

L3_TIMES = 8  # memory to read, in sizes of the L3 cache: what is left in it from the last round hardly matters
SECONDS = 0.1  # of one timing
READS: tuple[tuple[str, Kernel, int], ...] = (  # name, kernel, bytes ahead
    ("plain", loops.read, 0),
    ("prefetch 4 KiB", loops.read_ahead, 4096),
    ("non-temporal", loops.read_once, 2048),
    ("4 streams, prefetch 512 B", loops.read_streams, 512),
    ("4 streams, prefetch 2 KiB", loops.read_streams, 2048),
)
DOT = len(READS)  # its index among the loops


@dataclass(frozen=True)
class Area:
    """Memory in one part per thread, huge pages advised, first touched by those threads."""

    address: int
    part_bytes: int  # a multiple of loops.UNIT
    threads: int

    @property
    def num_bytes(self) -> int:
        return self.part_bytes * self.threads

    @classmethod
    def reserve(cls, num_bytes: int, threads: int, run: Callable[[Kernel, np.ndarray], None]) -> "Area":
        """About num_bytes; run(kernel, record) runs on the threads whose memory it shall be."""
        part_bytes = max(num_bytes // threads // loops.UNIT, 1) * loops.UNIT
        area = cls(pages.reserve(part_bytes * threads), part_bytes, threads)
        run(loops.fill, loops.fill.record(memory=area.address, part_bytes=part_bytes))
        return area

    def release(self) -> None:
        pages.release(self.address, self.num_bytes)


def area_bytes(own: Mapping[int, int], everyone: Mapping[int, int], free_bytes: int) -> int:
    """How much a rank should read: its share of L3_TIMES the L3 caches that it uses, at most half of what is free.

    own, everyone: threads of this rank and of all ranks below each L3 cache, which is named by one of its cpus.
    """
    share = sum(L3_TIMES * topology.l3_bytes(cpu) * count // everyone[cpu] for cpu, count in own.items())
    return min(share or 1 << 30, free_bytes // 2)


class Loops:
    """One rank's argument records; control int64 (CONTROL_WORDS,) and sums int32 (threads, 32) may lie in the window."""

    def __init__(self, area: Area, rank: int, control: np.ndarray, sums: np.ndarray):
        self._table = loops.dot_table(area.threads)
        common = {"rank": rank, "control": control.ctypes.data, "sums": sums.ctypes.data}
        self.calls: list[tuple[str, Kernel, np.ndarray]] = [
            (name, kernel, kernel.record(memory=area.address, part_bytes=area.part_bytes, ahead=ahead, **common))
            for name, kernel, ahead in READS
        ]
        self.calls.append(("dot", loops.dot, loops.dot.record(table=self._table.ctypes.data, **common)))

    def programs(self) -> list[Program]:
        """One per loop, in the order of their indices."""
        return [
            Program(f"roofline {name}", [Op(kernel.name, kernel.address, record, [], [])], 0, keep=[self])
            for name, kernel, record in self.calls
        ]


@dataclass(frozen=True)
class Rate:
    per_second: float  # bytes, or operations (a multiplication or an addition each)
    loop: str
    num_bytes: int  # that all threads together read in one round, 0 for products


class Meter:
    """Runs the loops on rank 0. go(index) runs one of them on all ranks; sums: per rank int32 (threads, 32), as Loops has them."""

    def __init__(self, go: Callable[[int], None], control: np.ndarray, sums: list[np.ndarray]):
        self._go, self._control, self._sums = go, control, sums

    def read(self, part_bytes: int, *, threads: int | None = None, ranks: int | None = None, loop: str | None = None) -> Rate:
        """The best loop's rate when every thread reads part_bytes over and over. threads: of each rank; loop: only that one."""
        part_bytes = max(part_bytes // loops.UNIT, 1) * loops.UNIT
        found = []
        for index, (name, _, _) in enumerate(READS):
            if loop in (None, name):
                seconds, total = self._time(index, part_bytes, threads, ranks, expected=part_bytes // 64)
                found.append(Rate(part_bytes * total / seconds, name, part_bytes * total))
        return max(found, key=lambda rate: rate.per_second)

    def dot(self, *, threads: int | None = None, ranks: int | None = None) -> Rate:
        """Multiplications and additions in registers: of 8-bit integers, on tile registers of BF16."""
        seconds, total = self._time(DOT, 0, threads, ranks, expected=loops.DOT_SUM)
        return Rate(loops.DOT_OPS * total / seconds, "dot", 0)

    def _time(self, index: int, part_bytes: int, threads: int | None, ranks: int | None, expected: int) -> tuple[float, int]:
        """(seconds of one round, threads that worked). expected: what a round adds to each lane of a thread's sums."""
        working = [len(sums[:threads]) for sums in self._sums[:ranks]]
        self._control[loops.NUM_BYTES] = part_bytes
        self._control[loops.THREADS] = max(working)
        self._control[loops.RANKS] = len(working)
        rounds = 1
        while True:
            self._control[loops.ROUNDS] = rounds
            for sums in self._sums:
                sums[:] = 0
            began = time.perf_counter()
            self._go(index)
            seconds = time.perf_counter() - began
            for sums, count in zip(self._sums, working, strict=False):
                if (sums[:count, :16].view(np.uint32) != rounds * expected % (1 << 32)).any():
                    raise MachineError("the roofline's loop did not read what it should: a fault of numatp")
            if seconds >= SECONDS:
                return seconds / rounds, sum(working)
            rounds = max(int(rounds * 1.2 * SECONDS / max(seconds, 1e-9)), rounds + 1)
            rounds = min(rounds, self._control[loops.ROUNDS] * 1000)
