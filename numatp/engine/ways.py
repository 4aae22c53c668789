"""Which of two ways a long Step goes over several hosts, whole or in two halves: the faster of both in the first such Steps."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

TRIES = 3  # Steps of each way, in turns; the first run of a program is slower


class TwoWays:
    def __init__(self) -> None:
        self._took: dict[bool, list[float]] = {True: [], False: []}  # seconds a row, by whether in halves

    @contextmanager
    def one_step(self, rows: int) -> Iterator[bool]:
        """Around a Step of so many rows: whether it goes in halves."""
        tried = min(self._took, key=lambda way: len(self._took[way]))
        in_halves = tried if len(self._took[tried]) < TRIES else min(self._took, key=lambda way: min(self._took[way]))
        began = time.perf_counter()
        yield in_halves
        if len(self._took[in_halves]) < TRIES:
            self._took[in_halves].append((time.perf_counter() - began) / rows)
