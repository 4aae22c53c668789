"""Guesses of how a sequence goes on, checked by the model in rows of one Step: as its grammar leaves no choice, or as it went on
after the same tokens before.

A guess costs rows, which are cheap only as long as the way of the weights from memory is what a Step takes. So guesses grow while
they are right, and pause where they are wrong.
"""

from collections.abc import Sequence

ALIKE = 3  # tokens that must be the same
MOST_DRAFT = 8  # tokens of one guess
LONGEST_PAUSE = 64  # tokens without a guess after several that were wholly wrong


class Drafts:
    """Of one sequence."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # the place after the last time that these tokens came
        self._indexed = ALIKE  # tokens before it have their places
        self._length, self._pause, self._resume = MOST_DRAFT // 2, 0, 0
        self._was_forced = False

    def guess(self, tokens: list[int], most: int, forced: Sequence[int] = (), repeats: bool = True) -> list[int]:
        """What may follow, at most so many. forced: what has to, as far as it is known. repeats: else nothing but that."""
        self._was_forced = bool(forced)
        if forced or not repeats:
            return list(forced[:most])
        for place in range(self._indexed, len(tokens)):
            self._after[tuple(tokens[place - ALIKE : place])] = place
        self._indexed = max(self._indexed, len(tokens))
        found = self._after.get(tuple(tokens[-ALIKE:])) if len(tokens) >= self._resume else None
        if found is None:
            return []
        guess, size = tokens[found : found + most], min(self._length, most)
        while len(guess) < size:  # it repeats itself in less
            guess += guess[: size - len(guess)]
        return guess[:size]

    def checked(self, tokens: int, guessed: int, right: int) -> None:
        """So many of a guess were right, and the sequence has so many tokens now."""
        if self._was_forced:
            return  # which tells nothing of how it repeats itself
        if right:
            self._length = min(2 * self._length, MOST_DRAFT) if right == guessed else max(right, 1)
            self._pause = 0
        else:
            self._length = max(self._length // 2, 1)
            self._pause = min(2 * self._pause + 1, LONGEST_PAUSE)
            self._resume = tokens + self._pause
