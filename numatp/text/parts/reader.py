"""Divides the text of an answer by its format's marks, piece by piece."""

from typing import Protocol

from numatp.text.parts.calls import Tools
from numatp.text.parts.format import CallFormat, Thinking
from numatp.text.parts.marks import Marks, begun
from numatp.text.parts.piece import Part, Piece, ToolCall
from numatp.text.parts.source import SPACE, NotACall, Reading, Source

HELD_SPACE = 64  # letters of white space that belong to a mark behind them


class Reader(Protocol):
    """What is read of an answer."""

    def push(self, text: str) -> list[Piece]:
        """After more of it; special tokens that are marks stand in it as Marks says."""
        ...

    def finish(self) -> list[Piece]:
        """At its end."""
        ...


class PlainReader:
    """For answers without parts."""

    def push(self, text: str) -> list[Piece]:
        return [Piece(text)] if text else []

    def finish(self) -> list[Piece]:
        return []


class MarkReader:
    """White space beside a mark belongs to it and is not shown."""

    def __init__(self, marks: Marks, thinking: Thinking | None, calls: CallFormat | None, tools: Tools, inside: bool):
        """inside: the prompt ends within the reasoning."""
        self._marks, self._thinking, self._calls, self._tools = marks, thinking, calls, tools
        self._part: Part = "reasoning" if inside else "answer"
        self._rest = ""  # not divided yet: white space or the beginning of a mark, or what a call has not taken
        self._behind_mark = inside
        self._said = False  # whether the answer has begun
        self._source: Source | None = None
        self._reading: Reading[None] | None = None  # a call
        self._gap = ""  # white space before that call
        self._ended = False
        self._pieces: list[Piece] = []
        self._awaited = {"answer": self._awaited_in("answer"), "reasoning": self._awaited_in("reasoning")}

    def _awaited_in(self, part: Part) -> dict[str, str]:
        """The marks that may come in a part, by how they stand in the text."""
        thinking = self._thinking[:2] if self._thinking else ()
        calls = (*self._calls.opening, *self._calls.first) if self._calls else ()
        if part == "answer":
            marks = (*calls, *thinking[:1])
        else:
            marks = (*thinking[1:], *(mark for mark in calls if self._marks.special(mark)))  # some calls end the reasoning
        return {self._marks.spelled(mark): mark for mark in marks}

    def push(self, text: str) -> list[Piece]:
        self._rest += text
        while self._read_call() if self._reading else self._divide():
            pass
        pieces, self._pieces = self._pieces, []
        return pieces

    def finish(self) -> list[Piece]:
        self._ended = True
        return self.push("")

    # ------------------------------------------------------------ text

    def _divide(self) -> bool:
        """Shows text up to the next mark, or what cannot be the beginning of one. Whether there is more to do."""
        if self._behind_mark:
            self._rest = self._rest.lstrip(SPACE)
            self._behind_mark = not self._rest
        found = [(place, mark) for spelled, mark in self._awaited[self._part].items() if (place := self._rest.find(spelled)) >= 0]
        counted = [(place, mark) for place, mark in found if self._counts(mark, place)]
        if not counted:
            self._show_all_but(0 if self._ended else self._held())
            return False
        place, mark = min(counted)
        before, self._rest = self._rest[:place], self._rest[place:]
        self._gap = before[len(before.rstrip(SPACE)) :][-HELD_SPACE:]
        self._say(self._marks.unnamed(before[: len(before) - len(self._gap)]))
        if self._thinking and mark in (self._thinking.open, self._thinking.close):
            self._rest = self._rest[len(self._marks.spelled(mark)) :]
            self._part = "reasoning" if mark == self._thinking.open else "answer"
            self._behind_mark = True
        else:
            assert self._calls
            self._source = Source(self._marks)
            self._reading = self._calls.read(self._source, self._tools)
        return True

    def _counts(self, mark: str, place: int) -> bool:
        """Some marks count only where nothing was said before: they may be ordinary text."""
        text = mark == self._thinking.open and not self._marks.special(mark) if self._thinking else False
        if text or (self._calls and mark in self._calls.first):
            return not self._said and not self._rest[:place].strip(SPACE)
        return True

    def _held(self) -> int:
        """Letters at the end of the text that may belong to a mark."""
        mark = begun(self._rest, self._awaited[self._part])
        text = self._rest[: len(self._rest) - mark]
        return mark + min(len(text) - len(text.rstrip(SPACE)), HELD_SPACE)

    def _show_all_but(self, held: int) -> None:
        shown = len(self._rest) - held
        self._say(self._marks.unnamed(self._rest[:shown]))
        self._rest = self._rest[shown:]

    def _say(self, text: str) -> None:
        if text:
            self._said = self._said or (self._part == "answer" and bool(text.strip(SPACE)))
            self._pieces.append(Piece(text, self._part))

    # ------------------------------------------------------------ calls

    def _read_call(self) -> bool:
        """Gives the call more text. Whether there is more to do."""
        assert self._reading and self._source
        source = self._source
        if self._rest:
            source.add(self._rest)
            self._rest = ""
        if self._ended:
            source.end()
        try:
            for call in self._reading:
                if call is None:
                    return False
                source.forget()
                self._gap = ""
                self._emit(call)
            self._behind_mark = True
        except NotACall:
            self._say(self._gap + source.taken)
        self._rest = source.rest
        self._reading = self._source = None
        return True

    def _emit(self, call: ToolCall) -> None:
        self._said = True
        self._part = "answer"
        self._pieces.append(Piece("", "answer", (call,)))
