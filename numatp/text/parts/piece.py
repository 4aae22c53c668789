"""What is read of an answer, as soon as it is complete."""

from typing import Literal, NamedTuple

Part = Literal["answer", "reasoning"]


class ToolCall(NamedTuple):
    """A call of a tool that the model asks for."""

    name: str
    arguments: str  # a JSON object


class Piece(NamedTuple):
    """Text that can be shown, or calls of tools, each of them complete."""

    text: str
    part: Part = "answer"
    calls: tuple[ToolCall, ...] = ()
