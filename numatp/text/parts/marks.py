"""Marks in an answer: texts by which a format divides it, some of which a vocabulary has as special tokens.

A special token has no text. In the text of an answer each one that is a mark stands as half a surrogate pair, which no text of a
model can hold. So a mark that the vocabulary has as a special token is that token alone, and its name, spelled letter by letter, is
text.
"""

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numatp.text.tokenizer import StreamDecoder, Tokenizer

FIRST = 0xD800  # the code point of the first mark


class Marks:
    """tokens: marks, or parts of marks, that may be special tokens."""

    def __init__(self, tokenizer: "Tokenizer", tokens: Iterable[str]):
        longest_first = sorted(set(tokens), key=lambda name: (-len(name), name))
        known = {name: id for name in longest_first if (id := tokenizer.special_id(name)) is not None}
        self._letters = {name: chr(FIRST + place) for place, name in enumerate(known)}
        self._names = {ord(letter): name for name, letter in self._letters.items()}
        self._by_id = {id: self._letters[name] for name, id in known.items()}
        self._spelled: dict[str, str] = {}

    def text(self, token: int, decoder: "StreamDecoder") -> str:
        """Of one more token of an answer."""
        letter = self._by_id.get(token)
        return decoder.finish() + letter if letter else decoder.push(token)

    def has(self, token: int) -> bool:
        return token in self._by_id

    def spelled(self, mark: str) -> str:
        """As it stands in the text of an answer."""
        if mark not in self._spelled:
            text = mark
            for name, letter in self._letters.items():
                text = text.replace(name, letter)
            self._spelled[mark] = text
        return self._spelled[mark]

    def special(self, mark: str) -> bool:
        """Whether it is a special token, or has one in it."""
        return self.spelled(mark) != mark

    def unnamed(self, text: str) -> str:
        """The text without its special tokens."""
        return text.translate(dict.fromkeys(self._names)) if self._names else text

    def named(self, text: str) -> str:
        """The text with the names of its special tokens."""
        return text.translate(self._names) if self._names else text


def begun(text: str, marks: Collection[str]) -> int:
    """Letters at the end of a text with which one of the marks may begin."""
    longest = 0
    for mark in marks:
        place = text.find(mark[0], max(len(text) - len(mark) + 1, 0))
        while place >= 0 and not mark.startswith(text[place:]):
            place = text.find(mark[0], place + 1)
        longest = max(longest, len(text) - place if place >= 0 else 0)
    return longest
