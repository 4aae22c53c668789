"""How many rows of prompts a Step has while others wait for their next token.

Every Step with rows of prompts makes all panels of weights anew, or reads all weights again, however few the rows are, so few long
Steps bring prompts in sooner than many short ones. A Step may therefore take longer than the time that a token should take beside
prompts, up to MOST of it; the Step after it then has no rows of prompts, and the mean of the two is at most that time.
"""

from numatp.engine.job import ROWS_UNIT

LEAST_ROWS = 2 * ROWS_UNIT  # however long they take; so many where no prompt was measured yet
# Longest Step, in parts of the time that a token should take: what was measured tells the next one to some 20 %, and 99 of 100 gaps
# are to stay below twice that time (bench/LOG.md).
MOST = 1.4
NEWEST = 0.5  # share of the newest measurement in a mean
FASTER = 0.3  # the same of a row that took less than before; one that took more counts at once, for the next may take as long


class Pace:
    def __init__(self, seconds: float, max_rows: int):
        """seconds: that a token should take on average. max_rows: of any Step."""
        self._seconds, self._max_rows = seconds, max_rows
        self._decode: float | None = None  # seconds of a Step without prompts
        self._row: float | None = None  # seconds that a row of a prompt adds to it
        self.pauses = False  # whether the next Step has no rows of prompts if somebody waits for his next token

    def rows(self, decoding: int) -> int:
        """For prompts, in a Step beside so many rows of others; all that there are where nobody waits."""
        rest = self._max_rows - decoding
        if not decoding:
            return rest
        if self.pauses:
            return 0
        if self._row is None:
            return min(LEAST_ROWS, rest)
        decode = self._decode or 0
        longest = min(2 * self._seconds - decode, MOST * self._seconds)
        fitting = int((longest - decode) / self._row) // ROWS_UNIT * ROWS_UNIT
        return min(max(fitting, LEAST_ROWS), rest)

    def measured(self, prompt_rows: int, seconds: float) -> None:
        """A Step of so many rows of prompts, beside those who decode, took so long."""
        self.pauses = prompt_rows > 0 and seconds > self._seconds
        if not prompt_rows:
            self._decode = _mean(self._decode, seconds)
        elif prompt_rows >= ROWS_UNIT:  # fewer say little of what a row costs
            row = max(seconds - (self._decode or 0), 1e-9) / prompt_rows
            self._row = max(row, _mean(self._row, row, FASTER))

    def scored(self) -> None:
        """A Step of scores alone has passed: those who decode come next."""
        self.pauses = True


def _mean(old: float | None, new: float, share: float = NEWEST) -> float:
    return new if old is None else old + share * (new - old)
