"""Qwen3-Coder, Qwen 3.5: `<tool_call><function=f><parameter=key>text</parameter></function></tool_call>`, each on lines of its own.

https://huggingface.co/Qwen/Qwen3-Coder-480B-A35B-Instruct (its parser and its template)
"""

from numatp.text.parts.calls import Tools, field, line
from numatp.text.parts.format import CallFormat
from numatp.text.parts.source import NotACall, Reading, Source


def read(source: Source, tools: Tools) -> Reading[None]:
    yield from source.has("<tool_call>")  # models forget it
    yield from source.space()
    if not (yield from source.at("<function=")):
        raise NotACall
    while (yield from source.has("<function=")):
        name = yield from source.word(">")
        yield from source.expect(">")
        yield from source.space()
        texts = {}
        while (yield from source.has("<parameter=")):
            key = yield from source.word(">")
            yield from source.expect(">")
            texts[key] = line((yield from field(source, "</parameter>", "<parameter=", "</function>", "</tool_call>")))
        if not (yield from source.has("</function>")) and not (yield from source.at("</tool_call>")):
            raise NotACall
        yield tools.typed(name, texts)
        yield from source.space()
    yield from source.has("</tool_call>")


FORMAT = CallFormat(
    told_by=("<tool_call>", "<function="), opening=("<tool_call>", "<function="), marks=("</tool_call>",), read=read
)  # fmt: skip
