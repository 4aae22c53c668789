"""Models that answer in channels (gpt-oss): messages of `<|start|>role<|channel|>name<|message|>text<|end|>`, the last of which is
for the user. https://cookbook.openai.com/articles/openai-harmony
"""

from collections.abc import Iterable
from typing import Literal

from numatp.text.tokenizer import Tokenizer

Part = Literal["answer", "reasoning", None]  # None: the head of a message, or between two
START, CHANNEL, MESSAGE, END, RETURN, CALL = "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"


class Channels:
    """Follows the tokens of a conversation and tells what their text belongs to."""

    def __init__(self, marks: dict[int, str], tokenizer: Tokenizer):
        """marks: by id the names above."""
        self._marks = marks
        self._tokenizer = tokenizer
        self._name: bytes | None = None  # of the channel, None where a message has none
        self.part: Part = "answer"

    @classmethod
    def of(cls, tokenizer: Tokenizer, prompt: Iterable[int]) -> "Channels | None":
        """As they stand behind a prompt; None for a model without channels."""
        ids = {name: tokenizer.special_id(name) for name in (START, CHANNEL, MESSAGE, END, RETURN, CALL)}
        if None in (ids[START], ids[CHANNEL], ids[MESSAGE], ids[END]):
            return None
        channels = cls({id: name for name, id in ids.items() if id is not None}, tokenizer)
        for token in prompt:
            channels.push(token)
        return channels

    def push(self, token: int) -> Part:
        """What the token's text belongs to."""
        mark = self._marks.get(token)
        if mark == MESSAGE:
            self.part = "answer" if self._name is None or self._name.split()[:1] == [b"final"] else "reasoning"
        elif mark == CHANNEL:
            self.part, self._name = None, b""
        elif mark:
            self.part, self._name = None, None
        elif self.part is None and self._name is not None:
            self._name += self._tokenizer.token_bytes(token)
        return self.part
