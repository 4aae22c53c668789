"""What callers ask of the engine: sequences of tokens that are continued or scored, each one object from submit to end."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import TYPE_CHECKING

from numatp.engine.blocks import Tables
from numatp.engine.chooser import Chooser
from numatp.engine.drafts import Drafts
from numatp.engine.prefixes import Known, last_border
from numatp.engine.sampling import SamplingParams
from numatp.engine.token import Finish, Progress, Reason, ScoredPrompt, Token
from numatp.kernels.layout import CACHE_BLOCK
from numatp.program.step import Span

if TYPE_CHECKING:
    from numatp.text.matcher import Matcher


@dataclass(eq=False)
class Sequence:
    """Waits for a place in the caches, has one while it runs, and may give it back with its tokens kept."""

    tokens: list[int]  # all so far
    put: Callable[..., None]  # called on the engine's thread, with what came of it or an exception
    cancelled: Event = field(default_factory=Event, init=False)
    arrival: int = field(default=0, init=False)  # its number among all that were asked for
    place: int = field(default=-1, init=False)  # among those that run at the same time
    shared: int = field(default=0, init=False)  # blocks that it will have together with one that runs
    tables: Tables | None = field(default=None, init=False)
    known: Known | None = field(default=None, init=False)  # goes with its tables
    done: int = field(default=0, init=False)  # tokens whose keys and values are in the cache

    @property
    def fed(self) -> int:
        """Tokens that will be fed, as far as it is known: those after them are asked for."""
        raise NotImplementedError

    @property
    def scoring(self) -> bool:
        """Whether its next Step has targets: it is one of scores."""
        raise NotImplementedError

    def take_scores(self, span: Span, told: list[Token]) -> None:
        """Of the targets of a Step."""
        raise NotImplementedError

    def next_tokens(self, context: int) -> int:
        """That the cache, of so many, must hold of it for it to get on from where it is."""
        raise NotImplementedError

    exact = False  # whether it takes over only what was computed in prompts
    salt = ""  # what it takes over was computed with the same

    @property
    def reusable(self) -> int:
        """Tokens, in whole blocks, that it need not compute itself if the cache knows them."""
        return last_border(self.fed)

    def start(self, place: int, context: int) -> None:
        self.place = place

    def begin(self, tables: Tables, known: Known, done: int) -> None:
        """done: tokens that the cache has."""
        self.tables, self.known, self.done = tables, known, done

    def release(self) -> int:
        """Gives its blocks, if it has some yet, and its place back; the place."""
        if self.tables:
            self.tables.release()
        place, self.tables, self.known = self.place, None, None
        self.place, self.done = -1, 0
        return place

    def rows(self, room: int, stop: int) -> int:
        """How many rows it should have in a Step that has room for so many; stop: where the Step ends at the latest.

        A row of a span of its own is computed by other kernels than several, and its last bits differ: so a prompt never has one
        row in a Step, if it has more in all, and its bits do not depend on how it was cut.
        """
        left = stop - self.done
        if left > room and left - room == 1:
            room -= 1
        return 0 if room == 1 < left else min(left, room)

    def next_span(self, count: int) -> Span:
        """The next `count` of the tokens that are not done; by then they will be."""
        raise NotImplementedError

    def finish(self, reason: Reason) -> Finish:
        """How it ended, if not with all that was asked for."""
        return Finish(reason, len(self.tokens), 0.0, 0, 0.0)


@dataclass(eq=False)
class Continuation(Sequence):
    """Continues a prompt: put() gets each Token and then the Finish; before them Progress and a ScoredPrompt, where asked for.

    A prompt that shall be scored is, but for its last token, before it is continued.
    """

    params: SamplingParams
    stop_ids: frozenset[int]
    vocab: int | None = None  # tokens that may be drawn: those below it; None is all that the model has
    progress: bool = False  # whether put() gets the prompt's Progress
    matcher: "Matcher | None" = None  # of the params' grammar
    salt: str = ""

    def __post_init__(self) -> None:
        self.prompt_tokens = len(self.tokens)
        self.chooser = Chooser(self.params, self.stop_ids, self.vocab, self.matcher)
        self.scored = [Token(self.tokens[0])]  # of the prompt, as far as it is scored, if it shall be
        self.cached_tokens = 0  # of the prompt, found in the cache when it began
        self.limit = 0  # tokens at most, the prompt included, once it has started
        self.drafts = Drafts()
        self._decoded = 0  # generated tokens that were fed
        self._began = self._first_token = 0.0

    @property
    def fed(self) -> int:
        return self.prompt_tokens - 1 if self.scoring else len(self.tokens)

    @property
    def scoring(self) -> bool:
        return self.params.prompt_logprobs is not None and len(self.scored) < self.prompt_tokens

    def take_scores(self, span: Span, told: list[Token]) -> None:
        """Also of a Step that is done again, after it was set back."""
        most, vocab = self.params.prompt_logprobs or 0, self.vocab
        tops = [tuple(top for top in token.top if vocab is None or top[0] < vocab)[:most] for token in told]
        self.scored[span.position + 1 :] = [token._replace(top=top) for token, top in zip(told, tops, strict=True)]

    @property
    def reusable(self) -> int:
        return 0 if self.scoring else super().reusable

    @property
    def decodes(self) -> bool:
        """Whether its next Step is fed nothing but the token that it has generated last."""
        return len(self.tokens) - self.done == 1 and len(self.tokens) > self.prompt_tokens

    def most_tokens(self, context: int) -> int:
        """That it can have in the end, in a cache of so many."""
        wanted = self.params.max_tokens
        return context if wanted is None else min(self.prompt_tokens + wanted, context)

    def next_tokens(self, context: int) -> int:
        return max(min(len(self.tokens) + 1, self.most_tokens(context)), len(self.tokens))

    def start(self, place: int, context: int) -> None:
        super().start(place, context)
        self.limit = self.most_tokens(context)

    def rows(self, room: int, stop: int) -> int:
        """As those of any sequence, and if it was set back not of its prompt and of what it has generated in one Step.

        But the last row of a prompt, where only that is missing, comes with the next ones.
        """
        return super().rows(room, min(stop, self.prompt_tokens) if self.done < self.prompt_tokens - 1 else stop)

    def begin(self, tables: Tables, known: Known, done: int) -> None:
        super().begin(tables, known, done)
        if not self._began:
            self._began, self.cached_tokens = time.perf_counter(), done

    def next_span(self, count: int) -> Span:
        assert self.tables and self.known
        self.known.exact &= count > 1
        first = self.done
        self.done = first + count
        self._decoded = max(self._decoded, self.done - self.prompt_tokens)
        tables, tokens = self.tables.prepare(first, count), self.tokens[first : self.done]
        prompt = self.prompt_tokens if count > 1 and first < self.prompt_tokens else 0
        if self.scoring:
            targets, most = self.tokens[first + 1 : self.done + 1], self.params.prompt_logprobs or 0
            return Span(self.place, tokens, first, tables, want_logits=False, targets=targets, num_top=most, prompt=prompt)
        return Span(self.place, tokens, first, tables, want_logits=self.done == len(self.tokens), prompt=prompt)

    def guess(self, most: int, piece: int, alike: int) -> list[int]:
        """Tokens that may come after the one that is fed next, as far as there is room for them.

        piece: of recurrent layers (models/layers.py), whose last token is never a guess; 0: there are none. alike: as in Drafts.
        """
        assert self.tables
        most = min(most, self.limit - len(self.tokens) - 1)
        if piece:
            most = min(most, piece - 1 - len(self.tokens) % piece)
        guess = self.drafts.guess(self.tokens, most, self.chooser.forced, alike) if most > 0 else []
        return guess if guess and self.tables.has_room(self.done, 1 + len(guess)) else []

    def spans_of(self, guess: list[int]) -> list[Span]:
        """After next_span: a row of its own for each, as it has if it is no guess, so that its logits have the same bits."""
        assert self.tables
        tables = self.tables.prepare(self.done - 1, 1 + len(guess))  # whose row sees no fewer tokens because others follow
        return [Span(self.place, [token], self.done + i, tables) for i, token in enumerate(guess)]

    def guessed_right(self) -> None:
        """The token that was taken last is the guess whose row is computed already."""
        self.done += 1
        self._decoded = max(self._decoded, self.done - self.prompt_tokens)

    def tell_progress(self) -> None:
        """After a Step that had some of its prompt, the first time that it is computed."""
        if self.progress and not self._first_token:
            self.put(Progress(min(self.done, self.prompt_tokens), self.cached_tokens, self.prompt_tokens))

    def take(self, token: Token) -> Reason | None:
        """The token that follows; why it is the last, if it is."""
        if self.params.prompt_logprobs is not None and not self._first_token:
            self.put(ScoredPrompt(self.scored))
        self._first_token = self._first_token or time.perf_counter()
        if token.id in self.stop_ids and (self.matcher or not self.params.ignore_eos):
            return "stop"
        if len(self.tokens) >= self.limit:  # the prompt alone was asked for
            return "length"
        self.tokens.append(token.id)
        self.chooser.take(token.id)
        self.put(token)
        return "length" if len(self.tokens) >= self.limit else None

    def finish(self, reason: Reason) -> Finish:
        now = time.perf_counter()
        began, first = self._began or now, self._first_token or now
        return Finish(reason, self.prompt_tokens, first - began, self._decoded, now - first, self.cached_tokens)


@dataclass(eq=False)
class Scoring(Sequence):
    """The log-probabilities of the last `count` tokens, each after all before it: put() gets them as a list of float, or a Finish
    if that was cancelled."""

    count: int
    exact = True

    def __post_init__(self) -> None:
        self.scores: list[float] = []

    @property
    def fed(self) -> int:
        """The last token is scored and never fed: nothing follows it."""
        return len(self.tokens) - 1

    def next_tokens(self, context: int) -> int:
        return len(self.tokens)

    @property
    def scoring(self) -> bool:
        return True

    def take_scores(self, span: Span, told: list[Token]) -> None:
        self.scores += [token.logprob for token in told if token.logprob is not None]

    @property
    def reusable(self) -> int:
        return min(last_border(self.fed), (self.fed - self.count) // CACHE_BLOCK * CACHE_BLOCK)

    def begin(self, tables: Tables, known: Known, done: int) -> None:
        super().begin(tables, known, done)
        self.scores.clear()  # if it was set back, they will be computed again

    def next_span(self, count: int) -> Span:
        assert self.tables and self.known
        self.known.exact &= count > 1
        first, end = self.done, self.done + count
        self.done = end
        targets = self.tokens[max(first, self.fed - self.count) + 1 : end + 1]
        tables, prompt = self.tables.prepare(first, count), len(self.tokens) if count > 1 else 0
        return Span(self.place, self.tokens[first:end], first, tables, want_logits=False, targets=targets, prompt=prompt)
