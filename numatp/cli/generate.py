"""`numatp generate`: the text of one answer on stdout, what happened on stderr."""

import argparse
import os
import sys
from typing import TYPE_CHECKING

from numatp.cli.progress import Progress
from numatp.engine.job import Job
from numatp.errors import NumatpError, UserError
from numatp.files.models import resolve_model

if TYPE_CHECKING:
    from numatp.engine.start import Start


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", required=True, help="name of a pulled model, or path of a GGUF file")
    parser.add_argument("-p", "--prompt", required=True, help="text to continue")
    parser.add_argument("-n", "--predict", type=positive, default=128, metavar="N", help="tokens to generate (default 128)")
    parser.add_argument("-c", "--ctx-size", type=positive, metavar="N", help="tokens that prompt and answer may have together")
    parser.add_argument("-t", "--threads", type=positive, metavar="N", help="threads per rank (default: one per core)")
    parser.add_argument("--temp", type=greedy_only, default=0.0, metavar="T", help="temperature; only 0 (greedy) for now")
    parser.add_argument("--ranks", type=rank_count, metavar="N|auto", help="ranks without mpirun (default: one per NUMA node)")
    parser.add_argument("--nodes", metavar="LIST", help="NUMA nodes to use, e.g. 0,1")
    parser.add_argument("--cpus", metavar="LISTS", help="cpus of each rank by hand, e.g. '0-31|32-63'")
    parser.add_argument("--bind", choices=["auto", "none"], default="auto", help="none: keep the cpus that the launcher gave")
    parser.add_argument("--allow-remote", action="store_true", help="run even if weights lie on another node")


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def rank_count(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def greedy_only(text: str) -> float:
    try:
        if float(text) == 0:
            return 0.0
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"'{text}': only 0 (greedy) is supported for now")


def run(arguments: argparse.Namespace) -> int:
    job = Job(
        model=os.fspath(resolve_model(arguments.model)), context=arguments.ctx_size, threads=arguments.threads,
        nodes=arguments.nodes, cpus=arguments.cpus, keep_binding=arguments.bind == "none", allow_remote=arguments.allow_remote,
    )  # fmt: skip
    if not arguments.prompt:
        raise UserError("the prompt is empty: give some text with -p")
    from numatp.engine.start import start

    started = start(job, arguments.ranks)
    if started.comm.rank > 0:
        from numatp.engine.engine import serve

        return serve(job, started)
    try:
        answer(arguments, job, started)
    except BaseException as error:
        started.comm.abort(str(error) or type(error).__name__)
        raise
    finally:
        if started.workers:
            started.workers.close()
    return 0


def answer(arguments: argparse.Namespace, job: Job, started: "Start") -> None:
    """Rank 0: this thread prints, the engine has its own."""
    from concurrent.futures import ThreadPoolExecutor
    from queue import SimpleQueue
    from threading import Event

    from numatp.engine.engine import Engine
    from numatp.engine.generate import generate
    from numatp.files.gguf import read_gguf
    from numatp.text.tokenizer import StreamDecoder, Tokenizer

    note(started.line)
    for text in started.notes:
        note(text)
    cancel, tokens = Event(), SimpleQueue[int | None]()
    loading = None  # until there is a thread for it
    with ThreadPoolExecutor(1, "numatp-engine") as thread:
        try:
            with Progress("load") as progress:
                loading = thread.submit(Engine, job, started, progress.update)
                try:
                    tokenizer = Tokenizer.from_gguf(read_gguf(job.model))
                finally:
                    engine = loading.result()
            note(engine.pages_line)
            prompt = tokenizer.encode(arguments.prompt)
            working = thread.submit(
                generate, engine, prompt, arguments.predict, tokenizer.eos_ids, tokens.put, cancel
            )  # fmt: skip
            working.add_done_callback(lambda _: tokens.put(None))
            decoder = StreamDecoder(tokenizer)
            while (token := tokens.get()) is not None:
                sys.stdout.write(decoder.push(token))
                sys.stdout.flush()
            timing = working.result()
            print(decoder.finish())
        except BaseException as error:
            cancel.set()
            if not isinstance(error, NumatpError):
                started.comm.abort(type(error).__name__)
            raise
        finally:
            if loading and loading.done() and not loading.exception():
                thread.submit(loading.result().close).result()
    decode_rate = timing.decoded_tokens / timing.decode_seconds if timing.decoded_tokens else 0.0
    read = engine.bytes_per_token * decode_rate / 1e9
    note(
        f"load {engine.load_seconds:.2f} s, prompt {timing.prompt_tokens} tokens at "
        f"{timing.prompt_tokens / timing.prompt_seconds:.1f} tok/s, decode {timing.decoded_tokens} tokens at "
        f"{decode_rate:.1f} tok/s, reading {read:.1f} GB/s of weights"
    )


def note(text: str) -> None:
    print(f"numatp: {text}", file=sys.stderr, flush=True)
