"""Hermes, Qwen 2.5 and 3, SmolLM3 and others: `<tool_call>{"name": "f", "arguments": {...}}</tool_call>`.

https://github.com/NousResearch/Hermes-Function-Calling
"""

from numatp.text.parts.calls import Tools, json_call
from numatp.text.parts.format import CallFormat
from numatp.text.parts.source import Reading, Source


def read(source: Source, tools: Tools) -> Reading[None]:
    yield from source.expect("<tool_call>")
    yield from source.space()
    while True:
        yield json_call((yield from source.value()))
        yield from source.space()
        if not (yield from source.at("{")):
            break
    yield from source.has("</tool_call>")


FORMAT = CallFormat(told_by=("<tool_call>",), opening=("<tool_call>",), marks=("</tool_call>",), read=read)
