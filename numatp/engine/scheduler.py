"""How rank 0 makes Steps of what callers ask: all that run together, one Step after another."""

import math
from collections import deque
from typing import Any

from numatp.engine.counts import Counts
from numatp.engine.engine import Engine
from numatp.engine.sequence import Continuation, Scoring, Sequence
from numatp.engine.token import Reason
from numatp.errors import UserError
from numatp.kernels.sampling import NO_NUMBERS, NO_TOKEN
from numatp.program.step import Span


class Scheduler:
    """On rank 0's engine thread."""

    def __init__(self, engine: Engine, counts: Counts | None = None):
        self._engine = engine
        self._counts = counts or Counts()
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
        for sequence in self._all():
            sequence.put(error)
        self._waiting.clear()
        self._continued.clear()
        self._scored.clear()

    def cancel(self) -> None:
        """Ends all that is continued, at the next Step."""
        for sequence in self._all():
            if isinstance(sequence, Continuation):
                sequence.cancelled.set()

    def step(self) -> None:
        """One Step for all who are continued or for one who is scored, in turn, after taking in who fits."""
        for sequence in self._all():
            if sequence.cancelled.is_set():
                self._end(sequence, "cancelled")
        self._admit()
        if self._scored and (self._scores_next or not self._continued):
            self._scores_next = False
            self._score(self._scored[0])
        else:
            self._scores_next = True
            self._continue()
        self._count_sequences()

    def _all(self) -> list[Sequence]:
        return [*self._waiting, *self._continued, *self._scored]

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
                self._counts.prompt_tokens += sequence.prompt_tokens
                self._continued.append(sequence)
            elif isinstance(sequence, Scoring):
                self._scored.append(sequence)

    def _continue(self) -> None:
        spans, prompts, chosen, room = [], [], [], self._max_rows
        # Sequences that decode have one token to do, those that begin a prompt: the former must not wait for the latter.
        for sequence in sorted(self._continued, key=lambda s: len(s.tokens) - s.done):
            if not room:
                break
            if sequence.in_prompt:
                prompts.append(sequence)
            span = sequence.next_span(room)
            spans.append(span)
            room -= len(span.tokens)
            if span.want_logits:
                chosen.append(sequence)
        if not spans:
            return
        self._engine.run(spans)
        self._count_step(spans, sum(sequence not in prompts for sequence in chosen))
        for sequence in prompts:
            sequence.tell_progress()
        if chosen:
            self._choose(chosen)

    def _choose(self, chosen: list[Continuation]) -> None:
        """The next token of each, in the order of the rows of logits."""
        choices = [s.chooser.choice(s.tokens) for s in chosen]
        for sequence, token in zip(chosen, self._engine.sampler.choose(choices), strict=True):
            if token.id == NO_NUMBERS:
                self._fail_damaged(sequence)
                continue
            if token.id == NO_TOKEN:
                self._fail(sequence, UserError("no token may follow here: what was asked for leaves none"))
                continue
            self._counts.generated_tokens += 1
            if reason := sequence.take(token):
                self._end(sequence, reason)

    def _score(self, sequence: Scoring) -> None:
        """Alone in its Steps: its scores have the same bits whatever runs beside it."""
        span = sequence.next_span(self._max_rows)
        scores = self._engine.score([span]).tolist()
        self._count_step([span], 0)
        sequence.scores += scores
        if not all(map(math.isfinite, scores)):
            self._fail_damaged(sequence)
        elif sequence.done == sequence.last:
            self._leave(sequence)
            sequence.put(sequence.scores)

    # ------------------------------------------------------------ ends

    def _fail_damaged(self, sequence: Sequence) -> None:
        why = "it computes no numbers for what follows this text: damaged; download or convert it again"
        self._fail(sequence, UserError(f"{self._engine.job.model}: {why}"))

    def _fail(self, sequence: Sequence, error: UserError) -> None:
        self._leave(sequence)
        sequence.put(error)

    def _end(self, sequence: Sequence, reason: Reason) -> None:
        finish = sequence.finish(reason)
        self._leave(sequence)
        sequence.put(finish)

    def _leave(self, sequence: Sequence) -> None:
        """It waits and runs no more; its place and its blocks, if it has some, are free."""
        lists: list[Any] = [self._waiting, self._continued, self._scored]
        for several in lists:
            if sequence in several:
                several.remove(sequence)
        if sequence.tables:
            self._places.append(sequence.release())

    # ------------------------------------------------------------ counts

    def _count_step(self, spans: list[Span], decoded: int) -> None:
        """decoded: rows of it that were fed a generated token."""
        self._counts.computed_tokens += sum(len(span.tokens) for span in spans) - decoded

    def _count_sequences(self) -> None:
        self._counts.waiting = len(self._waiting)
        self._counts.running = len(self._continued) + len(self._scored)
