"""From the tokens of an answer to its text, piece by piece."""

from collections.abc import Iterable
from typing import Literal

from numatp.text.channels import Channels, Part
from numatp.text.parts.formats import Parts
from numatp.text.parts.piece import Piece, ToolCall
from numatp.text.stops import Stops
from numatp.text.tokenizer import StreamDecoder, Tokenizer

__all__ = ["Piece", "TextStream", "ToolCall"]


class TextStream:
    """Whole characters only, and of the answer nothing from the first stop text on.

    prompt: the tokens before the answer, which tell in which part of it the answer begins. parts: as Tokenizer.parts gives them for
    a chat; None for a text that is continued.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Iterable[str] = (), prompt: Iterable[int] = (), parts: Parts | None = None
    ):  # fmt: skip
        self._decoder = StreamDecoder(tokenizer)
        self._stops = Stops(stops)
        self._channels = Channels.of(tokenizer, prompt)
        self._part: Part = self._channels.part if self._channels else "answer"

    @property
    def stopped(self) -> bool:
        """A stop text was seen: whatever comes now is no longer part of the answer."""
        return bool(self._stops.found)

    @property
    def stop(self) -> str:
        """The stop text that was seen, if one was."""
        return self._stops.found

    def push(self, token: int) -> list[Piece]:
        """What can be shown after one more token, in the order in which it was said; often nothing."""
        if self.stopped:
            return []
        if self._channels:
            ended, self._part = self._part, self._channels.push(token)
            if ended != self._part:  # at a token that has no text of its own
                return self._flush(ended)
        if self._part is None:
            return []
        text = self._decoder.push(token)
        return pieces(self._stops.push(text) if self._part == "answer" else text, self._part)

    def finish(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        return self._flush(self._part)

    def _flush(self, part: Part) -> list[Piece]:
        rest = self._decoder.finish()
        if part is None or self.stopped:
            return []
        return pieces(self._stops.push(rest) + self._stops.finish() if part == "answer" else rest, part)


def pieces(text: str, part: Literal["answer", "reasoning"]) -> list[Piece]:
    return [Piece(text, part)] if text else []
