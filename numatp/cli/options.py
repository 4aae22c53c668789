"""Options that several commands share, with llama.cpp's names."""

import argparse
import json
import logging
import os
import random
import sys
from dataclasses import replace
from typing import Any

from numatp.engine.job import Job
from numatp.engine.sampling import SamplingParams
from numatp.errors import UserError
from numatp.files.models import resolve_model
from numatp.kernels.layout import CACHE_TYPES


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def natural(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)


def token_count(text: str) -> int | None:
    return None if text == "-1" else positive(text)


DIFFERENT = "-ctk {} -ctv {}: keys and values have one type; give the same for both"


def rank_count(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def shares(text: str) -> list[float] | str:
    """Like "3,1"."""
    if text == "auto":
        return text
    try:
        return [float(share) for share in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of shares; write it like 3,1") from None


def add_tensor_split(parser: argparse.ArgumentParser) -> None:
    text = "share of the model per rank, e.g. 3,1, or auto: as the bandwidth that 'numatp bandwidth' measured (default: even)"
    parser.add_argument("-ts", "--tensor-split", type=shares, metavar="SHARES", help=text)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Where and how a model is loaded."""
    parser.add_argument("--ranks", type=rank_count, metavar="N|auto", help="ranks without mpirun (default: the fastest)")
    parser.add_argument("--nodes", metavar="LIST", help="NUMA nodes to use, e.g. 0,1")
    parser.add_argument("--cpus", metavar="LISTS", help="cpus of each rank by hand, e.g. '0-31|32-63'")
    add_tensor_split(parser)
    parser.add_argument("--bind", choices=["auto", "none"], default="auto", help="none: keep the cpus that the launcher gave")
    parser.add_argument(
        "--quantize", choices=["q8", "q4", "none"],
        help="matrices of floats on load (default: q8 for a folder, none for a GGUF file)",
    )  # fmt: skip
    parser.add_argument("--allow-remote", action="store_true", help="run even if weights lie on another node")
    parser.add_argument("--check-ranks", action="store_true", help="compare after every Step what all ranks must hold alike (slow)")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", required=True, help="name of a pulled model, or path of a GGUF file or folder")
    parser.add_argument("-c", "--ctx-size", type=positive, metavar="N", help="tokens that the cache holds")
    parser.add_argument("-t", "--threads", type=positive, metavar="N", help="threads per rank (default: one per core)")
    for letter, what in (("k", "keys"), ("v", "values")):
        parser.add_argument(
            f"-ct{letter}", f"--cache-type-{letter}", choices=CACHE_TYPES, default="f16",
            help=f"how the cache keeps {what}; one type for both (default f16)",
        )  # fmt: skip
    parser.add_argument("-b", "--batch-size", type=positive, default=2048, metavar="N", help="an upper limit of -ub (default 2048)")
    parser.add_argument("-ub", "--ubatch-size", type=positive, default=512, metavar="N", help="tokens of one Step (default 512)")
    add_loading(parser)


def job_of(arguments: argparse.Namespace, **changes: int) -> Job:
    if arguments.cache_type_k != arguments.cache_type_v:
        raise UserError(DIFFERENT.format(arguments.cache_type_k, arguments.cache_type_v))
    described = {
        "model": os.fspath(resolve_model(arguments.model)), "context": arguments.ctx_size, "threads": arguments.threads,
        "nodes": arguments.nodes, "cpus": arguments.cpus, "keep_binding": arguments.bind == "none",
        "tensor_split": arguments.tensor_split, "max_rows": min(arguments.batch_size, arguments.ubatch_size),
        "allow_remote": arguments.allow_remote, "check_ranks": arguments.check_ranks, "quantize": arguments.quantize,
        "cache_type": arguments.cache_type_k,
    }  # fmt: skip
    return Job(**(described | changes))


def add_sampling(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    p, own = SamplingParams(), "default %s, or as the model recommends"
    add(
        "-n",
        "--predict",
        type=token_count,
        default=p.max_tokens,
        metavar="N",
        help="tokens to generate (default 128; -1: no limit)",
    )
    add("--temp", type=float, metavar="T", help=f"0: always the most probable token ({own % p.temperature})")
    add("--top-k", type=natural, metavar="K", help=f"among the K most probable, 0: all ({own % p.top_k})")
    add("--top-p", type=float, metavar="P", help=f"among those with P of the probability ({own % p.top_p})")
    add("--min-p", type=float, metavar="P", help=f"among those P times as probable as the best ({own % p.min_p})")
    add("--repeat-penalty", type=float, metavar="X", help=f"of the last 64 tokens, 1: none ({own % p.repeat_penalty})")
    add("-s", "--seed", type=int, metavar="N", help="the same seed gives the same text (default, or -1: a random one)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be given several times")
    add("--ignore-eos", action="store_true", help="go on after the model's end of text")


def add_template_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--chat-template-kwargs", dest="template", type=json_object, default={}, metavar="JSON",
        help="""what else the chat template reads, e.g. '{"enable_thinking": false}'""",
    )  # fmt: skip


def json_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise argparse.ArgumentTypeError(f"'{text}' is not a JSON object like {{\"enable_thinking\": false}}")
    return found


def params_of(arguments: argparse.Namespace, usual: SamplingParams) -> SamplingParams:
    """usual: what holds where no option was given."""
    chosen = arguments.seed is not None and arguments.seed >= 0
    given = {
        "temperature": arguments.temp, "top_k": arguments.top_k, "top_p": arguments.top_p, "min_p": arguments.min_p,
        "repeat_penalty": arguments.repeat_penalty,
    }  # fmt: skip
    return replace(
        usual, **{name: value for name, value in given.items() if value is not None},
        seed=arguments.seed if chosen else random.SystemRandom().getrandbits(32),
        max_tokens=arguments.predict, stop=arguments.stop, ignore_eos=arguments.ignore_eos,
    )  # fmt: skip


def note(text: str) -> None:
    print(f"numatp: {text}", file=sys.stderr, flush=True)


def show_log() -> None:
    """What the library logs goes to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("numatp: %(message)s"))
    log = logging.getLogger("numatp")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
