"""Gemma 4: `<|tool_call>call:f{key:<|"|>text<|"|>,other:[1,true]}<tool_call|>`; FunctionGemma: the same by other names. Keys are
bare, texts stand between marks and have no escapes.

https://ai.google.dev/gemma/docs/core/prompt-formatting-gemma4, https://ai.google.dev/gemma/docs/functiongemma
"""

from typing import Any

from numatp.text.parts.calls import Tools, call, from_json
from numatp.text.parts.format import CallFormat
from numatp.text.parts.source import DEEPEST, NotACall, Reading, Source


def reader(open: str, close: str, quote: str):
    def read(source: Source, tools: Tools) -> Reading[None]:
        yield from source.expect(open)
        yield from source.space()
        yield from source.expect("call:")
        name = yield from source.word("{")
        arguments = yield from value(source, 0)
        yield call(name, arguments)
        yield from source.space()
        yield from source.has(close)

    def value(source: Source, depth: int) -> Reading[Any]:
        if depth > DEEPEST:
            raise NotACall
        if (yield from source.at(quote)):
            return (yield from quoted(source))
        if (yield from source.at('"')):
            return from_json((yield from source.text()))
        if (yield from source.has("{")):
            found: dict[str, Any] = {}
            while not (yield from closed(source, "}", bool(found))):
                key = (yield from quoted(source)) if (yield from source.at(quote)) else (yield from source.word(":"))
                yield from source.space()
                yield from source.expect(":")
                yield from source.space()
                found[key.strip('"')] = yield from value(source, depth + 1)
            return found
        if (yield from source.has("[")):
            items: list[Any] = []
            while not (yield from closed(source, "]", bool(items))):
                items.append((yield from value(source, depth + 1)))
            return items
        return from_json((yield from source.word(",", "}", "]")))

    def quoted(source: Source) -> Reading[str]:
        yield from source.expect(quote)
        text = yield from source.until(quote)
        yield from source.expect(quote)
        return text

    return read


def closed(source: Source, bracket: str, more: bool) -> Reading[bool]:
    """Whether the bracket comes; a comma before what comes instead, if something came before."""
    yield from source.space()
    if (yield from source.has(bracket)):
        return True
    if more:
        yield from source.expect(",")
        yield from source.space()
    return False


def form(open: str, close: str, quote: str) -> CallFormat:
    return CallFormat(told_by=(open,), opening=(open,), marks=(close, quote), read=reader(open, close, quote))


FORMAT = form("<|tool_call>", "<tool_call|>", '<|"|>')
FUNCTION = form("<start_function_call>", "<end_function_call>", "<escape>")
