"""What comes of a continuation: its tokens, and how it ended. Importing this loads no numpy."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Reason = Literal["stop", "length", "cancelled"]


class Token(NamedTuple):
    """A token that was chosen."""

    id: int
    logprob: float | None = None  # natural logarithm of its probability, where somebody asked for it
    top: tuple[tuple[int, float], ...] = ()  # the most probable tokens and their logarithms, likewise

    @classmethod
    def from_json(cls, told: Sequence[Any]) -> "Token":
        id, logprob, top = told
        return cls(id, logprob, tuple((token, number) for token, number in top))


@dataclass(frozen=True)
class ScoredPrompt:
    """The prompt's tokens with their log-probabilities, each after all before it (of the first: None), where somebody asked for
    them; before the first token."""

    tokens: list[Token]


@dataclass(frozen=True)
class Progress:
    """Of a prompt that takes several Steps, where somebody asked for it: after each of them, before the first token."""

    done: int  # tokens of the prompt, those in the cache included
    cached: int  # tokens that were found in the cache
    total: int


@dataclass(frozen=True)
class Finish:
    """The end of a continuation. decoded_tokens: generated ones that were fed, one less than there are."""

    reason: Reason
    prompt_tokens: int
    prompt_seconds: float  # from its first Step to its first token
    decoded_tokens: int
    decode_seconds: float
    cached_tokens: int = 0  # of the prompt, found in the cache instead of computed


Event = Token | ScoredPrompt | Progress | Finish | BaseException  # what is told of a continuation; the last two end it
