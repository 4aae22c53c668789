"""How the next token is chosen, as a user says it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

from numatp.errors import UserError

# name: (kind, may it be None, what fits, in words)
VALUES: dict[str, tuple[type[int] | type[float], bool, Callable[[Any], bool], str]] = {
    "temperature": (float, False, lambda value: 0 <= value < float("inf"), "0 or more"),
    "top_k": (int, False, lambda value: value >= 0, "0 (all) or more, a whole number"),
    "top_p": (float, False, lambda value: 0 < value <= 1, "above 0, up to 1"),
    "min_p": (float, False, lambda value: 0 <= value <= 1, "0 to 1"),
    "repeat_penalty": (float, False, lambda value: 0 < value < float("inf"), "above 0; 1 is none"),
    "seed": (int, True, lambda value: True, "a whole number"),
    "max_tokens": (int, True, lambda value: value >= 0, "0 or more, a whole number"),
}


@dataclass(frozen=True)
class SamplingParams:
    """Names, meaning and order are llama.cpp's; UserError for values that make no sense.

    temperature: 0 always takes the most probable token. top_k: choose among that many, 0 is all. top_p: among the most probable
    that have this share of the probability. min_p: among those at least this share as probable as the best. repeat_penalty: above
    1 makes the last 64 tokens less probable. seed: the same seed gives the same text with the same ranks; None is a new one every
    time. max_tokens: None is as many as the context holds, 0 computes the prompt alone. stop: the text ends before any of these.
    ignore_eos: go on after the model's end of text.
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

    def __post_init__(self) -> None:
        for name, (kind, may_be_none, fits, range_) in VALUES.items():
            value = getattr(self, name)
            if value is None and may_be_none:
                continue
            is_number = isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
            if not is_number or not fits(value):
                raise UserError(f"{name} is {value!r} and must be {range_}")
            object.__setattr__(self, name, kind(value))  # numpy's numbers are none of Python's
        if not isinstance(self.stop, (str, list, tuple)) or not all(isinstance(text, str) for text in self.stop):
            raise UserError(f"stop is {self.stop!r} and must be a text or a list of texts")

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def recommended_params(model: str | os.PathLike[str]) -> SamplingParams:
    """The defaults, but for what the model's authors recommend. UserError if that makes no sense."""
    from numatp.files.recommended import recommended_sampling  # loads numpy

    found = recommended_sampling(model)
    try:
        return SamplingParams(**found)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{model}: what it recommends for sampling makes no sense: {error}") from None
