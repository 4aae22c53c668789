"""Mistral: `[TOOL_CALLS]` and a list of {"name": "f", "arguments": {...}}; since 2025 `[TOOL_CALLS]f[ARGS]{...}` for each call, for
a while with `[CALL_ID]id` before the arguments.

https://github.com/mistralai/mistral-common (its tokenizers from v3 to v13)
"""

from numatp.text.parts.calls import Tools, call, json_calls
from numatp.text.parts.format import CallFormat
from numatp.text.parts.source import Reading, Source


def read(source: Source, tools: Tools) -> Reading[None]:
    yield from source.expect("[TOOL_CALLS]")
    yield from source.space()
    if (yield from source.at("[")) or (yield from source.at("{")):
        yield from json_calls(source)
        return
    name = yield from source.word("[ARGS]", "[CALL_ID]", "{")
    if (yield from source.has("[CALL_ID]")):
        yield from source.word("[ARGS]")
    yield from source.has("[ARGS]")
    yield from source.space()
    yield call(name, (yield from source.value()))


FORMAT = CallFormat(
    told_by=("[TOOL_CALLS]",), opening=("[TOOL_CALLS]",), marks=("[ARGS]", "[CALL_ID]"), read=read,
    id=lambda name, number: f"{number:09d}",  # nine letters or digits, and templates insist on it
)  # fmt: skip
