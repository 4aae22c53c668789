"""A progress bar on stderr, only where stderr is a terminal."""

import sys

WIDTH = 30  # characters of the bar


class Progress:
    def __init__(self, label: str):
        self._label, self._shown, self._terminal = label, -1, sys.stderr.isatty()

    def __enter__(self) -> "Progress":
        return self

    def update(self, done: int, total: int) -> None:
        """Bytes done of all bytes."""
        percent = 100 * done // max(total, 1)
        if self._terminal and percent != self._shown:
            self._shown = percent
            bar = "#" * (WIDTH * percent // 100)
            print(f"\r{self._label} [{bar:<{WIDTH}}] {percent:3d} %", end="", file=sys.stderr, flush=True)

    def __exit__(self, *error: object) -> None:
        if self._shown >= 0:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
