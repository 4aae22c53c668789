"""Granite 3 and Phi-4-mini: `<|tool_call|>[{"name": "f", "arguments": {...}}]`, with `<|/tool_call|>` behind it from Phi.

https://www.ibm.com/granite/docs/models/granite, https://huggingface.co/microsoft/Phi-4-mini-instruct
"""

from numatp.text.parts.calls import Tools, json_calls
from numatp.text.parts.format import CallFormat
from numatp.text.parts.source import Reading, Source


def read(source: Source, tools: Tools) -> Reading[None]:
    yield from source.expect("<|tool_call|>")
    yield from source.space()
    yield from json_calls(source)
    yield from source.has("<|/tool_call|>")


FORMAT = CallFormat(told_by=("<|tool_call|>",), opening=("<|tool_call|>",), marks=("<|/tool_call|>",), read=read)
