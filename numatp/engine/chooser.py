"""What decides the tokens of one sequence, from its params and from what it has generated so far."""

from hashlib import blake2b
from secrets import randbits
from typing import TYPE_CHECKING

import numpy as np

from numatp.engine.sampler import NO_PAIRS, PAIR, Choice
from numatp.engine.sampling import SamplingParams

if TYPE_CHECKING:
    from numatp.text.matcher import Matcher


def uniform(seed: int, position: int) -> float:
    """The number from [0, 1) that decides the position-th token: of these two alone, whatever else runs or is computed again."""
    digest = blake2b(f"{seed},{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53


class TokenCounts:
    """How often each token came: PAIRs that grow, one for each token that there is."""

    def __init__(self) -> None:
        self._places: dict[int, int] = {}
        self._pairs = np.zeros(64, PAIR)

    @property
    def pairs(self) -> np.ndarray:
        return self._pairs[: len(self._places)]

    def add(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._pairs):
            self._pairs = np.concatenate([self._pairs, np.zeros_like(self._pairs)])
        self._pairs[place] = token, self._pairs[place]["value"] + 1


class Chooser:
    """Must be told of every token that is generated. matcher: of the params' grammar."""

    def __init__(self, params: SamplingParams, stop_ids: frozenset[int], vocab: int | None, matcher: "Matcher | None" = None):
        self._params, self._vocab, self._matcher = params, vocab, matcher
        self._seed = randbits(64) if params.seed is None else params.seed
        self._taken = 0  # tokens
        self._counts = TokenCounts() if params.presence_penalty or params.frequency_penalty else None
        # The ends of text come first, which are left out where one may come. An end ends a grammar: it cannot be ignored.
        self._num_ends = len(stop_ids) if (matcher if params.ignore_eos else params.min_tokens) else 0
        ends = dict.fromkeys(sorted(stop_ids)[: self._num_ends], -np.inf)
        self._biases = np.array([*ends.items(), *params.logit_bias.items()], PAIR)

    def choice(self, tokens: list[int]) -> Choice:
        """Of the token that comes next; tokens: all so far, the prompt included."""
        mask = None
        may_end = self._taken >= self._params.min_tokens and not self._params.ignore_eos
        if self._matcher:
            self._matcher.wait()
            mask = self._matcher.mask
            may_end = may_end or self._matcher.complete
        counts = self._counts.pairs if self._counts else NO_PAIRS
        biases = self._biases[self._num_ends if may_end else 0 :]
        # The most probable token needs none.
        chance = uniform(self._seed, self._taken) if self._params.temperature else 0.0
        return Choice(self._params, chance, tokens, self._vocab, biases, counts, mask)

    def take(self, token: int) -> None:
        self._taken += 1
        if self._counts:
            self._counts.add(token)
        if self._matcher:
            self._matcher.take(token)

    @property
    def forced(self) -> list[int]:
        """What the grammar lets follow alone, as far as it is known without waiting."""
        return self._matcher.forced if self._matcher else []

    @property
    def refusal(self) -> str:
        """Why no token may come next."""
        return (self._matcher and self._matcher.error) or "no token may follow here: what was asked for leaves none"
