"""How the next token is chosen."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SamplingParams:
    temperature: float = 0.0
    max_tokens: int | None = 128
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
