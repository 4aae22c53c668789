"""Llama 3: {"name": "f", "parameters": {...}} as the whole answer, or several with semicolons between, `<|python_tag|>` before them
or not; tools that Meta trained the models for: `<|python_tag|>f.call(key="text")`.

https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/
"""

from numatp.text.parts.calls import Tools, call, from_json, json_call
from numatp.text.parts.format import CallFormat
from numatp.text.parts.piece import ToolCall
from numatp.text.parts.source import NotACall, Reading, Source

TAG = "<|python_tag|>"
FIRST_KEYS = ('"name"', '"type"', '"function"')


def read(source: Source, tools: Tools) -> Reading[None]:
    if (yield from source.has(TAG)):
        yield from source.space()
        if not (yield from source.at("{")):
            yield known((yield from trained(source)), tools)
            return
    while (yield from source.has("{")):
        gap = yield from source.space()
        keys = []
        for key in FIRST_KEYS:
            keys.append((yield from source.at(key)))
        if not any(keys):
            raise NotACall
        yield known(json_call("{" + gap + (yield from source.value(depth=1))), tools)
        yield from source.space()
        yield from source.has(";")
        yield from source.space()


def trained(source: Source) -> Reading[ToolCall]:
    name = yield from source.word(".call(")
    yield from source.expect(".call(")
    arguments = {}
    while not (yield from source.has(")")):
        yield from source.space()
        key = yield from source.word("=")
        yield from source.expect("=")
        arguments[key] = from_json((yield from source.text()))
        yield from source.has(",")
    return call(name, arguments)


def known(found: ToolCall, tools: Tools) -> ToolCall:
    """NotACall for an object that only looks like one."""
    if found.name not in tools:
        raise NotACall
    return found


FORMAT = CallFormat(told_by=("ipython", '"parameters"'), opening=(TAG,), first=("{",), read=read)
