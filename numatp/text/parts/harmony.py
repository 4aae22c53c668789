"""Models that answer in channels (gpt-oss): messages of `<|start|>role<|channel|>name<|message|>text<|end|>`, the last of which is
for the user or, `to=functions.f`, a call of a tool. https://cookbook.openai.com/articles/openai-harmony
"""

from numatp.text.parts.calls import Tools, call
from numatp.text.parts.marks import Marks
from numatp.text.parts.piece import Part, Piece
from numatp.text.parts.source import NotACall

START, CHANNEL, MESSAGE, END, RETURN, CALL = "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"
CONSTRAIN = "<|constrain|>"  # before the format of a call's arguments
TOKENS = (START, CHANNEL, MESSAGE, END, RETURN, CALL, CONSTRAIN)
NEEDED = (START, CHANNEL, MESSAGE, END)
RECIPIENT = "to=functions."
LONGEST_HEAD = 1000  # letters


class HarmonyReader:
    """tools: without any, calls are reasoning, as other words to anybody but the user."""

    def __init__(self, marks: Marks, tools: Tools):
        self._marks, self._tools = marks, tools
        self._part: Part | None = "answer"  # None: the head of a message, or between two
        self._role = ""  # what the head says before the name of the channel
        self._channel: str | None = None  # and behind it; None where a message has none
        self._call: list[str] | None = None  # the arguments of a call
        self._letters = {marks.spelled(name): name for name in TOKENS if marks.special(name)}

    def push(self, text: str) -> list[Piece]:
        pieces = []
        begin = 0
        for place, letter in enumerate(text):
            if letter in self._letters:
                pieces += self._text(text[begin:place]) + self._mark(self._letters[letter])
                begin = place + 1
        return pieces + self._text(text[begin:])

    def finish(self) -> list[Piece]:
        return self._end_call("")

    def _text(self, text: str) -> list[Piece]:
        if self._call is not None:
            self._call.append(text)
        elif self._part:
            return [Piece(text, self._part)] if text else []
        elif self._channel is not None:
            self._channel = (self._channel + text)[:LONGEST_HEAD]
        else:
            self._role = (self._role + text)[:LONGEST_HEAD]
        return []

    def _mark(self, name: str) -> list[Piece]:
        if name == CONSTRAIN:
            return self._text(" ") if self._part is None else []
        pieces = self._end_call(name)
        if name == MESSAGE:
            self._begin_message()
        elif name == CHANNEL:
            self._part, self._channel = None, ""
        else:
            self._part, self._channel, self._role = None, None, ""
        return pieces

    def _begin_message(self) -> None:
        final = self._channel is None or self._channel.split()[:1] == ["final"]
        self._part = "answer" if final else "reasoning"
        if self._tools and self._recipient():
            self._call = []

    def _recipient(self) -> str | None:
        """The tool that a message is for."""
        words = f"{self._role} {self._channel or ''}".split()
        return next((word.removeprefix(RECIPIENT) for word in words if word.startswith(RECIPIENT)), None)

    def _end_call(self, end: str) -> list[Piece]:
        if self._call is None:
            return []
        said, self._call = "".join(self._call), None
        try:
            return [Piece("", "answer", (call(self._recipient(), said),))]
        except NotACall:
            channel = CHANNEL + self._channel if self._channel else ""
            return [Piece(f"{channel}{MESSAGE}{said}{end}", "answer")]
