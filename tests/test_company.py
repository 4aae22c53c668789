"""The bits of a row, whatever else is in its Step: of prompts however they are cut, and of generated tokens, beside each other."""

import numpy as np
import pytest
from support.models import tiny_qwen3, tiny_qwen3moe, tiny_qwen3next
from support.scheduling import opened

from numatp.engine.blocks import Tables
from numatp.program.step import Span

MODELS = {"dense": tiny_qwen3, "experts": tiny_qwen3moe, "recurrent": tiny_qwen3next}
TOKENS = np.random.default_rng(7).integers(0, 200, 60).tolist()
PROMPT, NEXT = 40, 4  # tokens of a prompt that is long enough for tile registers, and then those that follow one by one


@pytest.fixture(scope="module", params=MODELS)
def engine(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param) / "tiny.gguf"
    MODELS[request.param].write(path, "Q4_1")  # a format that is multiplied on tile registers, where there are some
    with opened(path, context=512, max_sequences=4, max_rows=128) as play:
        yield lambda work: play(lambda p: work(p.engine))


class Text:
    """A sequence of which parts are computed; `seen` are the logits of the last token of each."""

    def __init__(self, engine, place, tokens):
        self.place, self.tokens, self.tables, self.done, self.seen = place, tokens, Tables(engine.blocks), 0, {}

    def part(self, count, prompt):
        first, self.done = self.done, self.done + count
        return Span(self.place, self.tokens[first : self.done], first, self.tables.prepare(first, count), prompt=prompt)


def step(engine, *parts):
    """Of (text, tokens, tokens of the prompt that they belong to)."""
    spans = [(text, text.part(count, prompt)) for text, count, prompt in parts]
    spans.sort(key=lambda one: one[1].prompt, reverse=True)
    engine.run([span for _, span in spans])
    for row, (text, _) in enumerate(spans):
        text.seen[text.done] = engine.window.logits[row, : engine.loaded.spec.sizes.vocab].copy()


def in_turn(engine, work):
    """What work() saw of a text, in a cache that holds nothing else."""
    texts = [Text(engine, place, tokens) for place, tokens in enumerate((TOKENS, TOKENS[::-1], TOKENS[5:], TOKENS[9:]))]
    work(*texts)
    for text in texts:
        text.tables.release()
    return texts[0].seen


@pytest.mark.parametrize("prompt", [PROMPT, 20])
def test_a_row_has_the_same_bits_alone_and_in_company(engine, prompt):
    def alone(engine):
        def work(text, *others):
            step(engine, (text, prompt, prompt))
            for _ in range(NEXT):
                step(engine, (text, 1, 0))

        return in_turn(engine, work)

    def together(engine):
        def work(text, long, short, other):
            step(engine, (long, 10, PROMPT), (other, 3, 3))
            step(engine, (text, 7, prompt), (long, 15, PROMPT), (other, 1, 0))
            step(engine, (other, 1, 0), (text, prompt - 7, prompt), (short, 9, 9))
            step(engine, (text, 1, 0), (long, 15, PROMPT), (other, 1, 0), (short, 1, 0))
            step(engine, (text, 1, 0), (other, 1, 0))
            step(engine, (long, 1, 0), (text, 1, 0), (short, 33, 42), (other, 1, 0))
            step(engine, (text, 1, 0), (short, 1, 0))

        return in_turn(engine, work)

    wanted, seen = engine(alone), engine(together)
    assert len(wanted) == 1 + NEXT
    for done, row in wanted.items():
        assert (row == seen[done]).all(), f"after {done} tokens"
