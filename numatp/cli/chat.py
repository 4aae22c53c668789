"""`numatp chat`: a conversation at the terminal, or one message per line of standard input."""

import argparse
import sys

from numatp.cli import signals
from numatp.cli.generate import show_answer
from numatp.cli.lines import Lines
from numatp.cli.options import (
    add_model,
    add_prefix_cache,
    add_sampling,
    add_spec,
    add_template_arguments,
    job_of,
    note,
    params_of,
    unescape,
)
from numatp.cli.session import run_session
from numatp.errors import RankError, UserError
from numatp.llm import LLM, Message

HELP = "Ctrl-C ends an answer, Ctrl-D the conversation, /clear forgets it"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add_sampling(parser)
    add_template_arguments(parser)
    add_spec(parser)
    add_prefix_cache(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told before the conversation")


def run(arguments: argparse.Namespace) -> int:
    job = job_of(arguments, prefix_cache=arguments.prefix_cache, spec=arguments.spec)
    start: list[Message] = [{"role": "system", "content": unescape(arguments, arguments.system)}] if arguments.system else []

    def converse(llm: LLM) -> int:
        params = params_of(arguments, llm.default_params)
        if sys.stdin.isatty():
            note(HELP)
            signals.interrupt()
        messages, lines = list(start), Lines(llm)
        while (text := lines.read()) is not None:
            if text == "/clear":
                messages = list(start)
                continue
            if not text.strip():
                continue
            messages.append({"role": "user", "content": text})
            try:
                messages.append({"role": "assistant", "content": show_answer(llm, messages, params, arguments.template)})
            except KeyboardInterrupt:
                print(flush=True)
                messages.pop()
            except RankError:
                raise
            except UserError as error:  # the conversation has outgrown the context
                messages.pop()
                if not sys.stdin.isatty():
                    raise
                note(f"{error}; /clear begins again")
        return 0

    return run_session(job, arguments.ranks, converse)
