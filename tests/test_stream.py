"""The text of an answer as it is streamed: whole characters, stop texts, and the channels of models that reason first."""

import sys
from types import SimpleNamespace

import pytest
from support.answers import ids_of, vocabulary

from numatp.cli.generate import show_answer, show_pieces
from numatp.engine.sampling import SamplingParams
from numatp.engine.token import Finish
from numatp.results import Stats
from numatp.text.stream import Piece, TextStream, ToolCall
from numatp.text.tokenizer import BYTE_OF_CHAR, CONTROL, NORMAL, end_ids

MARKS = ["<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>"]
ANSWER = (
    "<|channel|>analysis<|message|>Hm, né STOP?<|end|><|start|>assistant<|channel|>commentary to=f<|message|>{}<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Yes é.<|return|>"
)


def streamed(stream, ids):
    pieces = [piece for some in (*map(stream.push, ids), stream.finish()) for piece in some]
    return {part: "".join(piece.text for piece in pieces if piece.part == part) for part in ("answer", "reasoning")}


@pytest.mark.parametrize("prompt", ["<|start|>user<|message|>hi<|end|><|start|>assistant", "hi"])
def test_the_answer_is_the_final_channel(prompt):
    tokenizer = vocabulary(MARKS)
    stream = TextStream(tokenizer, ["STOP"], ids_of(tokenizer, prompt))
    assert streamed(stream, ids_of(tokenizer, ANSWER)) == {"answer": "Yes é.", "reasoning": "Hm, né STOP?{}"}


def test_an_answer_that_goes_on_where_the_prompt_ends():
    tokenizer = vocabulary(MARKS)
    for prompt, part in (
        ("<|start|>assistant<|channel|>final<|message|>Well, ", "answer"),
        ("<|start|>assistant<|channel|>analysis<|message|>Well, ", "reasoning"),
        ("<|start|>developer<|message|>Well, ", "answer"),
        ("a text without marks", "answer"),
    ):
        stream = TextStream(tokenizer, (), ids_of(tokenizer, prompt))
        assert stream.push(ids_of(tokenizer, "x")[0]) == [Piece("x", part)], prompt


def test_a_model_without_channels_says_all():
    tokenizer = vocabulary(MARKS[3:])
    assert streamed(TextStream(tokenizer), ids_of(tokenizer, "a<|end|>bé")) == {"answer": "abé", "reasoning": ""}


def test_characters_that_are_cut_where_a_channel_ends():
    tokenizer = vocabulary(MARKS)
    half = ids_of(tokenizer, "é")[:1]
    ids = ids_of(tokenizer, "<|channel|>analysis<|message|>a") + half + ids_of(tokenizer, "<|channel|>final<|message|>b") + half
    assert streamed(TextStream(tokenizer), ids) == {"answer": "b\ufffd", "reasoning": "a\ufffd"}


def test_a_stop_text_ends_the_answer():
    tokenizer = vocabulary(MARKS)
    stream = TextStream(tokenizer, ["aab"])
    pieces = [stream.push(id) for id in ids_of(tokenizer, "aaabaab")]
    assert (pieces, stream.stopped, stream.finish()) == ([[], [], [Piece("a")], [], [], [], []], True, [])
    stream = TextStream(tokenizer, ["aab"])
    assert streamed(stream, ids_of(tokenizer, "xaa"))["answer"] == "xaa" and not stream.stopped


@pytest.mark.parametrize(("least", "said"), [(0, ""), (1, "ab"), (2, "ab"), (3, "abab"), (5, "ababab")])
def test_the_first_tokens_are_not_searched_for_stop_texts(least, said):
    """A stop text that is only in part among them is none."""
    tokenizer = vocabulary(MARKS)
    stream = TextStream(tokenizer, ["ab"], min_tokens=least)
    assert streamed(stream, ids_of(tokenizer, "ababab"))["answer"] == said


@pytest.mark.parametrize(
    ("names", "ends"),
    [
        (MARKS, {"<|return|>", "<|call|>"}),
        (MARKS[:4], {"<|end|>"}),
        (MARKS[:5], {"<|end|>", "<|return|>"}),
    ],
)
def test_the_end_of_a_message_is_not_the_end_of_an_answer(names, ends):
    tokens = [*BYTE_OF_CHAR, *names]
    kinds = [NORMAL] * 256 + [CONTROL] * len(names)
    for said in ({tokens.index("<|end|>")}, set()):
        assert {tokens[id] for id in end_ids(tokens, kinds, said)} == ends


def test_a_command_shows_the_reasoning_and_keeps_the_answer(capsys):
    """What `numatp chat` takes into the history is what it wrote to standard output."""
    pieces = [Piece("Hm", "reasoning"), Piece(".", "reasoning"), Piece("Ye"), Piece("s")]
    answer = SimpleNamespace(pieces=lambda: iter(pieces), token_ids=[1, 2, 3, 4], finish=Finish("stop", 5, 1.0, 3, 1.0))
    llm = SimpleNamespace(submit=lambda *given, **named: answer, stats=Stats(1.0, 100, [], ""), plan=SimpleNamespace(context=100))
    assert show_answer(llm, "hi", SamplingParams(), {}) == "Yes"
    shown = capsys.readouterr()
    assert shown.out == "Yes\n"
    assert shown.err.splitlines()[:2] == ["numatp: the model's reasoning, which is no part of its answer:", "Hm."]


def test_reasoning_is_dim_at_a_terminal(capsys, monkeypatch):
    """Also if the answer ends within it, for whatever reason."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    def interrupted():
        yield Piece("Hm", "reasoning")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        show_pieces(interrupted())
    assert capsys.readouterr().err.endswith("answer:\n\x1b[2mHm\x1b[0m\n")
    show_pieces([Piece("Hm", "reasoning"), Piece("Yes"), Piece("Hm", "reasoning")])
    shown = capsys.readouterr()
    assert shown.out == "Yes\n" and shown.err.count("\x1b[2mHm\x1b[0m\n") == 2


def test_calls_are_part_of_what_is_shown(capsys):
    call = ToolCall("f", '{"a": 1}')
    assert show_pieces([Piece("Yes: "), Piece("", "answer", (call,))]) == 'Yes: {"name": "f", "arguments": {"a": 1}}\n'
    assert capsys.readouterr().out == 'Yes: {"name": "f", "arguments": {"a": 1}}\n\n'
