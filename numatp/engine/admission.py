"""Who runs: sequences in the order of their arrival, as far as there are places and blocks.

A sequence takes blocks Step by Step. Where they run out the youngest is set back: it gives its blocks to an older one and waits
again, with its tokens kept, until it has room to be computed anew. The oldest is never set back, so somebody always gets on.

A sequence begins with what the cache knows of its tokens. If an older one is just computing more of what both begin with, it waits
for that, in its place.
"""

from bisect import insort
from collections.abc import Callable

from numatp.engine.blocks import Blocks
from numatp.engine.prefixes import Prefixes
from numatp.engine.sequence import Sequence
from numatp.errors import UserError
from numatp.kernels.layout import CACHE_BLOCK, NO_WINDOW


class Admission:
    def __init__(
        self, blocks: Blocks, prefixes: Prefixes, places: int, context: int, copy_states: Callable[[list[tuple[int, int]]], None]
    ):
        """places: sequences at the same time. context: tokens of the longest. copy_states: as the engine's."""
        self._blocks, self._prefixes, self._context = blocks, prefixes, context
        self._copy_states = copy_states
        self._places = list(range(places))[::-1]
        self._arrived = 0
        self.waiting: list[Sequence] = []  # both in the order of arrival
        self.running: list[Sequence] = []
        self.set_back_count = 0

    def submit(self, sequence: Sequence) -> None:
        """It waits, or gets a UserError if it can never run."""
        needed = sequence.next_tokens(self._context)
        if needed > self._context or not self._blocks.fits(needed):
            error = f"{needed} tokens do not fit into the context of {self._context}: a shorter prompt or a larger -c (ctx)"
            sequence.put(UserError(error))
            return
        self._arrived += 1
        sequence.arrival = self._arrived
        self.waiting.append(sequence)

    def admit(self) -> None:
        """Takes in who has a place and room for all its tokens, beside what the others need for theirs."""
        while self.waiting and self._places:
            sequence = self.waiting[0]
            sequence.shared = max((self._in_common(sequence, other) for other in self.running), default=0)
            if not self._has_room(sequence):
                return
            self.waiting.pop(0)
            sequence.start(self._places.pop(), self._context)
            insort(self.running, sequence, key=lambda s: s.arrival)

    def begin(self, sequence: Sequence) -> bool:
        """Whether it has tables now, with what the cache knows of it; False while an older one computes more of that."""
        if sequence.tables:
            return True
        found = self._prefixes.find(sequence.tokens, sequence.reusable, sequence.exact, sequence.salt)
        for other in self.running[: self.running.index(sequence)]:
            common = self._in_common(sequence, other) * CACHE_BLOCK
            if other.known is None or (sequence.exact and not other.known.exact):
                continue
            if other.known.blocks * CACHE_BLOCK < common > found.tokens:
                other.known.branch = max(other.known.branch, common)
                return False
        tables, known = self._prefixes.take(found)
        if found.prefixes and (state := found.prefixes[-1].state) is not None:
            self._copy_states([(state, sequence.place)])
        sequence.begin(tables, known, found.tokens)
        return True

    def make_room(self, sequence: Sequence, count: int) -> bool:
        """Whether its next `count` tokens have blocks now: those of the youngest, if need be. False: it was set back itself."""
        assert sequence.tables
        while not sequence.tables.has_room(sequence.done, count):
            youngest = next(other for other in reversed(self.running) if other.tables)
            self._set_back(youngest)
            if youngest is sequence:
                return False
        return True

    def passed(self, sequences: list[Sequence]) -> None:
        """After a Step of these: what it computed can be found from now on."""
        copies = []
        for sequence in sequences:
            assert sequence.tables and sequence.known
            self._prefixes.add(sequence.tables, sequence.known, sequence.tokens, sequence.done)
            slot = self._prefixes.checkpoint(sequence.known, sequence.done, sequence.fed)
            if slot is not None:
                copies.append((sequence.place, slot))
        if copies:
            self._copy_states(copies)

    def leave(self, sequence: Sequence) -> None:
        """It waits and runs no more; its place and its blocks, if it has some, are for others."""
        if sequence in self.waiting:
            self.waiting.remove(sequence)
        else:
            self.running.remove(sequence)
            self._places.append(sequence.release())

    def _set_back(self, sequence: Sequence) -> None:
        self.set_back_count += 1
        self.leave(sequence)
        insort(self.waiting, sequence, key=lambda s: s.arrival)

    def _has_room(self, sequence: Sequence) -> bool:
        """Not only for its next Step: else it would take what those that run are about to need, and be set back for it."""
        if not self.running:
            return True
        pools = range(len(self._blocks.pools))
        return all(
            self._missing(sequence, pool) + sum(self._missing(other, pool) + 1 for other in self.running)
            <= self._blocks.available(pool)
            for pool in pools
        )

    def _missing(self, sequence: Sequence, pool: int) -> int:
        """Blocks that it needs for the tokens that it has and one more."""
        wanted = self._blocks.most(pool, sequence.next_tokens(self._context))
        if sequence.tables:
            return max(wanted - sequence.tables.held(pool), 0)
        return wanted - sequence.shared if self._blocks.pools[pool].window == NO_WINDOW else wanted

    def _in_common(self, sequence: Sequence, other: Sequence) -> int:
        """Blocks that both begin with, of those that it can take over."""
        if not self._prefixes.enabled or sequence.salt != other.salt:
            return 0
        end, blocks = min(sequence.reusable, other.fed), 0
        while (blocks + 1) * CACHE_BLOCK <= end:
            part = slice(blocks * CACHE_BLOCK, (blocks + 1) * CACHE_BLOCK)
            if sequence.tokens[part] != other.tokens[part]:
                break
            blocks += 1
        return blocks
