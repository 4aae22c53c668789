"""Kimi K2: `<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{...}<|tool_call_end|>`, one or more in a section.

https://huggingface.co/moonshotai/Kimi-K2-Instruct (docs/tool_call_guidance.md)
"""

from numatp.text.parts.calls import Tools, call
from numatp.text.parts.format import CallFormat
from numatp.text.parts.source import NotACall, Reading, Source

SECTIONS = ("<|tool_calls_section_begin|>", "<|tool_call_section_begin|>")
ENDS = ("<|tool_calls_section_end|>", "<|tool_call_section_end|>")


def read(source: Source, tools: Tools) -> Reading[None]:
    for mark in SECTIONS:
        yield from source.has(mark)
    yield from source.space()
    if not (yield from source.at("<|tool_call_begin|>")):
        raise NotACall
    while (yield from source.has("<|tool_call_begin|>")):
        id = yield from source.word("<|tool_call_argument_begin|>")
        yield from source.expect("<|tool_call_argument_begin|>")
        yield from source.space()
        yield call(tool_name(id), (yield from source.value()))
        yield from source.space()
        yield from source.has("<|tool_call_end|>")
        yield from source.space()
    for mark in ENDS:
        yield from source.has(mark)


def tool_name(id: str) -> str:
    """Of functions.get_weather:0: the number is that of the call in the conversation."""
    name, colon, number = id.removeprefix("functions.").rpartition(":")
    return name if colon and number.isdecimal() else id.removeprefix("functions.")


FORMAT = CallFormat(
    told_by=("<|tool_call_begin|>", "<|tool_call_argument_begin|>"), opening=(*SECTIONS, "<|tool_call_begin|>"),
    marks=("<|tool_call_argument_begin|>", "<|tool_call_end|>", *ENDS), read=read,
    id=lambda name, number: f"functions.{name}:{number}",
)  # fmt: skip
