"""Parts of every rank's cache on their way to rank 0 and back: a block of a pool, or a state of the recurrent layers.

The other ranks run Steps and no Python of their own, so each copies its bytes in an op: a program of one Python function, as the
audit is. Between the Steps of a model, and only where prompts outlive the process (engine/saved.py).
"""

import ctypes
from collections.abc import Callable

import numpy as np

from numatp.engine.load import Loaded
from numatp.program.builder import Op, Program
from numatp.ranks.world import World

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class Carry:
    """This rank's share in it. Made by all ranks together. A part has the number of its pool; the last one may be states."""

    def __init__(self, world: World, loaded: Loaded):
        cache, host = loaded.layout.cache, world.host
        self._parts = [(loaded.cache_at + start, size) for start, size in cache.parts]
        self._sizes: list[list[int]] = world.gather([size for _, size in cache.parts])  # by rank, of one block or state
        largest = [max(sizes, default=0) for sizes in self._sizes]
        self._order = host.map_shared([24] + [0] * (host.seats - 1))[0].view(np.int64)  # to the window?, part, number
        self._windows = world.map_parts(largest)
        self._mine = self._windows[host.seat].ctypes.data
        op = KERNEL(lambda args, thread, threads: self._copy() if thread == 0 else None)
        address = ctypes.cast(op, ctypes.c_void_p).value
        assert address
        self.program = Program("carry", [Op("carry", address, np.zeros(1, np.int64), [], [])], 0, keep=[op])
        self.program.returned = world.returned(self._windows)
        self.program.told = world.told(self._order) + self.program.returned  # what goes out lies where it comes back to

    @property
    def part_bytes(self) -> list[int]:
        """Of all ranks together."""
        return [sum(sizes) for sizes in zip(*self._sizes, strict=True)]

    def read(self, run: Callable[[], None], part: int, number: int) -> bytes:
        """On rank 0: the bytes of all ranks, one after another. run() makes a Step of the program."""
        self._order[:] = 1, part, number
        run()
        return b"".join(window[: sizes[part]].tobytes() for window, sizes in zip(self._windows, self._sizes, strict=True))

    def write(self, run: Callable[[], None], part: int, number: int, content: bytes) -> None:
        """On rank 0: what read() gave."""
        told, at = np.frombuffer(content, np.uint8), 0
        for window, sizes in zip(self._windows, self._sizes, strict=True):
            window[: sizes[part]] = told[at : at + sizes[part]]
            at += sizes[part]
        self._order[:] = 0, part, number
        run()

    def _copy(self) -> None:
        """On thread 0 of every rank, from C."""
        outward, part, number = self._order.tolist()
        start, size = self._parts[part]
        there = start + number * size
        target, source = (self._mine, there) if outward else (there, self._mine)
        ctypes.memmove(target, source, size)
