"""`numatp perplexity`: how well a model predicts a text, computed as llama.cpp's llama-perplexity does.

The text is cut into windows of -c tokens; in each, the second half is scored. Only what fills a window counts.
"""

import argparse
import json
from math import exp, sqrt

from numatp.cli.generate import read_text
from numatp.cli.options import add_model, job_of
from numatp.cli.progress import Progress
from numatp.cli.session import run_session
from numatp.errors import UserError
from numatp.llm import LLM

WINDOW = 512  # tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("-f", "--file", required=True, metavar="FILE", help="text; - is standard input")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text", help="what stdout gets (default text)")


def run(arguments: argparse.Namespace) -> int:
    text, window = read_text(arguments.file), arguments.ctx_size or WINDOW
    if window < 4:
        raise UserError(f"-c {window}: a window needs at least 4 tokens")

    def measure(llm: LLM) -> int:
        result = perplexity(llm, text, window)
        if arguments.output == "json":
            print(json.dumps(result))
        else:
            print(
                f"perplexity {result['perplexity']:.4f} +/- {result['error']:.4f}, "
                f"{result['tokens']} tokens in {result['windows']} windows of {window}"
            )
        return 0

    return run_session(job_of(arguments, context=window), arguments.ranks, measure)


def perplexity(llm: LLM, text: str, window: int) -> dict[str, float]:
    """Of the second half of each window of `window` tokens; `error` is the standard error of the perplexity."""
    tokens = llm.tokenizer.encode(text)
    starts_with_bos = bool(tokens) and tokens[0] == llm.tokenizer.bos
    windows = len(tokens) // window
    if not windows:
        raise UserError(f"the text has {len(tokens)} tokens, one window {window}: a longer text or a smaller -c")
    losses: list[float] = []
    with Progress("perplexity") as progress:
        for i in range(windows):
            part = tokens[i * window : (i + 1) * window]
            if starts_with_bos:
                part[0] = tokens[0]
            losses += [-score for score in llm.score(part, window - 1 - window // 2).logprobs]
            progress.update(i + 1, windows)
    count = len(losses)
    mean = sum(losses) / count
    variance = sum((loss - mean) ** 2 for loss in losses) / max(count - 1, 1)
    value = exp(mean)
    return {
        "perplexity": value, "error": value * sqrt(variance / count), "tokens": count, "windows": windows, "window": window,
    }  # fmt: skip
