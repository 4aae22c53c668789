"""From the tokens of an answer to its text, piece by piece."""

from collections.abc import Iterable
from typing import Literal, NamedTuple

from numatp.text.channels import Channels, Part
from numatp.text.stops import Stops
from numatp.text.tokenizer import StreamDecoder, Tokenizer


class Piece(NamedTuple):
    """Text that can be shown, often none."""

    text: str
    part: Literal["answer", "reasoning"] = "answer"


class TextStream:
    """Whole characters only, and of the answer nothing from the first stop text on.

    prompt: the tokens before the answer, which tell in which part of it a model with channels begins.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Iterable[str] = (), prompt: Iterable[int] = ()):
        self._decoder = StreamDecoder(tokenizer)
        self._stops = Stops(stops)
        self._channels = Channels.of(tokenizer, prompt)
        self._part: Part = self._channels.part if self._channels else "answer"

    @property
    def stopped(self) -> bool:
        """A stop text was seen: whatever comes now is no longer part of the answer."""
        return self._stops.found

    def push(self, token: int) -> Piece:
        """What can be shown after one more token."""
        if self.stopped:
            return Piece("")
        if self._channels:
            ended, self._part = self._part, self._channels.push(token)
            if ended != self._part:  # at a token that has no text of its own
                return self._flush(ended)
        if self._part is None:
            return Piece("")
        text = self._decoder.push(token)
        return Piece(self._stops.push(text) if self._part == "answer" else text, self._part)

    def finish(self) -> Piece:
        """What was held back, at the end of the answer."""
        return self._flush(self._part)

    def _flush(self, part: Part) -> Piece:
        rest = self._decoder.finish()
        if part is None or self.stopped:
            return Piece("")
        return Piece(self._stops.push(rest) + self._stops.finish() if part == "answer" else rest, part)
