"""The text of a call while it comes: formats read it from the front with `yield from`, which waits for what is not there yet."""

from collections.abc import Generator
from typing import TypeVar

from numatp.text.parts.marks import Marks, begun
from numatp.text.parts.piece import ToolCall

T = TypeVar("T")
Reading = Generator[ToolCall | None, None, T]  # gives None where it waits for text, and calls as they are complete
SPACE = " \t\r\n"
LONGEST_NAME = 256  # letters
DEEPEST = 64  # brackets in brackets
OUTSIDE = frozenset(SPACE + "{}[]:,+-.0123456789eEtrufalsn")  # what JSON has outside of strings


class NotACall(Exception):
    """What began like a call is none: it is shown as the text that it is."""


class Source:
    """Each letter is taken once, so that a long call costs no more per letter than a short one."""

    def __init__(self, marks: Marks):
        self._marks = marks
        self._taken: list[str] = []
        self._ended = False
        self.rest = ""  # not taken yet

    def add(self, text: str) -> None:
        self.rest += text

    def end(self) -> None:
        """No text will come."""
        self._ended = True

    def forget(self) -> None:
        """What was taken has become a call."""
        self._taken.clear()

    @property
    def taken(self) -> str:
        """Since the last call, as it was said."""
        return self._marks.named("".join(self._taken))

    def _take(self, count: int) -> str:
        taken, self.rest = self.rest[:count], self.rest[count:]
        self._taken.append(taken)
        return taken

    def _wait(self) -> Reading[None]:
        if self._ended:
            raise NotACall
        yield None

    # ------------------------------------------------------------ what formats ask

    def at(self, mark: str) -> Reading[bool]:
        """Whether the mark comes next. It is not taken."""
        mark = self._marks.spelled(mark)
        while len(self.rest) < len(mark) and mark.startswith(self.rest) and not self._ended:
            yield None
        return self.rest.startswith(mark)

    def has(self, mark: str) -> Reading[bool]:
        """Takes the mark if it comes next, and tells whether it did."""
        found = yield from self.at(mark)
        if found:
            self._take(len(self._marks.spelled(mark)))
        return found

    def expect(self, mark: str) -> Reading[None]:
        if not (yield from self.has(mark)):
            raise NotACall

    def space(self) -> Reading[str]:
        """Takes white space, if any comes."""
        found = []
        while True:
            found.append(self._take(len(self.rest) - len(self.rest.lstrip(SPACE))))
            if self.rest or self._ended:
                return "".join(found)
            yield None

    def until(self, *marks: str) -> Reading[str]:
        """Takes what comes before the first of the marks, however long it is."""
        spelled = [self._marks.spelled(mark) for mark in marks]
        longest = max(map(len, spelled))
        found = []
        while True:
            places = [place for mark in spelled if (place := self.rest.find(mark)) >= 0]
            if places:
                found.append(self._take(min(places)))
                return self._marks.named("".join(found))
            found.append(self._take(max(0, len(self.rest) - longest + 1)))
            if self._ended:
                self._take(len(self.rest))
            yield from self._wait()

    def word(self, *ends: str) -> Reading[str]:
        """Takes a name up to the first of some marks: it has letters and no white space."""
        spelled = [self._marks.spelled(end) for end in ends]
        while True:
            places = [place for end in spelled if (place := self.rest.find(end)) >= 0]
            held = self.rest[: min(places) if places else len(self.rest) - begun(self.rest, spelled)]
            if len(held) > LONGEST_NAME or len(held.split()) > 1 or (places and not held.strip()):
                raise NotACall
            if places:
                return self._marks.named(self._take(len(held))).strip()
            yield from self._wait()

    def text(self) -> Reading[str]:
        """Takes a text in JSON, quotes included."""
        yield from self.expect('"')
        return '"' + (yield from self._json(depth=0, text=True))

    def value(self, depth: int = 0) -> Reading[str]:
        """Takes an object or a list in JSON: marks in its texts are text. depth: of brackets that are open already."""
        return self._json(depth, text=False)

    def _json(self, depth: int, text: bool) -> Reading[str]:
        """To the end of the outermost bracket, or of a text that is not in brackets."""
        found = []
        escaped = False
        while True:
            end = None
            for place, letter in enumerate(self.rest):
                if text:
                    text = escaped or letter != '"'
                    escaped = letter == "\\" and not escaped
                else:
                    text = letter == '"'
                    depth += (letter in "{[") - (letter in "}]")
                    if not (text or letter in OUTSIDE) or not (0 < depth <= DEEPEST or letter in "}]"):
                        self._take(place)
                        raise NotACall
                if depth <= 0 and not text:
                    end = place + 1
                    break
            found.append(self._take(len(self.rest) if end is None else end))
            if end is not None:
                return self._marks.named("".join(found))
            yield from self._wait()
