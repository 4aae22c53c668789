"""What callers ask of the engine, and how rank 0 makes Steps of it: all running sequences together, one Step after another."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from threading import Event
from typing import Literal

from numatp.engine.cache import Tables
from numatp.engine.engine import Engine
from numatp.engine.sampler import Choice
from numatp.engine.sampling import SamplingParams
from numatp.program.step import Span


@dataclass(frozen=True)
class Finish:
    """The end of a request. A token's own decode is the Step that was fed with it."""

    reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    prompt_seconds: float  # from its first Step to its first token
    decoded_tokens: int
    decode_seconds: float


@dataclass(eq=False)
class Request:
    """Continue a prompt. put() is called on the engine's thread, with each token and then the Finish or an exception."""

    prompt: list[int]
    params: SamplingParams
    stop_ids: frozenset[int]
    put: Callable[[int | Finish | BaseException], None]
    cancelled: Event = field(default_factory=Event)


@dataclass(eq=False)
class ScoreRequest:
    """The log-probabilities of the last `count` tokens, each after all before it; put() gets them as a list of float."""

    tokens: list[int]
    count: int
    put: Callable[[list[float] | BaseException], None]


@dataclass(eq=False)
class Sequence:
    """A request that has a place in the caches."""

    request: Request
    place: int
    tables: Tables
    limit: int  # tokens at most, prompt included
    tokens: list[int]
    random: Random
    done: int = 0  # tokens whose keys and values are in the cache
    began: float = 0.0
    first_token: float = 0.0

    def finish(self, reason: Literal["stop", "length", "cancelled"]) -> Finish:
        now = time.perf_counter()
        self.tables.release()
        first = self.first_token or now
        prompt = len(self.request.prompt)
        return Finish(reason, prompt, first - self.began, max(self.done - prompt, 0), now - first)


class Scheduler:
    """On rank 0's engine thread."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._waiting: deque[Request | ScoreRequest] = deque()
        self._running: list[Sequence] = []
        self._places = list(range(engine.job.max_sequences))[::-1]

    def submit(self, request: Request | ScoreRequest) -> None:
        self._waiting.append(request)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._running)

    def fail(self, error: BaseException) -> None:
        """Tells everybody who waits."""
        for request in [*self._waiting, *(sequence.request for sequence in self._running)]:
            request.put(error)
        self._waiting.clear()
        self._running.clear()

    def cancel(self) -> None:
        """Ends all requests that generate, at the next Step."""
        for request in [*self._waiting, *(sequence.request for sequence in self._running)]:
            if isinstance(request, Request):
                request.cancelled.set()

    def step(self) -> None:
        """One Step for all who run, after taking in who fits."""
        self._admit()
        for sequence in [s for s in self._running if s.request.cancelled.is_set()]:
            self._end(sequence, "cancelled")
        spans, sampled, room = [], [], self._engine.loaded.layout.max_rows
        # Sequences that decode have one token to do, those that begin a prompt: the former must not wait for the latter.
        for sequence in sorted(self._running, key=lambda s: len(s.tokens) - s.done):
            count = min(len(sequence.tokens) - sequence.done, room)
            if not count:
                break
            room -= count
            last = sequence.done + count == len(sequence.tokens)
            tables = sequence.tables.prepare(sequence.done, count)
            rows = sequence.tokens[sequence.done : sequence.done + count]
            spans.append(Span(sequence.place, rows, sequence.done, tables, want_logits=last))
            sequence.done += count
            if last:
                sampled.append(sequence)
        if spans:
            self._engine.run(spans)
        if sampled:
            choices = [Choice(s.request.params, s.random.random(), s.tokens) for s in sampled]
            for sequence, token in zip(sampled, self._engine.sampler.choose(choices), strict=True):
                self._take(sequence, token)

    def _admit(self) -> None:
        engine = self._engine
        while self._waiting and self._places:
            request = self._waiting[0]
            length = len(request.tokens) if isinstance(request, ScoreRequest) else len(request.prompt)
            wanted = 0 if isinstance(request, ScoreRequest) else request.params.max_tokens or engine.loaded.layout.context
            limit = min(length + wanted, engine.loaded.layout.context)
            tables = engine.blocks.reserve(limit)
            if tables is None:
                return
            if isinstance(request, ScoreRequest):
                self._score(request, tables)
                self._waiting.popleft()  # only now: what fails before fails its request too
            else:
                self._waiting.popleft()
                sequence = Sequence(
                    request, self._places.pop(), tables, limit, list(request.prompt), Random(request.params.seed),
                    began=time.perf_counter(),
                )  # fmt: skip
                self._running.append(sequence)

    def _score(self, request: ScoreRequest, tables: Tables) -> None:
        tokens, scores = request.tokens, []
        for start in range(0, len(tokens) - 1, self._engine.loaded.layout.max_rows):
            part = tokens[start : min(start + self._engine.loaded.layout.max_rows, len(tokens) - 1)]
            wanted = min(len(part), start + len(part) - (len(tokens) - 1 - request.count))
            targets = tokens[start + len(part) - wanted + 1 : start + len(part) + 1] if wanted > 0 else []
            span = Span(self._places[-1], part, start, tables.prepare(start, len(part)), want_logits=False, targets=targets)
            scores += self._engine.score([span]).tolist()
        tables.release()
        request.put(scores)

    def _take(self, sequence: Sequence, token: int) -> None:
        request = sequence.request
        sequence.first_token = sequence.first_token or time.perf_counter()
        if token in request.stop_ids and not request.params.ignore_eos:
            return self._end(sequence, "stop")
        sequence.tokens.append(token)
        request.put(token)
        if len(sequence.tokens) >= sequence.limit:
            self._end(sequence, "length")

    def _end(self, sequence: Sequence, reason: Literal["stop", "length", "cancelled"]) -> None:
        self._running.remove(sequence)
        self._places.append(sequence.place)
        sequence.request.put(sequence.finish(reason))
