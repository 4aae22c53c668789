"""How the next token is chosen, as a user says it."""

import os
from dataclasses import dataclass

from numatp.errors import UserError
from numatp.files.recommended import recommended_sampling


@dataclass(frozen=True)
class SamplingParams:
    """Names, meaning and order are llama.cpp's; UserError for values that make no sense.

    temperature: 0 always takes the most probable token. top_k: choose among that many, 0 is all. top_p: among the most probable
    that have this share of the probability. min_p: among those at least this share as probable as the best. repeat_penalty: above
    1 makes the last 64 tokens less probable. seed: the same seed gives the same text with the same ranks; None is a new one every
    time. max_tokens: None is as many as the context holds. stop: the text ends before any of these. ignore_eos: go on after the
    model's end of text.
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
        most = float("inf")
        for name, value, fits, range_ in (
            ("temperature", self.temperature, 0 <= self.temperature < most, "0 or more"),
            ("top_k", self.top_k, self.top_k >= 0, "0 (all) or more"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, up to 1"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("repeat_penalty", self.repeat_penalty, 0 < self.repeat_penalty < most, "above 0; 1 is none"),
            ("max_tokens", self.max_tokens, self.max_tokens is None or self.max_tokens > 0, "1 or more"),
        ):
            if not fits:
                raise UserError(f"{name} is {value} and must be {range_}")

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


def recommended_params(model: str | os.PathLike[str]) -> SamplingParams:
    """The defaults, but for what the model's authors recommend. UserError if that makes no sense."""
    found = recommended_sampling(model)
    try:
        return SamplingParams(**found)  # type: ignore[arg-type]
    except UserError as error:
        raise UserError(f"{model}: what it recommends for sampling makes no sense: {error}") from None
