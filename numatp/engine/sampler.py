"""From the logits of a Step to the next tokens, on rank 0."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from numatp.engine.sampling import SamplingParams
from numatp.engine.team import Team
from numatp.engine.token import Token
from numatp.kernels.layout import MOST_TOP
from numatp.kernels.sampling import RECENT, sample
from numatp.program.builder import Op, Program

CHOICE = np.dtype(
    [
        ("row", "i8"),
        ("vocab", "i8"),
        ("temperature", "f8"),
        ("top_k", "i8"),
        ("top_p", "f8"),
        ("min_p", "f8"),
        ("uniform", "f8"),
        ("repeat_penalty", "f8"),
        ("frequency_penalty", "f8"),
        ("presence_penalty", "f8"),
        ("recent", "u8"),
        ("num_recent", "i8"),
        ("biases", "u8"),
        ("num_biases", "i8"),
        ("counts", "u8"),
        ("num_counts", "i8"),
        ("num_top", "i8"),
        ("mask", "u8"),
    ]
)
CHOSEN = np.dtype([("token", "i8"), ("logprob", "f8"), ("top", "i8", MOST_TOP), ("top_logprobs", "f8", MOST_TOP)])
PAIR = np.dtype([("token", "i8"), ("value", "f8")])
NO_PAIRS = np.zeros(0, PAIR)
NO_TOKENS = np.zeros(0, np.int64)


@dataclass
class Choice:
    """How to choose from one row of logits: the number from [0, 1) that decides, the tokens so far."""

    params: SamplingParams
    uniform: float
    tokens: list[int]
    vocab: int | None = None  # tokens that may be chosen are those below it; None: all
    biases: np.ndarray = field(default_factory=lambda: NO_PAIRS)  # PAIR: what is added to logits, -inf: not to be chosen
    counts: np.ndarray = field(default_factory=lambda: NO_PAIRS)  # PAIR: how often each token was generated
    mask: np.ndarray | None = None  # int32 (vocab / 32,): bit by token, whether it may be chosen


class Sampler:
    """logits: float32 (rows, at least vocab). team: whose threads share the rows; without one it is all done by the caller's."""

    def __init__(self, logits: np.ndarray, vocab: int, team: Team | None = None):
        threads = team.threads if team else 1
        self._logits, self._vocab = logits, vocab  # the kernel knows their addresses only
        self._choices, self._recent = np.zeros(len(logits), CHOICE), np.zeros((len(logits), RECENT), np.int64)
        self._kept, self._changed = np.zeros((threads, vocab), np.int64), np.zeros((threads, vocab), np.float32)
        self._chosen = np.zeros(len(logits), CHOSEN)
        self._tokens = self._chosen["token"]
        self._args = sample.record(
            logits=logits.ctypes.data, stride=logits.strides[0], width=vocab, count=0, choices=self._choices.ctypes.data,
            kept=self._kept.ctypes.data, kept_stride=self._kept.strides[0], changed=self._changed.ctypes.data,
            changed_stride=self._changed.strides[0], out=self._chosen.ctypes.data,
        )  # fmt: skip
        self._args_at = self._args.ctypes.data
        self._alone = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(sample.address)
        self._team, self._program = team, Program("sample", [Op(sample.name, sample, self._args, [], [])], 0)

    def choose(self, choices: list[Choice], rows: Sequence[int] | None = None) -> list[Token]:
        """The next token after each row of logits, with the id NO_NUMBERS or NO_TOKEN if there is none. rows: of the choices,
        None is the first ones."""
        tops = []  # by choice: so many of the most probable tokens are told, -1: no log-probability at all
        for i, choice in enumerate(choices):
            p, recent = choice.params, NO_TOKENS
            if p.repeat_penalty != 1:
                last = choice.tokens[-RECENT:]
                recent = self._recent[i, : len(last)]
                recent[:] = last
            vocab = self._vocab if choice.vocab is None else min(choice.vocab, self._vocab)
            tops.append(-1 if p.logprobs is None else min(p.logprobs, vocab))
            self._choices[i] = (
                i if rows is None else rows[i], vocab, p.temperature, p.top_k, p.top_p, p.min_p, choice.uniform,
                p.repeat_penalty, p.frequency_penalty, p.presence_penalty, _address(recent), len(recent),
                _address(choice.biases), len(choice.biases), _address(choice.counts), len(choice.counts),
                tops[i], _address(choice.mask),
            )  # fmt: skip
        self._args["count"] = len(choices)
        if self._team and len(choices) > 1:
            self._team.run_program(self._program)
        else:
            self._alone(self._args_at, 0, 1)
        return [self._told(i, token, tops[i]) for i, token in enumerate(self._tokens[: len(choices)].tolist())]

    def _told(self, i: int, token: int, most: int) -> Token:
        if most < 0 or token < 0:
            return Token(token)
        chosen = self._chosen[i]
        top = zip(chosen["top"][:most].tolist(), chosen["top_logprobs"][:most].tolist(), strict=True)
        return Token(token, float(chosen["logprob"]), tuple(top))


def _address(array: np.ndarray | None) -> int:
    """0 where there is nothing in it, as mostly: numpy takes a microsecond to tell an address."""
    return array.ctypes.data if array is not None and len(array) else 0
