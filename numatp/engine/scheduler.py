"""How rank 0 makes Steps of what callers ask: all that run together, one Step after another."""

import math
import time
from dataclasses import dataclass

from numatp.engine.admission import Admission
from numatp.engine.counts import Counts
from numatp.engine.engine import Engine
from numatp.engine.job import alike_of
from numatp.engine.pace import Pace
from numatp.engine.sequence import Continuation, Scoring, Sequence
from numatp.engine.token import Reason, Token
from numatp.errors import UserError
from numatp.kernels.sampling import NO_NUMBERS, NO_TOKEN
from numatp.program.step import Span


@dataclass
class Choosing:
    """A sequence whose next token is chosen after a Step."""

    sequence: Continuation
    row: int  # of the logits; those after its guesses follow
    guess: list[int]  # tokens that were computed after it
    num_right: int = 0  # of them

    def right(self, token: Token) -> bool:
        """Whether a token that was taken is the next one of the guess, so that its logits are there."""
        if self.num_right == len(self.guess) or token.id != self.guess[self.num_right]:
            return False
        self.num_right += 1
        self.sequence.guessed_right()
        return True


class Scheduler:
    """On rank 0's engine thread."""

    def __init__(self, engine: Engine, counts: Counts | None = None):
        self._engine = engine
        self._counts = counts or Counts()
        layout, job = engine.loaded.layout, engine.job
        self._max_rows = layout.max_rows
        places, context = job.max_sequences, layout.context
        self._admission = Admission(engine.blocks, engine.prefixes, places, context, engine.copy_states)
        self._drafts = engine.window.step.shape.drafts  # rows for guesses in one Step
        self._piece = engine.loaded.spec.piece
        self._alike = alike_of(job, engine.loaded.spec)
        self._pace = Pace(job.step_ms / 1000, layout.max_rows)
        self._scores_next = False  # whose turn it is where both kinds run

    def submit(self, sequence: Sequence) -> None:
        self._admission.submit(sequence)

    @property
    def busy(self) -> bool:
        return bool(self._admission.waiting or self._admission.running)

    def fail(self, error: BaseException) -> None:
        """Tells everybody who waits."""
        for sequence in self._all():
            sequence.put(error)
        self._admission.waiting.clear()
        self._admission.running.clear()

    def cancel(self) -> None:
        """Ends all that is continued, at the next Step."""
        for sequence in self._all():
            if isinstance(sequence, Continuation):
                sequence.cancelled.set()

    def step(self) -> None:
        """One Step for all who are continued or for those who are scored, in turn, after taking in who fits."""
        for sequence in self._all():
            if sequence.cancelled.is_set():
                self._end(sequence, "cancelled")
        self._admission.admit()
        scored, continued = list[Sequence](), list[Continuation]()
        for sequence in self._admission.running:
            if isinstance(sequence, Continuation) and not sequence.scoring:
                continued.append(sequence)
            else:
                scored.append(sequence)
        decoding = sum(s.decodes for s in continued)
        if scored and (self._scores_next or not continued) and self._score(scored, decoding):
            self._scores_next = False
        elif continued:
            prompts_wait = self._pace.pauses and 0 < decoding < len(continued)  # for a Step of those who decode
            self._scores_next |= not prompts_wait  # not before prompts had a Step
            self._continue(continued, decoding)
        self._count_sequences()

    def _all(self) -> list[Sequence]:
        return [*self._admission.waiting, *self._admission.running]

    # ------------------------------------------------------------ Steps

    def _continue(self, continued: list[Continuation], decoding: int) -> None:
        """A row for each of those that decode, whose next token must not wait for prompts; beside them rows of prompts."""
        guesses = max(min(self._drafts, self._max_rows) - decoding, 0) if decoding else 0  # rows for them
        room, began = self._pace.rows(decoding + guesses), time.perf_counter()
        spans: list[Span] = []
        prompts: list[Continuation] = []
        choosing: list[tuple[Span, Continuation, list[int]]] = []  # the span with its last row, and what was guessed after it
        parts: list[Sequence] = []
        for sequence in continued:
            decodes = sequence.decodes
            count = self._take_part(sequence, 1 if decodes else room)
            if not count:
                continue
            guess = sequence.guess(guesses, self._piece, self._alike) if decodes else []
            if not decodes:
                room -= count
                prompts.append(sequence)
            span = sequence.next_span(count)
            parts.append(sequence)
            if span.want_logits:
                choosing.append((span, sequence, guess))
            spans.append(span)
            if guess:
                spans += sequence.spans_of(guess)
                guesses -= len(guess)
        if not spans:
            return
        places = {sequence.place for sequence in prompts}
        if prompts:
            spans.sort(key=lambda span: span.prompt, reverse=True)
        self._engine.run(spans)
        self._admission.passed(parts)
        prompt_rows = sum(len(span.tokens) for span in spans if span.sequence in places)
        self._pace.measured(prompt_rows, time.perf_counter() - began)
        self._counts.computed_tokens += prompt_rows
        for sequence in prompts:
            sequence.tell_progress()
        if choosing:
            rows = {id(span): row for row, span in enumerate(span for span in spans if span.want_logits)}
            self._choose([Choosing(sequence, rows[id(span)], guess) for span, sequence, guess in choosing])

    def _take_part(self, sequence: Sequence, room: int) -> int:
        """Rows that it has in the next Step, with blocks for them; 0 where it was set back meanwhile, or has to wait."""
        if sequence.place < 0 or not self._admission.begin(sequence):
            return 0
        assert sequence.known
        stop = self._engine.prefixes.next_stop(sequence.known, sequence.done, sequence.fed)
        count = sequence.rows(room, stop)
        return count if count and self._admission.make_room(sequence, count) else 0

    def _choose(self, choosing: list[Choosing]) -> None:
        """The next token of each, and the one after it for those whose guess was right, as often as it was."""
        turn, still = 0, choosing
        while still:
            choices = [one.sequence.chooser.choice(one.sequence.tokens) for one in still]
            tokens = self._engine.sampler.choose(choices, [one.row + turn for one in still])
            still = [one for one, token in zip(still, tokens, strict=True) if self._take(one.sequence, token) and one.right(token)]
            turn += 1
        for one in choosing:
            if one.guess:
                one.sequence.drafts.checked(len(one.sequence.tokens), len(one.guess), one.num_right)
                self._counts.guessed_tokens += len(one.guess)
                self._counts.right_guesses += one.num_right

    def _take(self, sequence: Continuation, token: Token) -> bool:
        """Whether it goes on after this token."""
        if token.id == NO_NUMBERS:
            self._fail_damaged(sequence)
            return False
        if token.id == NO_TOKEN:
            self._fail(sequence, UserError(sequence.chooser.refusal))
            return False
        self._counts.generated_tokens += 1
        if reason := sequence.take(token):
            self._end(sequence, reason)
        return not reason

    def _score(self, scored: list[Sequence], decoding: int) -> bool:
        """In Steps of their own. Scores have the same bits whatever else runs, because a prompt has them (numatp/README.md).

        decoding: how many others wait for their next token. False where nobody has a part in it now.
        """
        room = self._pace.rows(decoding)
        parts: list[tuple[Sequence, Span]] = []
        for sequence in scored:
            if count := self._take_part(sequence, room):
                room -= count
                parts.append((sequence, sequence.next_span(count)))
        if not parts:
            return False
        parts.sort(key=lambda part: part[1].prompt, reverse=True)
        spans = [span for _, span in parts]
        scores = self._engine.score(spans).tolist()
        self._pace.scored()
        self._admission.passed([sequence for sequence, _ in parts])
        self._counts.computed_tokens += sum(len(span.tokens) for span in spans)
        tops = self._engine.most_probable()
        for sequence, span in parts:
            told = [Token(target, scores.pop(0), tops.pop(0)) for target in span.targets]
            sequence.take_scores(span, told)
            if not all(math.isfinite(token.logprob or 0) for token in told):
                self._fail_damaged(sequence)
            elif isinstance(sequence, Continuation):
                sequence.tell_progress()
            elif isinstance(sequence, Scoring) and sequence.done == sequence.fed:
                self._leave(sequence)
                sequence.put(sequence.scores)
        return True

    # ------------------------------------------------------------ ends

    def _leave(self, sequence: Sequence) -> None:
        """Counted now: who is told of its end may ask at once how many run."""
        self._admission.leave(sequence)
        self._count_sequences()

    def _fail_damaged(self, sequence: Sequence) -> None:
        why = "it computes no numbers for what follows this text: damaged; download or convert it again"
        self._fail(sequence, UserError(f"{self._engine.job.model}: {why}"))

    def _fail(self, sequence: Sequence, error: UserError) -> None:
        self._leave(sequence)
        sequence.put(error)

    def _end(self, sequence: Sequence, reason: Reason) -> None:
        finish = sequence.finish(reason)
        self._counts.prompt_tokens += finish.prompt_tokens
        self._counts.cached_tokens += finish.cached_tokens
        self._leave(sequence)
        sequence.put(finish)

    def _count_sequences(self) -> None:
        counts, blocks = self._counts, self._engine.blocks
        if blocks.pools:
            counts.blocks = blocks.pools[0].blocks
            counts.blocks_held, counts.blocks_cached = blocks.count(0)
        counts.waiting = len(self._admission.waiting)
        counts.running = len(self._admission.running)
        counts.set_back = self._admission.set_back_count
