"""`numatp generate`: the text of one answer on stdout, what happened on stderr."""

import argparse
import json
import sys
from collections.abc import Iterable

from numatp.cli.audit import add_option, audited
from numatp.cli.options import (
    add_model,
    add_sampling,
    add_spec,
    add_template_arguments,
    job_of,
    note,
    params_of,
    read_text,
    unescape,
)
from numatp.cli.session import run_session
from numatp.engine.sampling import SamplingParams
from numatp.errors import UserError
from numatp.llm import LLM
from numatp.text.parts.piece import Piece


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_sampling(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-p", "--prompt", help="text to continue")
    source.add_argument("-f", "--file", metavar="FILE", help="file of the text to continue; - is standard input")
    parser.add_argument("--chat", action="store_true", help="the text is a message: answer it by the model's chat template")
    add_template_arguments(parser)
    add_spec(parser)
    add_option(parser)


def run(arguments: argparse.Namespace) -> int:
    job = job_of(arguments, allow_remote=arguments.allow_remote or arguments.audit, spec=arguments.spec)
    prompt = unescape(arguments, arguments.prompt) if arguments.file is None else read_text(arguments.file)
    if not prompt:
        raise UserError("the prompt is empty: give some text with -p or -f")

    def answer(llm: LLM) -> int:
        params = params_of(arguments, llm.default_params)

        def work() -> str:
            return show_answer(llm, [{"role": "user", "content": prompt}] if arguments.chat else prompt, params, arguments.template)

        if arguments.audit:
            return audited(llm.audit, arguments.min_local, work)[2]
        work()
        return 0

    return run_session(job, arguments.ranks, answer)


def show_answer(llm: LLM, prompt, params, template_kwargs) -> str:
    """Streams an answer to stdout, and what the model says to itself before it and its speed to stderr; returns the answer."""
    answer = llm.submit(prompt, params, template_kwargs=template_kwargs)
    text = show_pieces(answer.pieces())
    end = answer.finish
    assert end
    rate = end.decoded_tokens / end.decode_seconds if end.decoded_tokens else 0.0
    read = llm.stats.weight_bytes_per_token * rate / 1e9
    if end.reason == "length" and end.prompt_tokens + len(answer.token_ids) >= llm.place.context:
        note(f"the context of {llm.place.context} tokens is full: -c makes it larger")
    note(
        f"load {llm.stats.load_seconds:.2f} s, prompt {end.prompt_tokens} tokens at "
        f"{end.prompt_tokens / end.prompt_seconds:.1f} tok/s, decode {end.decoded_tokens} tokens at {rate:.1f} tok/s, "
        f"reading {read:.1f} GB/s of weights{f', {sampling(params)}' if params.temperature else ''}"
    )
    return text


def show_pieces(pieces: Iterable[Piece]) -> str:
    """Streams what is said; returns the answer, in which a call of a tool is a line of JSON. At a terminal reasoning is dim."""
    dim, normal = ("\x1b[2m", "\x1b[0m") if sys.stderr.isatty() else ("", "")
    text, reasons = "", False
    try:
        for piece in pieces:
            if reasons != (piece.part == "reasoning"):
                reasons = not reasons
                if reasons:
                    note("the model's reasoning, which is no part of its answer:")
                print(dim if reasons else normal, end="" if reasons else "\n", file=sys.stderr, flush=True)
            said = piece.text + "".join(f'{{"name": {json.dumps(name)}, "arguments": {said}}}\n' for name, said in piece.calls)
            print(said, end="", file=sys.stderr if reasons else sys.stdout, flush=True)
            text += "" if reasons else said
    finally:
        if reasons:
            print(normal, file=sys.stderr, flush=True)
    print(flush=True)
    return text


def sampling(params: SamplingParams) -> str:
    """What differs from the usual, because the user or the model's authors said so, and the seed."""
    usual, names = (
        SamplingParams(),
        ("temperature", "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"),
    )
    said = [f"{name} {getattr(params, name):.4g}" for name in names if getattr(params, name) != getattr(usual, name)]
    return ", ".join([*said, f"seed {params.seed}"])
