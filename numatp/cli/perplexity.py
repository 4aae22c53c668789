"""`numatp perplexity`: how well a model predicts a text, computed as llama.cpp's llama-perplexity does.

The text is cut into windows of -c tokens; in each, the second half is scored. Only what fills a window counts. Names of special
tokens in the text are text.
"""

import argparse
import json
from math import exp, inf, isfinite, sqrt

from numatp.cli.options import add_model, job_of, read_text
from numatp.cli.progress import Progress
from numatp.cli.session import run_session
from numatp.errors import UserError
from numatp.llm import LLM

WINDOW = 512  # tokens


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument("-f", "--file", required=True, metavar="FILE", help="text; - is standard input")
    parser.add_argument("--parse-special", action="store_true", help="names of special tokens in the text stand for these tokens")
    parser.add_argument("-o", "--output", choices=["text", "json"], default="text", help="what stdout gets (default text)")


def run(arguments: argparse.Namespace) -> int:
    text, window = read_text(arguments.file), arguments.ctx_size or WINDOW
    if window < 4:
        raise UserError(f"-c {window}: a window needs at least 4 tokens")

    def measure(llm: LLM) -> int:
        tokens = llm.tokenizer.encode(text, special=arguments.parse_special)
        show(perplexity(llm, tokens, window), arguments.output)
        return 0

    return run_session(job_of(arguments, context=window), arguments.ranks, measure)


def show(result: dict[str, float], output: str) -> None:
    if output == "json":  # which has no word for what is no number
        print(json.dumps({key: value if isfinite(value) else None for key, value in result.items()}))
    else:
        print(
            f"perplexity {result['perplexity']:.4f} +/- {result['error']:.4f}, mean loss {result['loss']:.4f}, "
            f"{result['tokens']} tokens in {result['windows']} windows of {result['window']}"
        )


def perplexity(llm: LLM, tokens: list[int], window: int) -> dict[str, float]:
    """Of the second half of each window of `window` tokens. loss: the mean over these, in nats; perplexity: its exponential, inf
    where that is no float64 any more; error: the standard error of the perplexity."""
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
    return summary(mean, sqrt(variance / count)) | {"tokens": count, "windows": windows, "window": window}


def summary(mean: float, error: float) -> dict[str, float]:
    """mean: loss in nats, and its standard error."""
    try:
        value = exp(mean)
    except OverflowError:
        return {"perplexity": inf, "error": inf, "loss": mean}
    return {"perplexity": value, "error": value * error, "loss": mean}
