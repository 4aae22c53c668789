"""What there is to say of a format."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from numatp.text.parts.calls import Tools
from numatp.text.parts.source import Reading, Source


class Thinking(NamedTuple):
    """Marks around what a model says to itself."""

    open: str
    close: str
    tokens: tuple[str, ...] = ()  # what may be special tokens in them, where it is not the whole mark


@dataclass(frozen=True)
class CallFormat:
    """How a model asks for tools.

    read(source, tools) is given the text from an opening mark on. It gives each call when it is complete, returns behind the last
    one, and raises NotACall where the text is no call; what was read since the last one is then shown as text.
    """

    told_by: tuple[str, ...]  # the marks that a chat template of the format has, all of them
    opening: tuple[str, ...]  # at which calls begin, anywhere in an answer
    read: Callable[[Source, Tools], Reading[None]]
    marks: tuple[str, ...] = ()  # others that may be special tokens, or hold one
    id: Callable[[str, int], str] | None = None  # that a template wants: of the tool, and the number of the call in the chat
    first: tuple[str, ...] = ()  # at which calls begin if nothing was said before
