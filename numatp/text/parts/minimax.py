"""MiniMax-M2: `<minimax:tool_call><invoke name="f"><parameter name="key">text</parameter></invoke></minimax:tool_call>`.

https://huggingface.co/MiniMaxAI/MiniMax-M2 (docs/tool_calling_guide.md)
"""

from numatp.text.parts.calls import Tools, field, line
from numatp.text.parts.format import CallFormat
from numatp.text.parts.source import NotACall, Reading, Source


def read(source: Source, tools: Tools) -> Reading[None]:
    yield from source.expect("<minimax:tool_call>")
    yield from source.space()
    if not (yield from source.at("<invoke name=")):
        raise NotACall
    while (yield from source.has("<invoke name=")):
        name = yield from source.word(">")
        yield from source.expect(">")
        yield from source.space()
        texts = {}
        while (yield from source.has("<parameter name=")):
            key = yield from source.word(">")
            yield from source.expect(">")
            texts[key.strip('"')] = line((yield from field(source, "</parameter>", "<parameter name=", "</invoke>")))
        yield from source.expect("</invoke>")
        yield tools.typed(name.strip('"'), texts)
        yield from source.space()
    yield from source.has("</minimax:tool_call>")


FORMAT = CallFormat(
    told_by=("<minimax:tool_call>",), opening=("<minimax:tool_call>",), marks=("</minimax:tool_call>",), read=read
)  # fmt: skip
