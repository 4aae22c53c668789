"""Models without a format of their own that their template tells to use a fence, as Gemma 2 and 3 are: "```tool_call" and
{"name": "f", "arguments": {...}}.
"""

from numatp.text.parts.calls import Tools, json_calls
from numatp.text.parts.format import CallFormat
from numatp.text.parts.source import Reading, Source


def read(source: Source, tools: Tools) -> Reading[None]:
    yield from source.expect("```tool_call")
    yield from source.space()
    yield from json_calls(source)
    yield from source.space()
    yield from source.has("```")


FORMAT = CallFormat(told_by=("```tool_call",), opening=("```tool_call",), read=read)
