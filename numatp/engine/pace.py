"""How many rows of prompts a Step has while others wait for their next token: as many as fit into a time."""

from numatp.engine.job import ROWS_UNIT

FIRST_ROWS = 2 * ROWS_UNIT  # where no prompt was measured yet
NEWEST = 0.5  # share of the newest measurement in a mean


class Pace:
    def __init__(self, seconds: float, max_rows: int):
        """seconds: that a Step should take at most. max_rows: of any Step."""
        self._seconds, self._max_rows = seconds, max_rows
        self._decode: float | None = None  # seconds of a Step without prompts
        self._row: float | None = None  # seconds that a row of a prompt adds to it

    def rows(self, decoding: int) -> int:
        """For prompts, in a Step beside so many rows of others; all that there are where nobody waits."""
        rest = self._max_rows - decoding
        if not decoding:
            return rest
        if self._row is None:
            return min(FIRST_ROWS, rest)
        fitting = int((self._seconds - (self._decode or 0)) / self._row)
        return min(max(fitting // ROWS_UNIT, 1) * ROWS_UNIT, rest)

    def measured(self, prompt_rows: int, seconds: float) -> None:
        """A Step of so many rows of prompts took so long."""
        if not prompt_rows:
            self._decode = _mean(self._decode, seconds)
        elif prompt_rows >= ROWS_UNIT:  # fewer say little of what a row costs
            self._row = _mean(self._row, max(seconds - (self._decode or 0), 1e-9) / prompt_rows)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + NEWEST * (new - old)
