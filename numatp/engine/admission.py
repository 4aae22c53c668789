"""Who runs: sequences in the order of their arrival, as far as there are places and blocks.

A sequence takes blocks Step by Step. Where they run out the youngest is set back: it gives its blocks to an older one and waits
again, with its tokens and its random numbers kept, until it has room to be computed anew. The oldest is never set back, so somebody
always gets on.
"""

from bisect import insort

from numatp.engine.blocks import Blocks, Tables
from numatp.engine.sequence import Sequence
from numatp.errors import UserError


class Admission:
    def __init__(self, blocks: Blocks, places: int, context: int):
        """places: sequences at the same time. context: tokens of the longest."""
        self._blocks, self._context = blocks, context
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

    def admit(self) -> list[Sequence]:
        """Takes in who has a place and room for all its tokens, beside what the others need for theirs; those that came in."""
        new = []
        while self.waiting and self._places and self._has_room(self.waiting[0]):
            sequence = self.waiting.pop(0)
            sequence.start(self._places.pop(), Tables(self._blocks), self._context)
            insort(self.running, sequence, key=lambda s: s.arrival)
            new.append(sequence)
        return new

    def make_room(self, sequence: Sequence, count: int) -> bool:
        """Whether its next `count` tokens have blocks now: those of the youngest, if need be. False: it was set back itself."""
        assert sequence.tables
        while not sequence.tables.has_room(sequence.done, count):
            youngest = self.running[-1]
            self._set_back(youngest)
            if youngest is sequence:
                return False
        return True

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
        return all(
            self._blocks.most(pool, sequence.next_tokens(self._context)) + sum(self._missing(other, pool) for other in self.running)
            <= self._blocks.available(pool)
            for pool in range(len(self._blocks.pools))
        )

    def _missing(self, sequence: Sequence, pool: int) -> int:
        """Blocks that it needs for the tokens that it has, and one more to go on."""
        assert sequence.tables
        wanted = self._blocks.most(pool, sequence.next_tokens(self._context)) - sequence.tables.held(pool)
        return max(wanted, 0) + 1
