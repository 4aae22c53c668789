"""How an answer is read, and in which part of it the prompt ends."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from numatp.text.parts import harmony
from numatp.text.parts.calls import Tools
from numatp.text.parts.format import Thinking
from numatp.text.parts.formats import Parts
from numatp.text.parts.marks import Marks
from numatp.text.parts.reader import MarkReader, PlainReader, Reader

if TYPE_CHECKING:
    from numatp.text.tokenizer import Tokenizer


def reader_of(tokenizer: "Tokenizer", prompt: Sequence[int], parts: Parts | None) -> tuple[Reader, Marks]:
    """What reads the answer to a prompt, and the marks that it looks for."""
    from numatp.text.tokenizer import StreamDecoder

    tools = Tools(parts.tools if parts else ())
    marks = Marks(tokenizer, harmony.TOKENS)
    if all(marks.special(name) for name in harmony.NEEDED):
        reader = harmony.HarmonyReader(marks, tools)
        decoder = StreamDecoder(tokenizer)
        for token in prompt[_last(prompt, tokenizer.special_id(harmony.START)) :]:
            reader.push(marks.text(token, decoder))
        return reader, marks
    thinking, calls = (parts.thinking, parts.calls) if parts else (None, None)
    if not parts or not (thinking or calls):
        return PlainReader(), Marks(tokenizer, ())
    marks = Marks(tokenizer, parts.tokens())
    inside = ends_inside(tokenizer, marks, prompt, thinking) if thinking else False
    return MarkReader(marks, thinking, calls, tools, inside), marks


def ends_inside(tokenizer: "Tokenizer", marks: Marks, prompt: Sequence[int], thinking: Thinking) -> bool:
    """Whether the last thing said in a prompt is the beginning of reasoning, which its template or its author wrote."""
    text = _last_words(tokenizer, marks, prompt)
    return text.rfind(marks.spelled(thinking.open)) > text.rfind(marks.spelled(thinking.close))


def ends_behind(tokenizer: "Tokenizer", marks: Marks, prompt: Sequence[int], thinking: Thinking) -> bool:
    """Whether it is the end of reasoning, as templates write it so that there is none."""
    text = _last_words(tokenizer, marks, prompt)
    return text.rfind(marks.spelled(thinking.close)) > text.rfind(marks.spelled(thinking.open))


def _last_words(tokenizer: "Tokenizer", marks: Marks, prompt: Sequence[int]) -> str:
    """What was said before them ends with a special token, in the models that have some."""
    from numatp.text.tokenizer import StreamDecoder

    begin = len(prompt)
    while begin and not (tokenizer.is_special(prompt[begin - 1]) and not marks.has(prompt[begin - 1])):
        begin -= 1
    decoder = StreamDecoder(tokenizer)
    return "".join(marks.text(token, decoder) for token in prompt[begin:])


def _last(prompt: Sequence[int], token: int | None) -> int:
    """Where the token stands last; 0 if it does not."""
    return next((place for place in range(len(prompt) - 1, -1, -1) if prompt[place] == token), 0)
