"""How far long work is, on stderr: a bar on a terminal, elsewhere a line now and then."""

import sys
import time

WIDTH = 30  # characters of the bar
LINE_SECONDS = 10  # between two lines; work that is done sooner says nothing


class Progress:
    def __init__(self, label: str):
        self._label, self._shown, self._terminal, self._last = label, -1, sys.stderr.isatty(), time.monotonic()

    def __enter__(self) -> "Progress":
        return self

    def update(self, done: int, total: int) -> None:
        """Done of all, in any unit."""
        percent, now = 100 * done // max(total, 1), time.monotonic()
        if self._terminal and percent != self._shown:
            self._shown = percent
            bar = "#" * (WIDTH * percent // 100)
            print(f"\r{self._label} [{bar:<{WIDTH}}] {percent:3d} %", end="", file=sys.stderr, flush=True)
        elif not self._terminal and now - self._last > LINE_SECONDS:
            self._last = now
            print(f"numatp: {self._label} {percent} %", file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        if self._shown >= 0:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
