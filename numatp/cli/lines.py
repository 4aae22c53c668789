"""Lines of standard input, waited for no longer than the model is there."""

import signal
import sys
from threading import Thread, main_thread
from types import FrameType

from numatp.errors import NumatpError, UserError
from numatp.llm import LLM


class Lines:
    """For the main thread. A job may end while nobody asks for anything: a rank has gone, or the link to its host."""

    def __init__(self, llm: LLM):
        self._waiting = False
        self._ended: NumatpError | None = None
        signal.signal(signal.SIGUSR1, self._wake)
        Thread(target=self._watch, args=(llm,), daemon=True).start()

    def read(self) -> str | None:
        """The next line; None at the end of the input. UserError if it is no UTF-8; raises what ended the job meanwhile."""
        self._waiting = True
        try:
            if self._ended:
                raise self._ended
            return input("> " if sys.stdin.isatty() else "")
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise UserError("cannot read standard input: not UTF-8 text") from error
        except KeyboardInterrupt:
            print(flush=True)
            return ""
        finally:
            self._waiting = False

    def _watch(self, llm: LLM) -> None:
        try:
            llm.wait()
        except NumatpError as error:
            self._ended = error
            thread = main_thread().ident
            assert thread
            signal.pthread_kill(thread, signal.SIGUSR1)  # a read goes on after a signal whose handler raises nothing

    def _wake(self, number: int, frame: FrameType | None) -> None:
        if self._waiting and self._ended:
            raise self._ended
