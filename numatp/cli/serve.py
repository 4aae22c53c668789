"""`numatp serve`: a model behind HTTP. Options and the variables that may stand for them are called as llama-server's."""

import argparse
import contextlib
import importlib.util
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from numatp.cli.options import add_model, add_prefix_cache, add_spec, job_of, natural, number, positive, show_log
from numatp.cli.progress import Progress
from numatp.cli.session import ended
from numatp.engine.job import Job
from numatp.errors import UserError
from numatp.llm import LLM

if TYPE_CHECKING:
    from numatp.server.settings import Settings

# What an option is called in the environment; the option wins.
ENVIRONMENT = {
    "model": "LLAMA_ARG_MODEL", "ctx_size": "LLAMA_ARG_CTX_SIZE", "threads": "LLAMA_ARG_THREADS",
    "parallel": "LLAMA_ARG_N_PARALLEL",
    "batch_size": "LLAMA_ARG_BATCH", "ubatch_size": "LLAMA_ARG_UBATCH", "cache_type_k": "LLAMA_ARG_CACHE_TYPE_K",
    "cache_type_v": "LLAMA_ARG_CACHE_TYPE_V", "host": "LLAMA_ARG_HOST", "port": "LLAMA_ARG_PORT", "api_key": "LLAMA_API_KEY",
    "api_key_file": "LLAMA_ARG_API_KEY_FILE", "alias": "LLAMA_ARG_ALIAS", "timeout": "LLAMA_ARG_TIMEOUT",
}  # fmt: skip


def seconds(text: str) -> float:
    found = number(text)
    if found < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is below 0 seconds")
    return found


def port(text: str) -> int:
    if natural(text) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is no port: 0 to 65535")
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    add = parser.add_argument
    add("-np", "--parallel", type=positive, default=16, metavar="N", help="requests that run at the same time (default 16)")
    add(
        "--host", default="127.0.0.1",
        help="address to listen at, or the path of a unix socket, which ends in .sock (default 127.0.0.1: this machine alone)",
    )  # fmt: skip
    add("--port", type=port, default=8080, help="0: one that is free (default 8080)")
    add(
        "--api-key",
        metavar="KEY",
        help="what clients must send, several after commas; seen in the list of processes: rather a file",
    )
    add("--api-key-file", metavar="FILE", help="a file of keys, one a line")
    add("--no-auth", action="store_true", help="ask for no key, although --host lets others in")
    add("--allowed-host", action="append", default=[], metavar="NAME", help="a name by which the server may be called too")
    add("-a", "--alias", metavar="NAME", help="what the model is called (default: its file's name)")
    add("-to", "--timeout", type=seconds, metavar="S", help="seconds that one request may take (default: any)")
    add(
        "--max-queue",
        type=natural,
        default=128,
        metavar="N",
        help="requests that wait at most, others get status 429 (default 128)",
    )
    add(
        "--max-queue-tokens", type=natural, default=0, metavar="N",
        help="tokens of prompts that wait at most, likewise; one prompt may always wait (default: any)",
    )  # fmt: skip
    add(
        "--sse-ping-interval",
        type=seconds,
        default=30.0,
        metavar="S",
        help="signs of life in a silent stream, 0: none (default 30)",
    )
    add(
        "--shutdown-timeout", type=seconds, default=600.0, metavar="S",
        help="seconds that running requests have after SIGTERM (default 600)",
    )  # fmt: skip
    add("--hang-timeout", type=seconds, default=300.0, metavar="S", help="/health fails when a Step takes longer (default 300)")
    add_prefix_cache(parser)
    add("--prompt-cache-dir", metavar="DIR", help="where prompts are kept for the next start of the same model (default: nowhere)")
    add(
        "--prompt-cache-mib", type=positive, default=Job.prompt_cache_mib, metavar="N",
        help="MiB that they may take there; what was not used for the longest time goes first (default 8192)",
    )  # fmt: skip
    add_spec(parser)
    add(
        "--step-ms", type=positive, default=Job.step_ms, metavar="MS",
        help="milliseconds between two tokens of a stream, on average, while prompts come in beside it (default 250)",
    )  # fmt: skip
    _take_environment(parser)


def _take_environment(parser: argparse.ArgumentParser) -> None:
    """As defaults, and into the help. UserError for a value that the option would not take."""
    for action in parser._actions:
        name = ENVIRONMENT.get(action.dest)
        if not name:
            continue
        action.help = f"{action.help} [{name}]"
        if text := os.environ.get(name):
            try:
                value = parser._get_value(action, text)
                parser._check_value(action, value)
            except argparse.ArgumentError as error:
                raise UserError(f"{name}: {error.message}") from None
            action.default, action.required = value, False


def run(arguments: argparse.Namespace) -> int:
    settings = settings_of(arguments)
    if arguments.prompt_cache_dir and not arguments.prefix_cache:
        raise UserError("--prompt-cache-dir keeps what the prefix cache knows: leave out --no-prefix-cache")
    job = job_of(
        arguments, max_sequences=arguments.parallel, prefix_cache=arguments.prefix_cache, step_ms=arguments.step_ms,
        spec=arguments.spec, prompt_cache_dir=arguments.prompt_cache_dir, prompt_cache_mib=arguments.prompt_cache_mib,
    )  # fmt: skip
    show_log()
    with contextlib.ExitStack() as until_loaded:
        progress = until_loaded.enter_context(Progress("load"))
        llm = LLM(job, arguments.ranks or "auto", others="serve", wait=False, progress=progress.update)
        if llm.rank:
            for number in (signal.SIGINT, signal.SIGTERM):  # of a launcher: rank 0 ends its requests first, and then this one
                signal.signal(number, signal.SIG_IGN)
            return llm.serve()
        with ended(llm.abort):
            from numatp.server.serve import serve  # a fifth of a second, in which the engine's thread begins to load

            return serve(llm, settings, arguments.parallel, until_loaded.close)


def settings_of(arguments: argparse.Namespace) -> "Settings":
    for library in ("starlette", "uvicorn", "msgspec", "prometheus_client"):
        if importlib.util.find_spec(library) is None:
            raise UserError(f"serve needs {library}: pip install 'numatp[server]'")
    from numatp.server.settings import Settings

    return Settings(
        host=arguments.host, port=arguments.port, keys=keys_of(arguments), no_auth=arguments.no_auth, alias=arguments.alias,
        allowed_hosts=tuple(arguments.allowed_host), timeout=arguments.timeout or None, max_queue=arguments.max_queue,
        max_queue_tokens=arguments.max_queue_tokens,
        ping=arguments.sse_ping_interval, shutdown_timeout=arguments.shutdown_timeout, hang=arguments.hang_timeout,
    )  # fmt: skip


def keys_of(arguments: argparse.Namespace) -> tuple[str, ...]:
    keys = arguments.api_key.split(",") if arguments.api_key else []
    if arguments.api_key_file:
        try:
            keys += Path(arguments.api_key_file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
            raise UserError(f"--api-key-file {arguments.api_key_file}: {reason}") from None
        if not any(key.strip() for key in keys):
            raise UserError(f"--api-key-file {arguments.api_key_file}: it holds no key")
    return tuple(key.strip() for key in keys if key.strip())
