"""Options that several commands share, with llama.cpp's names."""

import argparse
import json
import logging
import random
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from math import isfinite, nan
from pathlib import Path
from typing import Any

from numatp.engine.job import SPECS, WIRES, Job
from numatp.engine.sampling import SamplingParams
from numatp.engine.start import find_model
from numatp.errors import UserError
from numatp.kernels.layout import CACHE_TYPES
from numatp.text.grammar import Grammar


def positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)


def natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number")
    return int(text)


def token_count(text: str) -> int | None:
    """llama.cpp's -1, no limit, and -2, until the context is full, are the same where nothing is shifted out of it."""
    return None if text in ("-1", "-2") else natural(text)


def number(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = nan
    if not isfinite(found):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number")
    return found


def temperature(text: str) -> float:
    return max(number(text), 0.0)


def within(name: str) -> Callable[[str], float]:
    """A number that SamplingParams take by this name, refused here before anything is loaded."""

    def checked(text: str) -> float:
        return float(getattr(SamplingParams(**{name: number(text)}), name))  # type: ignore[arg-type]

    return checked


def logit_bias(text: str) -> tuple[int, float]:
    """Like 15043+1 or 15043-1.5: a token's id and what is added to its logit."""
    found = re.fullmatch(r"(\d+)([+-][^+-]+)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"'{text}' is not a token id and a signed number; write it like 15043-1.5")
    token, bias = int(found[1]), number(found[2])
    return token, SamplingParams(logit_bias={token: bias}).logit_bias[token]


def grammar(text: str) -> Grammar:
    return Grammar.gbnf(text)


def json_schema(text: str) -> Grammar:
    """Any JSON that is an object, for the empty one, as llama.cpp has it."""
    return Grammar.json_object() if text.split() == ["{}"] else Grammar.json_schema(text)


def of_file(kind: Callable[[str], Grammar]) -> Callable[[str], Grammar]:
    return lambda path: kind(read_text(path))


def read_text(path: str) -> str:
    """A file's text without its last new line, and with all else as it is, as llama.cpp takes it. UserError for one that cannot be
    read or is no UTF-8."""
    try:
        text = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return text.decode().removesuffix("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise UserError(f"cannot read {path}: {reason}") from error


def top_count(text: str) -> int:
    return max(whole(text), 0)


def whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number") from None


def seed(text: str) -> int | None:
    """As llama.cpp keeps it, in 32 bits, where -1 is a random one; larger ones as they are."""
    found = whole(text) if whole(text) >= 0 else whole(text) % (1 << 32)
    return None if found == RANDOM_SEED else found


RANDOM_SEED = (1 << 32) - 1


DIFFERENT = "-ctk {} -ctv {}: keys and values have one type; give the same for both"


def count_or_auto(text: str) -> int | None:
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
    parser.add_argument("--ranks", type=count_or_auto, metavar="N|auto", help="ranks without mpirun (default: the fastest)")
    parser.add_argument("--nodes", metavar="LIST", help="NUMA nodes to use, e.g. 0,1")
    parser.add_argument("--cpus", metavar="LISTS", help="cpus of each rank by hand, e.g. '0-31|32-63'")
    add_tensor_split(parser)
    parser.add_argument("--bind", choices=["auto", "none"], default="auto", help="none: keep the cpus that the launcher gave")
    parser.add_argument(
        "--quantize", choices=["q8", "q4", "none"],
        help="matrices of floats on load (default: q8 for a folder, none for a GGUF file)",
    )  # fmt: skip
    parser.add_argument("--allow-remote", action="store_true", help="run even if weights lie on another node")
    text = "how sums go between hosts: bf16 is half as long, and rounds them to 8 bits (default f32)"
    parser.add_argument("--wire", choices=WIRES, default=WIRES[0], help=text)
    text = "hosts hold layers instead of slices of all: for slow links, and models that do not fit"
    parser.add_argument("--pipeline", action="store_true", help=text)
    parser.add_argument("--same-bits", action="store_true", help="the same logits to the last bit for 1, 2, 4 and 8 ranks")
    parser.add_argument("--check-ranks", action="store_true", help="compare after every Step what all ranks must hold alike (slow)")


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-m", "--model", required=True, help="name of a pulled model, or path of a GGUF file or folder")
    parser.add_argument("-c", "--ctx-size", type=positive, metavar="N", help="tokens that the cache holds")
    parser.add_argument(
        "-t", "--threads", type=count_or_auto, metavar="N|auto",
        help="threads per rank (default: one per core, or fewer where barriers would take what more gain)",
    )  # fmt: skip
    for letter, what in (("k", "keys"), ("v", "values")):
        parser.add_argument(
            f"-ct{letter}", f"--cache-type-{letter}", choices=CACHE_TYPES, default="f16",
            help=f"how the cache keeps {what}; one type for both (default f16)",
        )  # fmt: skip
    parser.add_argument("-b", "--batch-size", type=positive, default=2048, metavar="N", help="an upper limit of -ub (default 2048)")
    parser.add_argument("-ub", "--ubatch-size", type=positive, default=512, metavar="N", help="tokens of one Step (default 512)")
    add_loading(parser)


def add_spec(parser: argparse.ArgumentParser) -> None:
    text = (
        "guess tokens from the text so far and check several at once, for the same text "
        "(default auto: where the last 3 tokens came before, in mixtures of experts the last 8; ngram: 3)"
    )
    parser.add_argument("--spec", choices=SPECS, default="auto", help=text)


def add_prefix_cache(parser: argparse.ArgumentParser) -> None:
    text = "compute every prompt whole, although the cache may hold its beginning"
    parser.add_argument("--no-prefix-cache", dest="prefix_cache", action="store_false", help=text)


def job_of(arguments: argparse.Namespace, **changes: int | str | None) -> Job:
    if arguments.cache_type_k != arguments.cache_type_v:
        raise UserError(DIFFERENT.format(arguments.cache_type_k, arguments.cache_type_v))
    described = {
        "model": find_model(arguments.model), "context": arguments.ctx_size, "threads": arguments.threads,
        "nodes": arguments.nodes, "cpus": arguments.cpus, "keep_binding": arguments.bind == "none",
        "tensor_split": arguments.tensor_split, "max_rows": min(arguments.batch_size, arguments.ubatch_size),
        "allow_remote": arguments.allow_remote, "check_ranks": arguments.check_ranks, "quantize": arguments.quantize,
        "cache_type": arguments.cache_type_k, "wire": arguments.wire, "pipeline": arguments.pipeline,
        "same_bits": arguments.same_bits,
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
        help="tokens to generate (default 128; -1 or -2: until the context is full; 0: none)",
    )
    add("--temp", type=temperature, metavar="T", help=f"0 or less: always the most probable token ({own % p.temperature})")
    add("--top-k", type=top_count, metavar="K", help=f"among the K most probable, 0 or less: all ({own % p.top_k})")
    add("--top-p", type=within("top_p"), metavar="P", help=f"among those with P of the probability ({own % p.top_p})")
    add("--min-p", type=within("min_p"), metavar="P", help=f"among those P times as probable as the best ({own % p.min_p})")
    add(
        "--repeat-penalty", type=within("repeat_penalty"), metavar="X",
        help=f"of the last 64 tokens, 1: none ({own % p.repeat_penalty})",
    )  # fmt: skip
    for kind, what in (("presence", "once"), ("frequency", "as often as it came")):
        name = f"{kind}_penalty"
        add(
            f"--{kind}-penalty", type=within(name), metavar="X",
            help=f"taken from the logit of each generated token, {what}, -2 to 2 ({own % getattr(p, name)})",
        )  # fmt: skip
    add(
        "-l", "--logit-bias", type=logit_bias, action="append", default=[], metavar="TOKEN+BIAS",
        help="add -100 to 100 to the logit of a token, e.g. 15043+1 or 15043-1.5; may be given several times",
    )  # fmt: skip
    form = parser.add_mutually_exclusive_group()
    for names, read, metavar, what in (
        (("--grammar",), grammar, "TEXT", "the answer follows a grammar, in llama.cpp's GBNF"),
        (("--grammar-file",), of_file(grammar), "FILE", "the same, from a file"),
        (("-j", "--json-schema"), json_schema, "TEXT", "the answer is JSON that fits a schema; {} for any object"),
        (("-jf", "--json-schema-file"), of_file(json_schema), "FILE", "the same, from a file"),
    ):
        form.add_argument(*names, dest="grammar", type=read, metavar=metavar, help=what)
    add("-s", "--seed", type=seed, metavar="N", help="the same seed gives the same text (default, or -1: a random one)")
    add("--stop", action="append", default=[], metavar="TEXT", help="end before TEXT; may be given several times")
    add("--ignore-eos", action="store_true", help="go on after the model's end of text")
    add(
        "-e", "--escape", action=argparse.BooleanOptionalAction, default=True,
        help=r"\n, \t, \\, \x41 and the like in -p, --system and --stop stand for one character",
    )  # fmt: skip


ESCAPE = re.compile(rb"\\(?:([nrt'\"\\])|x([0-9A-Fa-f]{2}))")
LETTERS = {"n": "\n", "r": "\r", "t": "\t"}


def unescape(arguments: argparse.Namespace, text: str) -> str:
    """What llama.cpp makes of an option's text; other backslashes stay."""
    if not arguments.escape:
        return text
    return ESCAPE.sub(_escaped, text.encode(errors="surrogateescape")).decode(errors="surrogateescape")


def _escaped(match: re.Match[bytes]) -> bytes:
    letter, byte = match.groups()
    return bytes([int(byte, 16)]) if byte else LETTERS.get(letter.decode(), letter.decode()).encode()


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
    given = {
        "temperature": arguments.temp, "top_k": arguments.top_k, "top_p": arguments.top_p, "min_p": arguments.min_p,
        "repeat_penalty": arguments.repeat_penalty, "presence_penalty": arguments.presence_penalty,
        "frequency_penalty": arguments.frequency_penalty,
    }  # fmt: skip
    return replace(
        usual, **{name: value for name, value in given.items() if value is not None},
        seed=arguments.seed if arguments.seed is not None else random.SystemRandom().getrandbits(32),
        max_tokens=arguments.predict, stop=[unescape(arguments, text) for text in arguments.stop], ignore_eos=arguments.ignore_eos,
        logit_bias=dict(arguments.logit_bias), grammar=arguments.grammar,
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
