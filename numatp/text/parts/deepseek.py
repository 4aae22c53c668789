# ruff: noqa: RUF002, for DeepSeek's wide bars
"""DeepSeek V3 and R1: `<｜tool▁call▁begin｜>function<｜tool▁sep｜>f` and a fence with JSON; V3.1: the name and the
JSON, `<｜tool▁sep｜>` between; V3.2 and V4: markup whose tags begin with ｜DSML｜ and say which values are texts.

https://huggingface.co/deepseek-ai/DeepSeek-V3.1 and DeepSeek-V3.2 (their templates and encoding/README.md)
"""

from numatp.text.parts.calls import Tools, call, field, from_json
from numatp.text.parts.format import CallFormat
from numatp.text.parts.source import NotACall, Reading, Source

BEGIN, SEPARATOR, END = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
SECTION, SECTION_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"


def read(source: Source, tools: Tools) -> Reading[None]:
    yield from source.has(SECTION)
    yield from source.space()
    if not (yield from source.at(BEGIN)):
        raise NotACall
    while (yield from source.has(BEGIN)):
        name = yield from source.word(SEPARATOR)
        yield from source.expect(SEPARATOR)
        yield from source.space()
        fenced = not (yield from source.at("{"))
        if fenced:  # what stood before was the type of the call
            name = yield from source.word("```json")
            yield from source.expect("```json")
            yield from source.space()
        arguments = yield from source.value()
        yield call(name, arguments)
        yield from source.space()
        if fenced:
            yield from source.has("```")
            yield from source.space()
        yield from source.has(END)
        yield from source.space()
    yield from source.has(SECTION_END)


FORMAT = CallFormat(told_by=(BEGIN,), opening=(SECTION, BEGIN), marks=(SEPARATOR, END, SECTION_END), read=read)

DSML = "｜DSML｜"
BLOCKS = (f"<{DSML}function_calls>", f"<{DSML}tool_calls>")  # V3.2's and V4's
INVOKE, PARAMETER = f'<{DSML}invoke name="', f'<{DSML}parameter name="'
INVOKE_END, PARAMETER_END = f"</{DSML}invoke>", f"</{DSML}parameter>"


def read_markup(source: Source, tools: Tools) -> Reading[None]:
    for block in BLOCKS:
        yield from source.has(block)
    yield from source.space()
    if not (yield from source.at(INVOKE)):
        raise NotACall
    while (yield from source.has(INVOKE)):
        name = yield from source.word('">')
        yield from source.expect('">')
        yield from source.space()
        arguments = {}
        while (yield from source.has(PARAMETER)):
            key = yield from source.word('"')
            yield from source.expect('" string="')
            text = yield from source.has("true")
            if not text:
                yield from source.expect("false")
            yield from source.expect('">')
            said = yield from field(source, PARAMETER_END, PARAMETER, INVOKE_END)
            arguments[key] = said if text else from_json(said)
        yield from source.expect(INVOKE_END)
        yield call(name, arguments)
        yield from source.space()
    for block in BLOCKS:
        yield from source.has(block.replace("<", "</"))


MARKUP = CallFormat(told_by=(DSML,), opening=BLOCKS, marks=(DSML,), read=read_markup)
