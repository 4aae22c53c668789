"""Where answers stand in their grammars: which tokens may come next, by llguidance (MIT), an optional package."""

import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from numatp.errors import UserError
from numatp.text.grammar import Grammar
from numatp.text.reasoning import Reasoning
from numatp.text.tokenizer import BYTE, NORMAL, USER_DEFINED, Tokenizer

if TYPE_CHECKING:
    import llguidance

MISSING = "grammars and JSON schemas need the package llguidance: pip install 'numatp[server]'"
MOST_COMPILED = 32  # grammars that are kept
# Patterns that must hold together (allOf, or beside $ref) are joined into one, and whether a text fits all of them is a question
# whose price doubles with each; llguidance's limits do not bound it, and nothing ends it but the end of its process.
JOINS, PATTERNS, MOST_PATTERNS = ('"allOf"', '"$ref"'), ('"pattern"', '"format"'), 8
SECONDS = 5.0  # to compile a schema that may be such a one
CHECK = """import resource, sys
from llguidance import LLMatcher
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
LLMatcher.validate_grammar(sys.stdin.read())
"""
# Between the parts of JSON: nothing, a space, or a new line and its indentation. Without a bound models write spaces for ever.
WHITESPACE = r"(?: |\n {0,32})?"


class Grammars:
    """Of one tokenizer. May be used from several threads."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._loading, self._finding = Lock(), Lock()
        self._vocabulary: llguidance.LLTokenizer | None = None
        self._compiled: OrderedDict[Grammar, llguidance.LLMatcher] = OrderedDict()  # the last used last
        self._pool = ThreadPoolExecutor(1, "numatp-grammar")

    def compile(self, grammar: Grammar) -> "llguidance.LLMatcher":
        """At its start. Kept for the next who asks. UserError for what does not compile, and where llguidance is missing."""
        with self._finding:
            compiled = self._compiled.get(grammar)
        compiled = compiled or self._compile(grammar)  # which may take a second, for which nobody else waits
        with self._finding:
            self._compiled[grammar] = compiled
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > MOST_COMPILED:
                self._compiled.popitem(last=False)
        return compiled

    def matcher(self, grammar: Grammar, reasoning: Reasoning | None = None) -> "Matcher":
        """For one answer, which may begin with reasoning. UserError as of compile."""
        compiled = self.compile(grammar).deep_copy()
        return Matcher(compiled, self._tokenizer.vocab_size, self._tokenizer.eos_ids, self._pool, reasoning)

    def _compile(self, grammar: Grammar) -> "llguidance.LLMatcher":
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise UserError(MISSING) from None
        with self._loading:
            self._vocabulary = self._vocabulary or _vocabulary(self._tokenizer)
        try:
            described = _described(grammar)
            if grammar.kind == "json_schema" and _may_explode(grammar.text):
                _compile_apart(described)
            wrong = LLMatcher.validate_grammar(described, self._vocabulary)
        except ValueError as error:
            wrong = str(error)
        if wrong and not wrong.startswith("WARNING"):
            raise UserError(f"the grammar does not compile: {_first_line(wrong)}")
        return LLMatcher(self._vocabulary, described, log_level=0)


def _may_explode(schema: str) -> bool:
    return any(join in schema for join in JOINS) and sum(map(schema.count, PATTERNS)) > MOST_PATTERNS


def _compile_apart(described: str) -> None:
    """In a process that can be ended. ValueError if it does not come to an end."""
    try:
        done = subprocess.run([sys.executable, "-P", "-c", CHECK], input=described, text=True, capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ValueError(f"it takes more than {SECONDS:g} s: fewer patterns that must hold together") from None
    if done.returncode:
        raise ValueError("it takes too much memory: fewer patterns that must hold together")


def _described(grammar: Grammar) -> str:
    """In llguidance's own words. ValueError if it cannot be said in them."""
    from llguidance import LLMatcher
    from llguidance.gbnf_to_lark import gbnf_to_lark

    if grammar.kind == "json_schema":
        return LLMatcher.grammar_from_json_schema(grammar.text, overrides={"whitespace_pattern": WHITESPACE, "lenient": False})
    if grammar.kind == "regex":
        return LLMatcher.grammar_from_regex(grammar.text)
    text = grammar.text
    if grammar.kind == "gbnf":
        try:
            text = gbnf_to_lark(text)
        except Exception as error:  # whatever its parser meets
            raise ValueError(f"no GBNF: {error}") from None
    return LLMatcher.grammar_from_lark(text)


def _vocabulary(tokenizer: Tokenizer) -> "llguidance.LLTokenizer":
    from llguidance import LLTokenizer, TokenizerWrapper

    if not tokenizer.eos_ids:
        raise UserError("this model has no token that ends a text, without which an answer cannot follow a grammar")
    return LLTokenizer(TokenizerWrapper(_Words(tokenizer)), eos_token=sorted(tokenizer.eos_ids))


def _first_line(error: str) -> str:
    """Of what llguidance says, without the state that follows it."""
    return " ".join(error.partition("<state>")[0].split())[:300]


class _Words:
    """The vocabulary as llguidance reads it. A special token has its name, and a byte before it that no text has."""

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = min(tokenizer.eos_ids), tokenizer.bos
        self.special_token_ids = [
            id for id, kind in enumerate(tokenizer.kinds)
            if kind not in (NORMAL, USER_DEFINED, BYTE) or id in tokenizer.eos_ids
        ]  # fmt: skip
        special = set(self.special_token_ids)
        self.tokens = [
            token.encode(errors="replace") if id in special else tokenizer.token_bytes(id)
            for id, token in enumerate(tokenizer.tokens)
        ]

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):
            raise TypeError("a text")  # so that llguidance knows
        ids = self._tokenizer.encode(text, special=False)
        return [id for id in ids if id not in (self._tokenizer.bos, self._tokenizer.eos)]


class Matcher:
    """Of one answer. What is slow is done on another thread, beside the model's Step: take starts it, wait is for its end."""

    def __init__(
        self, matcher: "llguidance.LLMatcher", vocab: int, ends: Iterable[int], pool: ThreadPoolExecutor,
        reasoning: Reasoning | None = None,
    ):  # fmt: skip
        self._matcher, self._pool = matcher, pool
        self._reasoning = reasoning  # None: over
        self.mask = np.zeros((vocab + 31) // 32, np.int32)  # bit by token: whether it may come next
        self._ends = _bits(ends, self.mask)
        self.complete = False  # nothing but the end may
        self.error = ""  # why nothing may
        self.forced: list[int] = []  # what will come behind the last token, as far as it was known before that was there
        self._coming: list[int] = []  # what will come next
        self._done = pool.submit(self._compute)

    def take(self, token: int) -> None:
        """The token that came next."""
        self.forced = self._coming[1:] if self._coming[:1] == [token] else []
        self._done = self._pool.submit(self._advance, token)

    def wait(self) -> None:
        """For the mask that the last token makes."""
        self._done.result()

    def _advance(self, token: int) -> None:
        if self._reasoning:
            began = self._reasoning.opening is None
            if not self._reasoning.goes_on(token):
                self._reasoning = None
            if self._reasoning or began:
                self._compute()
                return
        self._matcher.consume_token(token)
        self._compute()

    def _compute(self) -> None:
        self._coming = []
        if self._reasoning and self._reasoning.opening is None:
            self.mask = ~self._ends  # the answer is still to come
            return
        if not self._matcher.is_error():
            self._matcher.unsafe_compute_mask_ptr(self.mask.ctypes.data, self.mask.nbytes)
        if self._matcher.is_error():
            self.mask[:] = 0
            self.error = f"no token of this model goes on in the answer's grammar ({_first_line(self._matcher.get_error())})"
            return
        # The text may end exactly where the grammar may.
        self.mask &= ~self._ends
        self.complete = not self.mask.any()
        if _is_one(self.mask):
            self._coming = self._matcher.compute_ff_tokens()
        if self._matcher.is_accepting():
            self.mask |= self._ends
        if self._reasoning and self._reasoning.opening is not None:
            self.mask |= _bits([self._reasoning.opening], self.mask)
            self.complete = False


def _bits(tokens: Iterable[int], like: np.ndarray) -> np.ndarray:
    """A mask of these alone."""
    mask = np.zeros_like(like)
    for token in tokens:
        mask.view(np.uint32)[token // 32] |= np.uint32(1 << token % 32)
    return mask


def _is_one(mask: np.ndarray) -> bool:
    """Whether it has one token."""
    words = mask[mask != 0]
    return len(words) == 1 and int(words[0]).bit_count() == 1
