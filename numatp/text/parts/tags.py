"""Calls as tags in tags, whose arguments are texts: `<call name><argument key>text</argument></call>`."""

from typing import NamedTuple

from numatp.text.parts.calls import Tools, field, line
from numatp.text.parts.source import NotACall, Reading, Source


class Tags(NamedTuple):
    """Names and keys stand behind the opening tags, with or without quotes, up to the next >."""

    block: str  # around calls
    block_end: str
    call: str
    call_end: str
    argument: str
    argument_end: str

    def read(self, source: Source, tools: Tools) -> Reading[None]:
        """Models forget the tag around the calls, and the one at the end of a call."""
        yield from source.has(self.block)
        yield from source.space()
        if not (yield from source.at(self.call)):
            raise NotACall
        while (yield from source.has(self.call)):
            name = yield from self._named(source)
            yield from source.space()
            texts = {}
            while (yield from source.has(self.argument)):
                key = yield from self._named(source)
                texts[key] = line((yield from field(source, self.argument_end, self.argument, self.call_end, self.block_end)))
            if not (yield from source.has(self.call_end)) and not (yield from source.at(self.block_end)):
                raise NotACall
            yield tools.typed(name, texts)
            yield from source.space()
        yield from source.has(self.block_end)

    def _named(self, source: Source) -> Reading[str]:
        name = yield from source.word(">")
        yield from source.expect(">")
        return name.strip('"')
