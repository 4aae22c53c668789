"""How a command ends on SIGINT, SIGTERM and SIGHUP: with exit status 128 + number, and never with a traceback."""

import os
import signal
import sys
from types import FrameType

from numatp.machine.uninterrupted import ENDING


def end_at_once() -> None:
    """For a command that has nothing to put away: the window has no name, and the other ranks notice that this one has gone.

    An exception instead could come up anywhere in the imports, callbacks and threads of a start, and be lost there.
    """
    _handle(_end)


def interrupt() -> None:
    """For a conversation: Ctrl-C ends an answer (KeyboardInterrupt), not the command."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def unwind() -> None:
    """For a command with files or processes to put away."""
    _handle(_unwind)


def _handle(handler: "signal._HANDLER") -> None:
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup, or a background job of a shell
            signal.signal(number, handler)


def _end(number: int, _: FrameType | None) -> None:
    if sys.stderr.isatty():
        os.write(sys.stderr.fileno(), b"\n")  # the shell's prompt belongs on a line of its own
    os._exit(128 + number)


def _unwind(number: int, _: FrameType | None) -> None:
    for other in ENDING:  # a second one would come up in what the first one puts away
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)
