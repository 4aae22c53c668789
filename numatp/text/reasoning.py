"""What a model says to itself before its answer, as a grammar sees it: the grammar is of the answer and begins behind it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numatp.text.parts import harmony
from numatp.text.parts.formats import Parts
from numatp.text.parts.marks import Marks
from numatp.text.parts.start import ends_behind, ends_inside

if TYPE_CHECKING:
    from numatp.text.tokenizer import Tokenizer


class Reasoning:
    """Of one answer, told of its tokens one by one until it is over."""

    def __init__(self, tokenizer: "Tokenizer", marks: Marks, ends: str, opening: int | None = None):
        """ends: the mark, as it stands in a text, at which it ends. opening: the token at which it may begin, if it has not."""
        from numatp.text.tokenizer import StreamDecoder

        self._marks, self._ends, self.opening = marks, ends, opening
        self._decoder = StreamDecoder(tokenizer)
        self._tail = ""

    def goes_on(self, token: int) -> bool:
        """Whether what follows the token is still reasoning."""
        if self.opening is not None:
            begins, self.opening = token == self.opening, None
            return begins
        text = self._tail + self._marks.text(token, self._decoder)
        self._tail = text[-len(self._ends) :]
        return self._ends not in text


class HarmonyReasoning(Reasoning):
    """All channels but `final`."""

    def __init__(self, tokenizer: "Tokenizer", marks: Marks):
        super().__init__(tokenizer, marks, marks.spelled(harmony.MESSAGE))
        self._head = marks.spelled(harmony.CHANNEL) + "final"

    def goes_on(self, token: int) -> bool:
        text = self._marks.text(token, self._decoder)
        if text.endswith(self._ends):
            begins, self._tail = self._tail.startswith(self._head), ""
            return not begins
        self._tail = self._head[0] if text.endswith(self._head[0]) else (self._tail + text)[: harmony.LONGEST_HEAD]
        return True


def reasoning_of(tokenizer: "Tokenizer", prompt: Sequence[int], parts: Parts) -> Reasoning | None:
    """Before the answer to a prompt; None where there is none, or where it is over."""
    marks = Marks(tokenizer, harmony.TOKENS)
    if all(marks.special(name) for name in harmony.NEEDED):
        return HarmonyReasoning(tokenizer, marks)
    thinking = parts.thinking
    if not thinking:
        return None
    marks = Marks(tokenizer, parts.tokens())
    if ends_inside(tokenizer, marks, prompt, thinking):
        return Reasoning(tokenizer, marks, marks.spelled(thinking.close))
    opening = next((id for name in (thinking.open, *thinking.tokens) if (id := tokenizer.named_id(name)) is not None), None)
    if opening is None or ends_behind(tokenizer, marks, prompt, thinking):
        return None
    return Reasoning(tokenizer, marks, marks.spelled(thinking.close), opening)
