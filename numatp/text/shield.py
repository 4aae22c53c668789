"""Keeps what people say in a chat apart from the special tokens that its template writes.

A message may spell the name of a special token. While the template runs, the first letter of each such name is exchanged for a
private one, by which the tokenizer tells afterwards that it is text. Messages without such names reach the template unchanged.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

PRIVATE = range(0xE000, 0xF900)  # code points of Unicode that stand for nothing


class Names:
    """The names of a vocabulary's special tokens."""

    def __init__(self, names: Iterable[str]):
        self._names = frozenset(name for name in names if name)
        self.firsts = sorted({name[0] for name in self._names})

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        """By the first two letters of names how long these are."""
        found: dict[str, set[int]] = {}
        for name in self._names:
            found.setdefault(name[:2], set()).add(len(name))
        return {start: sorted(lengths) for start, lengths in found.items()}

    @cached_property
    def _start(self) -> re.Pattern[str]:
        starts = "|".join(map(re.escape, sorted(self._lengths, key=len, reverse=True)))
        return re.compile(f"(?=({starts}))", re.DOTALL)

    @cached_property
    def _beginnings(self) -> frozenset[str]:
        return frozenset(name[:length] for name in self._names for length in range(1, len(name)))

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self._names), default=0)

    def places(self, text: str) -> list[int]:
        """Where names begin in a text, and where one may that goes on in the text behind it."""
        if not self._names:
            return []
        found = {
            match.start()
            for match in self._start.finditer(text)
            for start in {match.group(1), match.group(1)[:1]} & self._lengths.keys()
            if any(text[match.start() : match.start() + length] in self._names for length in self._lengths[start])
        }
        for place in range(max(len(text) - self._longest + 1, 0), len(text)):
            if text[place:] in self._beginnings:
                found.add(place)
        return sorted(found)


class Shield:
    """What is said in one chat: its messages, and its template's arguments, with the tools that somebody describes. `letters` tells
    what the private letters in them stand for."""

    def __init__(
        self, names: Names, template: str, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any] | None = None
    ):  # fmt: skip
        self._names = names
        used = set(template).union(*_texts(messages), *_texts(arguments or {}))
        free = (chr(code) for code in PRIVATE if chr(code) not in used)
        self._private = dict(zip(names.firsts, free, strict=False))
        self.letters = {ord(private): letter for letter, private in self._private.items()}
        self.needed = False
        self.messages: Sequence[Mapping[str, Any]] = self._hide(messages)
        self.arguments: Mapping[str, Any] = self._hide(arguments or {})

    def _hide(self, value: Any) -> Any:
        if isinstance(value, str):
            places = self._names.places(value)
            if not places:
                return value
            self.needed = True
            letters = list(value)
            for place in places:
                letters[place] = self._private.get(letters[place], "")  # nothing is left where a chat uses all private letters
            return "".join(letters)
        if isinstance(value, Mapping):
            return {self._hide(key): self._hide(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._hide(item) for item in value]
        return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [text for pair in value.items() for item in pair for text in _texts(item)]
    return [text for item in value for text in _texts(item)] if isinstance(value, (list, tuple)) else []
