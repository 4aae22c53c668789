"""The `numatp` command: one line for an error on rank 0, silence on the others, and the same exit status on all."""

import argparse
import importlib
import io
import os
import sys
import time

from numatp import __version__
from numatp.cli import signals
from numatp.errors import NumatpError, RankError, UserError

COMMANDS = {
    "generate": "generate text from a prompt",
    "chat": "talk with a model",
    "serve": "a model behind HTTP: OpenAI's, Anthropic's and llama-server's interfaces",
    "perplexity": "how well a model predicts a text",
    "audit": "where the pages of a model are, by the kernel's own count",
    "bandwidth": "what the memory of this machine gives, node by node",
    "bench": "how fast a model runs, as llama-bench measures it",
    "doctor": "what keeps this machine from its full speed, and what mends it",
    "plan": "what a model would be on this machine or another, before anything is loaded",
    "pull": "download a model into the cache folder",
    "quantize": "write a model in a smaller format",
    "inspect": "what is in a model, and what would compute it",
}
ALONE = {"pull", "quantize", "inspect"}  # work of one process: of those that a launcher started the first does it
FAILURE, INTERRUPTED = 1, 130
PATIENCE = 3  # seconds


class Parser(argparse.ArgumentParser):
    """Usage errors in one line, as all errors."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise UserError(f"{message} (see '{self.prog} --help')")


def main() -> None:
    signals.end_at_once()  # before the slow imports
    open_streams()
    # A pool of BLAS threads would outlive its use and disturb the pinned ones; numatp needs none.
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    parser = Parser(prog="numatp", description="LLM inference on all NUMA nodes of one server")
    parser.add_argument("--version", action="version", version=f"numatp {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    status = FAILURE
    try:
        for name, text in COMMANDS.items():
            if name in sys.argv[1:2] or not set(COMMANDS) & set(sys.argv[1:2]):
                command = commands.add_parser(name, help=text, description=text)
                importlib.import_module(f"numatp.cli.{name}").add_arguments(command)
        arguments = parser.parse_args()
        if not has_work(arguments.command):
            sys.exit(0)
        status = importlib.import_module(f"numatp.cli.{arguments.command}").run(arguments)
        try:
            sys.stdout.flush()
        except OSError:
            status = FAILURE
            raise
    except NumatpError as error:
        status = error.exit_status
        if isinstance(error, RankError) and error.witness:
            print(f"numatp: {error}", file=sys.stderr, flush=True)
            sys.exit(status)
        say(f"numatp: {error}")
    except KeyboardInterrupt:
        status = INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone
        pass
    except (MemoryError, OSError, RuntimeError) as error:
        from numatp.machine.limits import describe

        line = describe(error)
        if not line:
            raise
        say(f"numatp: {line}")
    try:
        sys.stdout.flush()
    except OSError:  # what nobody takes was said above, and Python would try it again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if status and not speaks():
        # A launcher ends all ranks as soon as one fails: rank 0, which says why, has to be the first.
        time.sleep(PATIENCE)
    sys.exit(status)


def open_streams() -> None:
    """A standard stream that is closed would give its number to the next file that is opened, and break what writes to it."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:
                os.dup2(null, number)
                os.close(null)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8"))
    assert isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stdin, io.TextIOWrapper)
    sys.stdout.reconfigure(errors="replace")  # a terminal may know fewer letters than a model
    sys.stdin.reconfigure(encoding="utf-8", errors="strict")


def has_work(command: str) -> bool:
    """Whether this process is one that the command needs."""
    return command not in ALONE or is_first()


def is_first() -> bool:
    """Whether this process is rank 0 of those that a launcher started, or there is no launcher. NumatpError if nobody can tell."""
    from numatp.machine.launch import read_launch

    launched = read_launch()
    return launched is None or launched.rank == 0


def speaks() -> bool:
    """Whether this process is the one of its job that talks to the user."""
    try:
        return is_first()
    except NumatpError:
        return True


def say(line: str) -> None:
    """A line on stderr, from rank 0 only: all ranks have the same to say."""
    if speaks():
        print(line, file=sys.stderr, flush=True)
