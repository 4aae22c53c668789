"""Which formats an answer is written in: told by the marks in the model's chat template, never by the model's name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Parts:
    """How the answer to a chat is written. tools: those that the model was told of, in OpenAI's words."""

    template: str
    tools: Sequence[Mapping[str, Any]] = ()
