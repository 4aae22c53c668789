"""Guesses of how a sequence goes on, checked by the model in rows of one Step: as its grammar leaves no choice, or as it went on
after the same tokens before.

A guess costs rows, which are cheap only as long as the way of the weights from memory is what a Step takes. So guesses grow while
they are right, and pause where they are wrong. In a mixture each row reads experts of its own and takes half as long as a token by
itself: there more tokens must be the same, so that most guesses are right (bench/LOG.md).
"""

from collections.abc import Sequence

ALIKE = 3  # tokens that must be the same
ALIKE_FOR_EXPERTS = 8
MOST_DRAFT = 8  # tokens of one guess
LONGEST_PAUSE = 64  # tokens without a guess after several that were wholly wrong


class Drafts:
    """Of one sequence."""

    def __init__(self) -> None:
        self._after: dict[tuple[int, ...], int] = {}  # the place after the last time that these tokens came
        self._indexed = 0  # tokens before it have their places
        self._length, self._pause, self._resume = MOST_DRAFT // 2, 0, 0
        self._was_forced = False

    def guess(self, tokens: list[int], most: int, forced: Sequence[int] = (), alike: int = ALIKE) -> list[int]:
        """What may follow, at most so many. forced: what has to, as far as it is known. alike: tokens that must be the same, always
        as many; 0: nothing but what is forced."""
        self._was_forced = bool(forced)
        if forced or not alike:
            return list(forced[:most])
        for place in range(max(self._indexed, alike), len(tokens)):
            self._after[tuple(tokens[place - alike : place])] = place
        self._indexed = len(tokens)
        found = self._after.get(tuple(tokens[-alike:])) if len(tokens) >= self._resume else None
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
