"""How rank 0 makes Steps of what callers ask: all that run together, one Step after another."""

import math
from collections import deque

from numatp.engine.engine import Engine
from numatp.engine.sampler import Choice
from numatp.engine.sequence import Continuation, Scoring, Sequence
from numatp.engine.token import Reason, Token
from numatp.errors import UserError
from numatp.kernels.sampling import NO_NUMBERS


class Scheduler:
    """On rank 0's engine thread."""

    def __init__(self, engine: Engine):
        self._engine = engine
        self._context, self._max_rows = engine.loaded.layout.context, engine.loaded.layout.max_rows
        self._waiting: deque[Sequence] = deque()
        self._continued: list[Continuation] = []  # these run, and so do the next
        self._scored: deque[Scoring] = deque()
        self._places = list(range(engine.job.max_sequences))[::-1]
        self._scores_next = False  # whose turn it is where both kinds run

    def submit(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self._continued or self._scored)

    def fail(self, error: BaseException) -> None:
        """Tells everybody who waits."""
        for sequence in [*self._waiting, *self._continued, *self._scored]:
            sequence.put(error)
        self._waiting.clear()
        self._continued.clear()
        self._scored.clear()

    def cancel(self) -> None:
        """Ends all that is continued, at the next Step."""
        for sequence in [*self._waiting, *self._continued]:
            if isinstance(sequence, Continuation):
                sequence.cancelled.set()

    def step(self) -> None:
        """One Step for all who are continued or for one who is scored, in turn, after taking in who fits."""
        self._admit()
        for sequence in [s for s in self._continued if s.cancelled.is_set()]:
            self._end(sequence, "cancelled")
        if self._scored and (self._scores_next or not self._continued):
            self._scores_next = False
            self._score(self._scored[0])
        else:
            self._scores_next = True
            self._continue()

    def _admit(self) -> None:
        while self._waiting and self._places:
            sequence = self._waiting[0]
            most = sequence.most_tokens(self._context)
            tables = self._engine.blocks.reserve(most)
            if tables is None:
                return
            self._waiting.popleft()
            sequence.start(self._places.pop(), tables)
            if isinstance(sequence, Continuation):
                sequence.limit = most
                self._continued.append(sequence)
            elif isinstance(sequence, Scoring):
                self._scored.append(sequence)

    def _continue(self) -> None:
        spans, chosen, room = [], [], self._max_rows
        # Sequences that decode have one token to do, those that begin a prompt: the former must not wait for the latter.
        for sequence in sorted(self._continued, key=lambda s: len(s.tokens) - s.done):
            if not room:
                break
            span = sequence.next_span(room)
            spans.append(span)
            room -= len(span.tokens)
            if span.want_logits:
                chosen.append(sequence)
        if spans:
            self._engine.run(spans)
        if chosen:
            choices = [Choice(s.params, s.random.random(), s.tokens, s.vocab) for s in chosen]
            for sequence, token in zip(chosen, self._engine.sampler.choose(choices), strict=True):
                if token == NO_NUMBERS:
                    self._fail_damaged(sequence)
                elif reason := sequence.take(Token(token)):
                    self._end(sequence, reason)

    def _score(self, sequence: Scoring) -> None:
        """Alone in its Steps: its scores have the same bits whatever runs beside it."""
        scores = self._engine.score([sequence.next_span(self._max_rows)]).tolist()
        sequence.scores += scores
        if not all(map(math.isfinite, scores)):
            self._scored.popleft()
            self._fail_damaged(sequence)
        elif sequence.done == sequence.last:
            self._scored.popleft()
            self._places.append(sequence.release())
            sequence.put(sequence.scores)

    def _fail_damaged(self, sequence: Sequence) -> None:
        if isinstance(sequence, Continuation):
            self._continued.remove(sequence)
        self._places.append(sequence.release())
        why = "it computes no numbers for what follows this text: damaged; download or convert it again"
        sequence.put(UserError(f"{self._engine.job.model}: {why}"))

    def _end(self, sequence: Continuation, reason: Reason) -> None:
        self._continued.remove(sequence)
        finish = sequence.finish(reason)
        self._places.append(sequence.release())
        sequence.put(finish)
