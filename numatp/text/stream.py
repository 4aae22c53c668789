"""From the tokens of an answer to its pieces: text that can be shown, and calls of tools."""

from collections.abc import Iterable, Sequence

from numatp.text.parts.formats import Parts
from numatp.text.parts.piece import Piece, ToolCall
from numatp.text.parts.start import reader_of
from numatp.text.stops import Stops
from numatp.text.tokenizer import StreamDecoder, Tokenizer

__all__ = ["Piece", "TextStream", "ToolCall"]


class TextStream:
    """Whole characters only, and of the answer nothing from the first stop text on. Reasoning and calls are not searched for stops.

    prompt: the tokens before the answer, which tell in which part of it the answer begins. parts: as Tokenizer.parts gives them for
    a chat; None for a text that is continued. min_tokens: that are not searched for stops either.
    """

    def __init__(
        self, tokenizer: Tokenizer, stops: Iterable[str] = (), prompt: Sequence[int] = (), parts: Parts | None = None,
        min_tokens: int = 0,
    ):  # fmt: skip
        self._decoder, self._unsearched = StreamDecoder(tokenizer), min_tokens
        self._stops = Stops(stops)
        self._reader, self._marks = reader_of(tokenizer, prompt, parts)

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
        pieces = self._reader.push(self._marks.text(token, self._decoder))
        if self._unsearched:
            self._unsearched -= 1
            return pieces
        return self._shown(pieces)

    def finish(self) -> list[Piece]:
        """What was held back, at the end of the answer."""
        if self.stopped:
            return []
        pieces = self._shown(self._reader.push(self._decoder.finish()) + self._reader.finish())
        return pieces if self.stopped else pieces + self._held()

    def _shown(self, pieces: Iterable[Piece]) -> list[Piece]:
        """Up to the first stop text."""
        shown: list[Piece] = []
        for piece in pieces:
            if self.stopped:
                break
            if piece.part == "answer" and not piece.calls:
                text = self._stops.push(piece.text)
                shown += [Piece(text)] if text else []
            else:
                shown += [*self._held(), piece]
        return shown

    def _held(self) -> list[Piece]:
        """What may have been the beginning of a stop text, and is none."""
        text = self._stops.finish()
        return [Piece(text)] if text else []
