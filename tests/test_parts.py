"""The parts of an answer: reasoning, text and calls of tools in the formats of the models, however the text is cut."""

import json
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from support.answers import ids_of, joined, read, vocabulary

from numatp.text.parts.calls import Tools
from numatp.text.parts.formats import CALLS, THINKING, Parts
from numatp.text.parts.piece import Piece, ToolCall
from numatp.text.parts.reader import HELD_SPACE, MarkReader
from numatp.text.parts.source import DEEPEST, LONGEST_NAME
from numatp.text.parts.start import reader_of
from numatp.text.stream import TextStream
from numatp.text.tokenizer import StreamDecoder


def tool(name, **properties):
    schema = {"type": "object", "properties": properties, "$defs": {"count": {"type": "integer"}}}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


TOOLS = [
    tool(
        "weather", city={"type": "string"}, days={"type": "integer"}, hot={"type": "boolean"}, at={"type": "object"},
        tags={"type": ["array", "null"]}, degrees={"anyOf": [{"type": "number"}, {"type": "null"}]}, code={"type": "string"},
        unit={"enum": ["C", "F"]}, count={"$ref": "#/$defs/count"}, size={"type": ["string", "integer"]},
    ),
    tool("now"),
]  # fmt: skip


def answer(text):
    return Piece(text, "answer")


def reasoning(text):
    return Piece(text, "reasoning")


def call(name, **arguments):
    return Piece("", "answer", (ToolCall(name, json.dumps(arguments, ensure_ascii=False)),))


def examples():
    """From data/answers.txt: a template's marks, which of them are special tokens, an answer, and its parts."""
    for group in (Path(__file__).parent / "data/answers.txt").read_text().split("======== ")[1:]:
        head, *cases = group.split("--------\n")
        name, template, special = head.splitlines()
        for case in cases:
            text, *parts = case.removesuffix("\n").split("\n-> ")
            said = Marked(name, template.removeprefix("template:").strip(), tuple(special.removeprefix("special:").split()))
            yield said, text, [part_of(*part.split(" ", 1)) for part in parts]


class Marked(NamedTuple):
    """A model's format: what its template shows of it, and which marks are special tokens."""

    name: str
    template: str
    special: tuple[str, ...]


def part_of(kind, said):
    if kind == "call":
        name, arguments = said.split(" ", 1)
        return Piece("", "answer", (ToolCall(name, arguments),))
    return Piece(json.loads(said), kind)


EXAMPLES = list(examples())
FORMATS = sorted({marked for marked, _, _ in EXAMPLES})
THINK = ("<think>", "</think>")


def of(name):
    """The format of that name."""
    return next(marked for marked, _, _ in EXAMPLES if marked.name.startswith(name))


def opened(marked, text, tools=TOOLS, prompt=""):
    """A stream and the tokens of an answer."""
    tokenizer = vocabulary(marked.special, marked.template)
    return TextStream(tokenizer, (), ids_of(tokenizer, prompt), Parts(marked.template, tools)), ids_of(tokenizer, text)


@pytest.mark.parametrize(("marked", "text", "parts"), EXAMPLES)
def test_formats(marked, text, parts):
    assert read(*opened(marked, text, prompt="<|start|>assistant")) == parts


def as_text(marked, text):
    """A reader, and the answer as the text that it divides."""
    tokenizer = vocabulary(marked.special, marked.template)
    reader, marks = reader_of(tokenizer, (), Parts(marked.template, TOOLS))
    decoder = StreamDecoder(tokenizer)
    return reader, "".join(marks.text(id, decoder) for id in ids_of(tokenizer, text))


def cut(reader, text, places):
    ends = [0, *sorted(place for place in places if place < len(text)), len(text)]
    pieces = [piece for begin, end in pairwise(ends) for piece in reader.push(text[begin:end])]
    return joined(pieces + reader.finish())


SCRAPS = [
    *'"{}[]\\ \n`<>:=,;xé', "\ufffd", '{"name": "now"}', '{"name": "weather", "arguments": {"city": "a"}}', "functions.now:1",
    '{"tool_name": "now", "parameters": {}}', "```json\n", "now", "call:now", '"a"', "to=functions.now", "final", "Action:",
    "<function=now>", "<parameter=city>", "</parameter>", "</function>", '<invoke name="now">', "<parameter name=a>", "</invoke>",
    'string="true">', ".call(", " " * 70,
]  # fmt: skip


@st.composite
def answers(draw):
    """A format, and scraps of what models say with its marks among them."""
    marked = draw(st.sampled_from(FORMATS))
    marks = sorted({*marked.special, *Parts(marked.template, TOOLS).tokens()})
    scraps = st.sampled_from([*SCRAPS, *marks, *marks])
    real = st.sampled_from([text for one, text, _ in EXAMPLES if one == marked])
    return marked, draw(st.one_of(st.lists(scraps, max_size=30).map("".join), real))


@settings(max_examples=200, deadline=None)
@given(answers(), st.lists(st.integers(0, 400), max_size=20))
def test_an_answer_says_the_same_however_it_is_cut(said, places):
    whole, text = as_text(*said)
    by_letter, pieces = as_text(*said)[0], as_text(*said)[0]
    parts = cut(whole, text, [])
    assert cut(by_letter, text, range(len(text))) == parts
    assert cut(pieces, text, places) == parts


@settings(max_examples=150, deadline=None)
@given(answers(), st.data())
def test_any_tokens_are_read(said, data):
    """Whatever a model says is read, half characters included; calls are objects in JSON."""
    marked, text = said
    stream, ids = opened(marked, text)
    junk = data.draw(st.lists(st.integers(0, 256 + len(marked.special) - 1), max_size=40))
    place = data.draw(st.integers(0, len(ids)))
    for piece in read(stream, ids[:place] + junk + ids[place:]):
        assert piece.text or piece.calls
        piece.text.encode()
        for name, arguments in piece.calls:
            assert name and isinstance(json.loads(arguments), dict)


@settings(max_examples=150, deadline=None)
@given(answers())
def test_what_is_no_call_is_shown_as_it_was(said):
    """Where marks are text, and neither reasoning nor a call was understood, nothing is lost."""
    marked, text = said
    assume("directly-answer" not in text and not any(mark in text for marks in THINKING for mark in marks[:2]))
    pieces = read(*opened(marked._replace(special=()), text))
    assert any(piece.calls for piece in pieces) or "".join(piece.text for piece in pieces) == text


def test_white_space_before_a_mark_is_held_as_long_as_it_is_short():
    said = "a" + " " * 100 + '<tool_call>{"name": "now"}</tool_call>'
    for places in ([], range(len(said))):
        parts = cut(as_text(of("Hermes"), "")[0], said, places)
        assert parts == [answer("a" + " " * (100 - HELD_SPACE)), call("now")]


def test_brackets_in_brackets_have_an_end():
    for depth in (DEEPEST - 2, DEEPEST - 1):
        text = f'<tool_call>{{"name": "now", "arguments": {{"a": {"[" * depth}{"]" * depth}}}}}'
        assert any(piece.calls for piece in read(*opened(of("Hermes"), text))) == (depth == DEEPEST - 2)


@pytest.mark.parametrize(
    ("name", "text", "last"),
    [
        ("Hermes", '<tool_call>{"name": "now"}</tool_call>', "}"),
        ("Mistral", '[TOOL_CALLS] [{"name": "now"}, {"name": "now"}]', "}"),
        ("Qwen3-Coder", "<tool_call><function=now></function></tool_call>", "</function>"),
        ("GLM", "<tool_call>now</tool_call>", "</tool_call>"),
    ],
)
def test_a_call_is_given_when_it_is_complete(name, text, last):
    reader, text = as_text(of(name), text)
    end = text.index(last) + len(last)
    assert not reader.push(text[: end - 1]) and reader.push(text[end - 1 : end]) == [call("now")]


@pytest.mark.parametrize("marked", FORMATS)
def test_little_is_held_back(marked):
    """And what has been read is not read again: a long answer costs no more per letter than a short one."""
    for letter in ' <{x\n[`"':
        reader, _ = as_text(marked, "")
        shown = sum(len(piece.text) for _ in range(500) for piece in reader.push(letter))
        assert 500 - shown <= HELD_SPACE + LONGEST_NAME, letter
        assert not isinstance(reader, MarkReader) or len(reader._rest) <= HELD_SPACE + 40


@pytest.mark.parametrize(
    ("name", "beginning"),
    [
        ("Hermes", '<tool_call>{"a": "'),
        ("Qwen3-Coder", "<tool_call><function=f><parameter=a>"),
        ("Gemma", '<|tool_call>call:f{a:<|"|>'),
    ],
)
def test_the_text_of_a_call_is_read_once(name, beginning):
    reader, text = as_text(of(name), beginning)
    reader.push(text)
    for _ in range(500):
        assert not reader.push("0123456789</param")
        assert len(reader._source.rest) < 40


@pytest.mark.parametrize(
    ("prompt", "text", "parts"),
    [
        ("<|im_end|><|im_start|>assistant\n<think>\n", "Hm.\n</think>\n\nYes.", [reasoning("Hm."), answer("Yes.")]),
        ("<|im_end|><|im_start|>assistant\n<think>\nWell, ", "hm.</think>Yes.", [reasoning("hm."), answer("Yes.")]),
        ("<|im_end|><|im_start|>assistant\n<think>\n\n</think>\n\n", "Yes.", [answer("Yes.")]),
        ("what is <think>?<|im_end|><|im_start|>assistant\n", "Yes.", [answer("Yes.")]),
        ("<|im_end|><|im_start|>assistant\n<think>", "", []),
        ("", "Yes.", [answer("Yes.")]),
    ],
)
@pytest.mark.parametrize("special", [(), THINK])
def test_an_answer_that_begins_within_the_reasoning(prompt, text, parts, special):
    marked = of("Hermes")._replace(special=("<|im_start|>", "<|im_end|>", *special))
    assert read(*opened(marked, text, prompt=prompt)) == parts


def test_gemma_reasons_where_its_prompt_says_so():
    marked = of("Gemma 4")
    assert read(*opened(marked, "Hm.<channel|>Yes.", prompt="<|channel>thought\n")) == [reasoning("Hm."), answer("Yes.")]
    assert read(*opened(marked, "Yes.", prompt="<|channel>thought\n<channel|>")) == [answer("Yes.")]


def test_calls_are_text_where_there_are_no_tools():
    for marked, text, _ in EXAMPLES:
        assert not any(piece.calls for piece in read(*opened(marked, text, tools=())))
    text = '<tool_call>{"name": "now"}</tool_call>'
    assert read(*opened(of("Hermes"), text, tools=())) == [answer(text)]
    assert read(*opened(of("Hermes"), f"<think>Hm.</think>\n{text}", tools=())) == [reasoning("Hm."), answer(text)]


def test_stop_texts_end_the_answer_and_nothing_else():
    now = '<tool_call>{"name": "now", "arguments": {"a": "STOP"}}</tool_call>'
    tokenizer = vocabulary(())
    stream = TextStream(tokenizer, ["STOP"], (), Parts(of("Hermes").template, TOOLS))
    assert read(stream, ids_of(tokenizer, f"<think>STOP</think>a{now}b ST{now}cSTOPd{now}")) == [
        reasoning("STOP"), answer("a"), call("now", a="STOP"), answer("b ST"), call("now", a="STOP"), answer("c"),
    ]  # fmt: skip
    assert stream.stopped


def test_a_plain_text_has_no_parts():
    """What `generate` continues is not a chat."""
    tokenizer = vocabulary((), of("Hermes").template)
    assert read(TextStream(tokenizer), ids_of(tokenizer, "<think>a</think>b")) == [answer("<think>a</think>b")]


def test_formats_are_told_by_the_template():
    found = {Parts(marked.template, TOOLS).calls for marked in FORMATS}
    assert found == {None, *CALLS}, "a format without an example, or one that another hides"
    assert Parts(of("Hermes").template).calls is None


SCHEMAS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.sampled_from(["string", "integer", "#/properties/a", "#/x"])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["type", "enum", "const", "$ref", "anyOf", "oneOf", "properties", "a"]), inner, max_size=4),
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(SCHEMAS, st.text(max_size=10))
def test_whatever_a_schema_says_arguments_are_an_object(schema, text):
    for given_tools in (
        [{"function": {"name": "f", "parameters": schema}}],
        [{"name": "f", "parameters": {"properties": schema}}],
        [schema],
    ):
        arguments = json.loads(Tools(given_tools).typed("f", {"a": text}).arguments)
        assert set(arguments) == {"a"}


def test_a_schema_that_refers_to_itself():
    schema = {"properties": {"a": {"$ref": "#/properties/b"}, "b": {"anyOf": [{"$ref": "#/properties/a"}, {"type": "integer"}]}}}
    tools = Tools([{"name": "f", "parameters": schema}])
    assert tools.typed("f", {"a": "5", "b": "x"}).arguments == '{"a": 5, "b": "x"}'
