"""GLM-4.5 and later: `<tool_call>f<arg_key>key</arg_key><arg_value>text</arg_value></tool_call>`, with or without line ends.

https://huggingface.co/zai-org/GLM-4.5 (its template)
"""

from numatp.text.parts.calls import Tools, field, line
from numatp.text.parts.format import CallFormat
from numatp.text.parts.source import Reading, Source

MARKS = ("</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>")


def read(source: Source, tools: Tools) -> Reading[None]:
    yield from source.expect("<tool_call>")
    name = yield from source.word("<arg_key>", "</tool_call>")
    texts = {}
    while (yield from source.has("<arg_key>")):
        key = yield from source.word("</arg_key>")
        yield from source.expect("</arg_key>")
        yield from source.space()
        yield from source.expect("<arg_value>")
        texts[key] = line((yield from field(source, "</arg_value>", "<arg_key>", "</tool_call>")))
    yield from source.expect("</tool_call>")
    yield tools.typed(name, texts)


FORMAT = CallFormat(told_by=("<tool_call>", "<arg_key>"), opening=("<tool_call>",), marks=MARKS, read=read)
