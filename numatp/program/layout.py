"""Where each buffer of a program lies: memory is given again after the last read.

Two buffers may share memory if all accesses to one are done before the first to the other on every thread. That a barrier between
them sees to: within a section, which is what lies between two barriers, any thread may be ahead of any other. What every thread has
for itself needs no barrier: its thread touches it in the order of the ops.
"""

from bisect import insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from numatp.program.values import PRIVATE, Buffer

if TYPE_CHECKING:
    from numatp.program.builder import Op

LINE = 128  # bytes; threads must not share cache lines, which are fetched in pairs


@dataclass
class Life:
    """From the first access to a buffer to the last, both inclusive."""

    buffer: Buffer
    num_bytes: int
    first: int  # as numbers of sections, or of ops where each thread has its own
    last: int
    start: int = -1  # its place


@dataclass(frozen=True)
class Layout:
    """What all threads share comes first, then the threads' own parts."""

    shared: list[Life]
    own: list[Life]  # the same places in every thread's part
    threads: int

    @property
    def shared_bytes(self) -> int:
        return _end(self.shared)

    @property
    def own_bytes(self) -> int:
        """Of one thread."""
        return _end(self.own)

    @property
    def num_bytes(self) -> int:
        return self.shared_bytes + self.threads * self.own_bytes

    @property
    def lives(self) -> list[Life]:
        return [*self.shared, *self.own]

    def place(self, address: int) -> None:
        """Gives every buffer its address; `address` is a multiple of LINE."""
        assert address % LINE == 0
        for life in self.shared:
            life.buffer.address = address + life.start
            life.buffer.copy_stride = lined(life.buffer.num_bytes)
        begin, own_bytes = address + self.shared_bytes, self.own_bytes
        for life in self.own:
            life.buffer.address = begin + life.start
            life.buffer.copy_stride = own_bytes


def lay_out(ops: "list[Op]", threads: int, until_end: list[Buffer]) -> Layout:
    """until_end: what may be read when the program is done."""
    shared: dict[Buffer, Life] = {}
    own: dict[Buffer, Life] = {}
    crossing = {access.buffer for op in ops for access in op.accesses if access.division != PRIVATE}
    section = 0
    for number, op in enumerate(ops):
        section += op.barrier
        for buffer in {access.buffer: None for access in op.accesses if access.buffer.address is None}:
            alone = buffer.per_thread and buffer not in crossing
            lives, now = (own, number) if alone else (shared, section)
            size = lined(buffer.num_bytes) * (threads if buffer.per_thread and not alone else 1)
            lives.setdefault(buffer, Life(buffer, size, now, now)).last = now
    for buffer in until_end:
        for lives, end in ((shared, section), (own, len(ops))):
            if buffer in lives:
                lives[buffer].last = end
    numbers = _placed(life for life in shared.values() if not life.buffer.indexes)
    indexes = _placed((life for life in shared.values() if life.buffer.indexes), _end(numbers))
    return Layout(numbers + indexes, _placed(own.values()), threads)


def lined(num_bytes: int) -> int:
    return -(-num_bytes // LINE) * LINE


def _end(lives: list[Life]) -> int:
    return max((life.start + life.num_bytes for life in lives), default=0)


def _placed(lives: Iterable[Life], begin: int = 0) -> list[Life]:
    """From `begin` on, each in the smallest gap that holds it between those that live at the same time."""
    placed: list[Life] = []
    alive: list[tuple[int, int, int]] = []  # (start, end, last access), by start
    for life in sorted(lives, key=lambda life: (life.first, -life.num_bytes)):
        alive = [one for one in alive if one[2] >= life.first]
        gaps, end = [], begin
        for start, stop, _ in alive:
            if start - end >= life.num_bytes:
                gaps.append((start - end, end))
            end = max(end, stop)
        life.start = min(gaps)[1] if gaps else end
        insort(alive, (life.start, life.start + life.num_bytes, life.last))
        placed.append(life)
    return placed
