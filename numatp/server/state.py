"""What all routes share: the model, whether it may be asked, and how much is under way. On the event loop's thread."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, TypeVar

from numatp import __version__
from numatp.llm import LLM
from numatp.server.body import Room
from numatp.server.mailbox import Mailbox
from numatp.server.metrics import Metrics
from numatp.server.refusals import Refused
from numatp.server.settings import Settings

T = TypeVar("T")
THREADS = 4  # in which texts become tokens
REMEMBERED = 32  # requests by which the time of a new one is guessed
LONGEST_RETRY = 120  # seconds that clients wait at most


class State:
    def __init__(self, llm: LLM, settings: Settings, places: int):
        """places: sequences that run at the same time."""
        self.llm, self.settings, self.places = llm, settings, places
        self.metrics = Metrics(llm.counts)
        self.version = f"numatp {__version__}"
        self.phase: Literal["loading", "ready", "draining", "dead"] = "loading"
        self.created = int(time.time())
        path = Path(llm.model)
        self.name = settings.alias or (path.name if path.is_dir() else path.stem)
        self.sequences = 0  # that the engine has been asked for and has not ended
        self.queued_tokens = 0  # of their prompts, until each has its first token
        self.responses = 0  # requests that are being answered
        self.bodies = Room()
        self.mailbox = Mailbox()
        self.quiet = asyncio.Event()  # there are none
        self.quiet.set()
        self._lasted: deque[float] = deque(maxlen=REMEMBERED)  # seconds from asking the engine to its end
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="numatp-text")

    async def in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """What takes long and is none of the event loop's business: long texts, templates, grammars."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While a request is being answered."""
        self.responses += 1
        self.quiet.clear()
        try:
            yield
        finally:
            self.responses -= 1
            if not self.responses:
                self.quiet.set()

    def check_ready(self) -> None:
        """Refused while nothing can be asked."""
        if self.phase == "loading":
            raise Refused(503, "Loading model", code=503, retry_after=2)
        if self.phase == "draining":
            raise Refused(503, "the server is being stopped", code=503, retry_after=5)
        if self.phase == "dead":
            raise Refused(503, "the model's engine has ended", code=503)

    def enter(self, prompts: list[int]) -> None:
        """Before sequences with prompts of so many tokens are asked for. Refused if too many wait already."""
        self.check_ready()
        if self.sequences + len(prompts) > self.places + self.settings.max_queue:
            raise Refused(429, f"{self.sequences} requests are under way or wait: try again later", retry_after=self._retry_after())
        most, tokens = self.settings.max_queue_tokens, sum(prompts)
        if most and self.queued_tokens and self.queued_tokens + tokens > most:
            said = f"{self.queued_tokens} tokens of prompts wait to be computed: try again later"
            raise Refused(429, said, retry_after=self._retry_after())
        self.sequences += len(prompts)
        self.queued_tokens += tokens

    def computed(self, tokens: int) -> None:
        """A prompt of so many waits no more."""
        self.queued_tokens -= tokens

    def leave(self, seconds: float) -> None:
        """One of them has ended, after that time."""
        self.sequences -= 1
        self._lasted.append(seconds)

    def _retry_after(self) -> int:
        """Seconds until a place in the queue should be free."""
        usual = sum(self._lasted) / len(self._lasted) if self._lasted else 10.0
        return max(1, min(LONGEST_RETRY, round(usual / self.places)))

    @property
    def hangs(self) -> bool:
        """Whether a Step takes longer than any should. The engine is not asked."""
        return self.llm.step_seconds > self.settings.hang
