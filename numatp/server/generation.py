"""The sequences of one request, from their tokens to what can be shown, on the event loop."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

from numatp.engine.sampling import SamplingParams
from numatp.engine.sequence import Continuation
from numatp.engine.token import Event, Finish, Progress, ScoredPrompt, Token
from numatp.errors import UserError
from numatp.server.forms import CallReader
from numatp.server.refusals import Refused, of_user_error
from numatp.server.state import State
from numatp.text.parts.formats import Parts
from numatp.text.parts.piece import Piece
from numatp.text.stream import TextStream


@dataclass(frozen=True)
class Prompt:
    """What one sequence begins with, and how its answer is read."""

    tokens: list[int]
    params: SamplingParams
    text: TextStream | CallReader
    one_call: bool = False  # it ends with its first call of a tool
    parts: Parts | None = None  # of the answer to a chat


class Delta(NamedTuple):
    """Something new of sequence `number`: text or calls, a prompt's progress, or its end."""

    number: int
    piece: Piece = Piece("")
    tokens: tuple[Token, ...] = ()  # since the last piece: what held a piece back is in the next one; or a scored prompt's
    progress: Progress | None = None
    finish: Finish | None = None


class Sequence:
    """One of a request's sequences."""

    def __init__(self, prompt: Prompt):
        self.text, self.prompt_tokens, self.one_call = prompt.text, len(prompt.tokens), prompt.one_call
        self.asked: Continuation | None = None  # of the engine
        self.token_count = self.reasoning_tokens = 0
        self.calls = 0  # of tools
        self.first_seconds = 0.0  # from the request's start to the first token, once there is one
        self.unsaid: list[Token] = []
        self.finish: Finish | None = None

    def so_far(self) -> Finish:
        """What it has cost, as if it ended now."""
        assert self.asked
        return self.finish or self.asked.finish("cancelled")

    @property
    def is_over(self) -> bool:
        """What comes now is no longer part of the answer."""
        return self.text.stopped or (self.one_call and self.calls > 0)


class Generation:
    """A request under way: start() it, go once through deltas(), or through came() while there is more(), and cancel() it whatever
    happens."""

    def __init__(self, state: State, prompts: list[Prompt], progress: bool = False, salt: str = ""):
        """progress, salt: as for LLM.start."""
        self._state, self._progress, self._salt = state, progress, salt
        self._prompts = prompts
        self.sequences = [Sequence(prompt) for prompt in prompts]
        self._queued = {index: len(prompt.tokens) for index, prompt in enumerate(prompts)}  # whose prompts are not computed yet
        self._arrived: deque[tuple[int, Event]] = deque()
        self._left = len(prompts)  # sequences that have not ended
        self._news = asyncio.Event()
        self._began = 0.0
        self._deadline: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Refused if too many wait, or by the engine."""
        self._state.enter([len(prompt.tokens) for prompt in self._prompts])
        self._began = time.monotonic()
        if self._state.settings.timeout:
            self._deadline = asyncio.get_running_loop().call_later(self._state.settings.timeout, self._be_late)
        started = 0
        try:
            for index, prompt in enumerate(self._prompts):
                receiver = self._state.mailbox.receiver(partial(self._take, index))
                asked = self._state.llm.start(prompt.tokens, prompt.params, receiver, self._progress, self._salt, prompt.parts)
                self.sequences[index].asked = asked
                started += 1
        except BaseException as error:
            self.cancel()
            for prompt in self._prompts[started:]:
                self._state.computed(len(prompt.tokens))
                self._state.leave(0.0)
            raise self._refusal(error) from None

    def _take(self, index: int, item: Event) -> None:
        if index in self._queued and not isinstance(item, (Progress, ScoredPrompt)):
            self._state.computed(self._queued.pop(index))
        if isinstance(item, (Finish, BaseException)):
            self._state.leave(self.seconds)
        self._hand(index, item)

    def _be_late(self) -> None:
        self._hand(0, Refused(408, f"not answered within --timeout {self._state.settings.timeout:g} s"))

    def _hand(self, index: int, item: Event) -> None:
        self._arrived.append((index, item))
        self._news.set()

    async def deltas(self) -> AsyncIterator[Delta]:
        """Until all sequences have ended. Refused if one fails."""
        while await self.more():
            for delta in self.came():
                yield delta

    async def more(self) -> bool:
        """Waits until something has come; False if all sequences have ended. Refused if one has failed."""
        if not self._left:
            return False
        if not self._arrived:
            self._news.clear()
            await self._news.wait()
        if isinstance(error := self._arrived[0][1], BaseException):
            raise self._refusal(error)
        return True

    def came(self) -> Iterator[Delta]:
        """What has come, without waiting. What the sequences say of themselves is so after each."""
        while self._arrived and not isinstance(self._arrived[0][1], BaseException):
            index, item = self._arrived.popleft()
            if isinstance(item, Token):
                yield from self._continued(index, item)
            elif isinstance(item, Progress):
                yield Delta(index, progress=item)
            elif isinstance(item, ScoredPrompt):
                yield Delta(index, tokens=tuple(item.tokens))
            elif isinstance(item, Finish):
                self._left -= 1
                yield from self._finished(index, item)

    def _continued(self, index: int, token: Token) -> list[Delta]:
        sequence = self.sequences[index]
        if not sequence.first_seconds:
            sequence.first_seconds = self.seconds
            self._state.metrics.time_to_first_token.observe(sequence.first_seconds)
        if sequence.is_over:
            return []  # tokens that were under way when that was seen
        sequence.token_count += 1
        sequence.unsaid.append(token)
        said = self._said(index, sequence.text.push(token.id))
        if sequence.is_over and sequence.asked:
            sequence.asked.cancelled.set()
        return said

    def _finished(self, index: int, finish: Finish) -> list[Delta]:
        sequence = self.sequences[index]
        self._state.metrics.e2e_request_latency.observe(self.seconds)
        if sequence.token_count > 1:
            latency = (self.seconds - sequence.first_seconds) / (sequence.token_count - 1)
            self._state.metrics.inter_token_latency.observe(latency)
        over = sequence.is_over
        said = [] if over else self._said(index, sequence.text.finish())
        sequence.finish = replace(finish, reason="stop") if over or sequence.text.stopped else finish
        return [*said, Delta(index, tokens=tuple(sequence.unsaid), finish=sequence.finish)]

    def _said(self, index: int, pieces: list[Piece]) -> list[Delta]:
        sequence, deltas = self.sequences[index], []
        for piece in pieces:
            if sequence.one_call:
                piece = piece._replace(calls=piece.calls[: 1 - sequence.calls])
            sequence.calls += len(piece.calls)
            if piece.part == "reasoning":
                sequence.reasoning_tokens += len(sequence.unsaid)
            deltas.append(Delta(index, piece, tuple(sequence.unsaid)))
            sequence.unsaid = []
        return deltas

    @property
    def seconds(self) -> float:
        """Since start()."""
        return time.monotonic() - self._began

    def cancel(self) -> None:
        """Ends what has not ended. Safe at any time."""
        if self._deadline:
            self._deadline.cancel()
        for sequence in self.sequences:
            if sequence.asked:
                sequence.asked.cancelled.set()

    def _refusal(self, error: BaseException) -> BaseException:
        if isinstance(error, UserError):
            return of_user_error(error, self._state.llm.model)
        if isinstance(error, Exception) and not isinstance(error, Refused):
            return Refused(500, "the model's engine has ended")
        return error
