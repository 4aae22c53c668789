"""Which block of the cache is whose, on rank 0; all ranks use the same numbers.

A block is free, or held by the sequences that read it, or kept: held by none, but its tokens are known (engine/prefixes.py) and may
be asked for again. Whoever needs a block gets a free one, or else the kept one that was released longest ago.
"""

from collections.abc import Callable

from numatp.engine.cache import Pool, num_blocks
from numatp.kernels.layout import CACHE_BLOCK, NO_WINDOW


class Blocks:
    def __init__(self, pools: list[Pool], max_rows: int):
        """max_rows: of one Step."""
        self.pools, self._max_rows = pools, max_rows
        self._free = [list(range(pool.blocks))[::-1] for pool in pools]
        self._holders = [[0] * pool.blocks for pool in pools]  # sequences that read each block
        self._known = [[False] * pool.blocks for pool in pools]
        self._kept: list[dict[int, None]] = [{} for _ in pools]  # known ones that nobody holds, in the order of their release
        self.forgotten: Callable[[int, int], None] = lambda pool, block: None  # told of a known block that is taken for others

    def most(self, pool: int, tokens: int) -> int:
        """Blocks that a sequence of so many tokens holds at most at the same time."""
        window, held = self.pools[pool].window, num_blocks(tokens)
        return held if window == NO_WINDOW else min(held, num_blocks(window + self._max_rows) + 1)

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many has room if it is alone."""
        return all(self.most(i, tokens) <= pool.blocks for i, pool in enumerate(self.pools))

    def available(self, pool: int) -> int:
        """Blocks that can be taken."""
        return len(self._free[pool]) + len(self._kept[pool])

    def free(self, pool: int) -> int:
        """Blocks that can be taken without forgetting anything."""
        return len(self._free[pool])

    def count(self, pool: int) -> tuple[int, int]:
        """(held, kept)."""
        return self.pools[pool].blocks - self.available(pool), len(self._kept[pool])

    def take(self, pool: int) -> int | None:
        """A block, held once; None if there is none."""
        if not self._free[pool] and self._kept[pool]:
            oldest = next(iter(self._kept[pool]))
            self.forget(pool, oldest)
            self.forgotten(pool, oldest)
        if not self._free[pool]:
            return None
        block = self._free[pool].pop()
        self._holders[pool][block] = 1
        return block

    def hold(self, pool: int, block: int) -> None:
        """One sequence more reads the block, which is held or kept."""
        self._holders[pool][block] += 1
        self._kept[pool].pop(block, None)

    def release(self, pool: int, blocks: list[int]) -> None:
        """One sequence less reads each of them; who is read by none is free, or kept, the last of them the shortest."""
        holders = self._holders[pool]
        for block in reversed(blocks):
            holders[block] -= 1
            if not holders[block]:
                if self._known[pool][block]:
                    self._kept[pool][block] = None
                else:
                    self._free[pool].append(block)

    def remember(self, pool: int, block: int) -> None:
        """A held block's tokens are known from now on: it is kept when nobody holds it any more."""
        self._known[pool][block] = True

    def forget(self, pool: int, block: int) -> None:
        """Nobody will ask for its tokens again."""
        self._known[pool][block] = False
        if block in self._kept[pool]:
            del self._kept[pool][block]
            self._free[pool].append(block)


class Tables:
    """The blocks of one sequence: per pool, block numbers from its first token on; places before a window are meaningless."""

    def __init__(self, blocks: Blocks):
        self._blocks = blocks
        self.numbers: list[list[int]] = [[] for _ in blocks.pools]
        self.first = [0] * len(blocks.pools)  # blocks before it have been given back
        self._settled = 0  # tokens up to which no block is needed, and none is to be given back

    def has_room(self, position: int, count: int) -> bool:
        """Whether there are blocks for `count` tokens from `position` on; gives back what no window reaches any more."""
        if position + count <= self._settled:
            return True
        self._pass(position)
        return all(self._missing(pool, position + count) <= self._blocks.available(pool) for pool in range(len(self.numbers)))

    def prepare(self, position: int, count: int) -> list[list[int]]:
        """Takes blocks for `count` tokens from `position` on; gives back what no window reaches any more."""
        if position + count <= self._settled:
            return self.numbers
        self._pass(position)
        for pool, numbers in enumerate(self.numbers):
            for _ in range(self._missing(pool, position + count)):
                block = self._blocks.take(pool)
                assert block is not None, "asked before"
                numbers.append(block)
        ends = [len(numbers) * CACHE_BLOCK for numbers in self.numbers]
        passes = [(self.first[i] + 1) * CACHE_BLOCK + pool.window - 1 for i, pool in enumerate(self._blocks.pools)]
        self._settled = min(*ends, *passes) if ends else 0
        return self.numbers

    def held(self, pool: int) -> int:
        return len(self.numbers[pool]) - self.first[pool]

    def release(self) -> None:
        for pool, numbers in enumerate(self.numbers):
            self._blocks.release(pool, numbers[self.first[pool] :])
            numbers.clear()
            self.first[pool] = 0
        self._settled = 0

    def _pass(self, position: int) -> None:
        for pool, numbers in enumerate(self.numbers):
            first = max(position + 1 - self._blocks.pools[pool].window, 0) // CACHE_BLOCK
            if first > self.first[pool]:
                self._blocks.release(pool, numbers[self.first[pool] : first])
                self.first[pool] = first

    def _missing(self, pool: int, end: int) -> int:
        return max(num_blocks(end) - len(self.numbers[pool]), 0)
