"""Do guesses pay? `python bench/guesses.py MODEL [--spec auto] [-n 200] [-r 3] [--ranks 1]`

Whatever the weights are, the model says a text that is known before, so that guesses are as right and as wrong as the text makes
them, while each Step computes what it always does:

edited      its prompt again, in which every 40th token is another one, as somebody who edits a file has it
prose       what nobody has said before
misleading  the same three tokens over and over, each time followed by another one: the worst for who guesses by three tokens

Tokens per second with --spec beside `off`, in turns, and milliseconds of Steps of one sequence by their rows. Prints JSON.
"""

import argparse
import json
import random
import statistics
import time
from pathlib import Path

from numatp import LLM, SamplingParams
from numatp.engine.blocks import Tables
from numatp.engine.token import Token
from numatp.program.step import Span

PROSE = (Path(__file__).parent.parent / "tests/data/text.txt").read_text()
ROWS = (1, 2, 3, 5, 9)
STEPS = 15  # of each number of rows


def texts(llm, count, chances):
    """By name: (the prompt's tokens, what follows)."""
    vocab = llm.tokenizer.vocab_size
    prose = llm.encode(PROSE)[: 2 * count]
    if len(prose) < 2 * count:  # a vocabulary of long words
        prose += [chances.randrange(vocab) for _ in range(2 * count - len(prose))]
    edited = [chances.randrange(vocab) if i % 40 == 39 else token for i, token in enumerate(prose[:count])]
    misleading = [token for _ in range(count // 2) for token in (5, 6, 7, chances.randrange(vocab))]
    return {
        "edited": (prose[:count], edited), "prose": (prose[:count], prose[count:]),
        "misleading": (misleading[:count], misleading[count:]),
    }  # fmt: skip


def say(llm, text):
    """Every sequence from now on goes on as the text does."""

    def choose(choices, rows=None):
        return [Token(text[len(choice.tokens)]) for choice in choices]

    llm._service.call(lambda engine: setattr(engine.sampler, "choose", choose))


def rate(llm, prompt, following):
    say(llm, [*prompt, *following])
    output = llm.generate(prompt, SamplingParams(max_tokens=len(following), ignore_eos=True))
    assert output.token_ids == following
    return output.decoded_tokens / output.decode_seconds


def step_seconds(engine, vocab, chances):
    """By rows, in turns: seconds of a Step of one sequence with tokens that nobody else has."""
    tables, found = Tables(engine.blocks), {rows: [] for rows in ROWS}
    for number in range(STEPS * len(ROWS)):
        rows = ROWS[number % len(ROWS)]
        blocks = tables.prepare(0, 64)
        spans = [Span(0, [chances.randrange(vocab)], 32 + i, blocks) for i in range(rows)]
        began = time.perf_counter()
        engine.run(spans)
        found[rows].append(time.perf_counter() - began)
    tables.release()
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--spec", choices=("ngram", "auto"), default="auto")
    parser.add_argument("-n", "--tokens", type=int, default=200)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=1)
    options = parser.parse_args()
    more = {"ranks": options.ranks, "ctx": 2048, "max_sequences": 1, "prefix_cache": False}
    with LLM(options.model, spec="off", **more) as off, LLM(options.model, spec=options.spec, **more) as guessing:
        steps = guessing._service.call(lambda engine: step_seconds(engine, off.tokenizer.vocab_size, random.Random(1)))
        found = {}
        for number in range(options.rounds):
            for name, (prompt, following) in texts(off, options.tokens, random.Random(number)).items():
                pair = [rate(llm, prompt, following) for llm in (off, guessing)]
                found.setdefault(name, []).append([round(value, 2) for value in pair])
        told = {
            name: {"off, guessing": pairs, "ratio": round(statistics.median(there / beside for beside, there in pairs), 3)}
            for name, pairs in found.items()
        }
        times = {rows: [round(1e3 * min(some), 2), round(1e3 * statistics.median(some), 2)] for rows, some in steps.items()}
        counts = guessing.counts
        print(json.dumps({
            "model": options.model, "spec": options.spec, "step_ms_by_rows_least_median": times, "tokens_per_second": told,
            "guessed": counts.guessed_tokens, "right": counts.right_guesses,
        }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
