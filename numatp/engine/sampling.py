"""How the next token is chosen, as a user says it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any

from numatp.errors import UserError
from numatp.kernels.layout import MOST_TOP
from numatp.text.grammar import Grammar

MOST_BIASES = 1024  # of OpenAI's interface
# name: (kind, may it be None, what fits, in words)
VALUES: dict[str, tuple[type[int] | type[float], bool, Callable[[Any], bool], str]] = {
    "temperature": (float, False, lambda value: 0 <= value < float("inf"), "0 or more"),
    "top_k": (int, False, lambda value: value >= 0, "0 (all) or more, a whole number"),
    "top_p": (float, False, lambda value: 0 < value <= 1, "above 0, up to 1"),
    "min_p": (float, False, lambda value: 0 <= value <= 1, "0 to 1"),
    "repeat_penalty": (float, False, lambda value: 0 < value < float("inf"), "above 0; 1 is none"),
    "seed": (int, True, lambda value: True, "a whole number"),
    "max_tokens": (int, True, lambda value: value >= 0, "0 or more, a whole number"),
    "presence_penalty": (float, False, lambda value: -2 <= value <= 2, "-2 to 2"),
    "frequency_penalty": (float, False, lambda value: -2 <= value <= 2, "-2 to 2"),
    "min_tokens": (int, False, lambda value: value >= 0, "0 or more, a whole number"),
    "logprobs": (int, True, lambda value: 0 <= value <= MOST_TOP, f"0 to {MOST_TOP}, a whole number"),
    "prompt_logprobs": (int, True, lambda value: 0 <= value <= MOST_TOP, f"0 to {MOST_TOP}, a whole number"),
}


def _is_number(value: Any, kind: type[int] | type[float]) -> bool:
    return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)


@dataclass(frozen=True)
class SamplingParams:
    """Names, meaning and order are llama.cpp's; UserError for values that make no sense.

    temperature: 0 always takes the most probable token. top_k: choose among that many, 0 is all. top_p: among the most probable
    that have this share of the probability. min_p: among those at least this share as probable as the best. repeat_penalty: above
    1 makes the last 64 tokens less probable. seed: the same seed gives the same text with the same ranks; None is a new one every
    time. max_tokens: None is as many as the context holds, 0 computes the prompt alone. stop: the text ends before any of these.
    ignore_eos: go on after the model's end of text.

    As OpenAI has them, over the tokens generated so far: presence_penalty is taken from the logit of each once, frequency_penalty
    as often as it came. logit_bias: by token id, what is added to its logit. min_tokens: no end of text before so many, and no stop
    text among them. logprobs: the logarithm of each token's probability is wanted, and those of that many most probable tokens
    beside it; they are of the model's own distribution, before anything said here. prompt_logprobs: likewise of the prompt.
    grammar: what form the answer must have, which ends where the grammar does: also before min_tokens, and with ignore_eos.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    max_tokens: int | None = 128
    stop: str | tuple[str, ...] | list[str] = ()
    ignore_eos: bool = False
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None

    def __post_init__(self) -> None:
        for name, (kind, may_be_none, fits, range_) in VALUES.items():
            value = getattr(self, name)
            if value is None and may_be_none:
                continue
            if not _is_number(value, kind) or not fits(value):
                raise UserError(f"{name} is {value!r} and must be {range_}")
            object.__setattr__(self, name, kind(value))  # numpy's numbers are none of Python's
        if not isinstance(self.stop, (str, list, tuple)) or not all(isinstance(text, str) for text in self.stop):
            raise UserError(f"stop is {self.stop!r} and must be a text or a list of texts")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise UserError(f"min_tokens is {self.min_tokens} and must be at most max_tokens, {self.max_tokens}")
        if not isinstance(self.grammar, Grammar | None):
            raise UserError(f"grammar is {type(self.grammar).__name__} and must be a Grammar, like Grammar.json_schema(...)")
        object.__setattr__(self, "logit_bias", _checked_biases(self.logit_bias))

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def _checked_biases(given: Any) -> dict[int, float]:
    if not isinstance(given, Mapping) or len(given) > MOST_BIASES:
        raise UserError(f"logit_bias must be at most {MOST_BIASES} token ids, each with a number")
    for token, bias in given.items():
        if not _is_number(token, int) or token < 0 or not _is_number(bias, float) or not -100 <= bias <= 100:
            raise UserError(f"logit_bias gives token {token!r} {bias!r} and must give token ids, 0 or more, numbers of -100 to 100")
    return {int(token): float(bias) for token, bias in given.items()}


def recommended_params(model: str | os.PathLike[str]) -> SamplingParams:
    """The defaults, but for what the model's authors recommend. UserError if that makes no sense."""
    from numatp.files.recommended import recommended_sampling  # loads numpy

    found = recommended_sampling(model)
    try:
        return SamplingParams(**found)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{model}: what it recommends for sampling makes no sense: {error}") from None
