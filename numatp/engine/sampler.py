"""From the logits of a Step to the next tokens, on rank 0."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from numatp.engine.sampling import SamplingParams
from numatp.kernels.sampling import RECENT, sample

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
    ]
)
PAIR = np.dtype([("token", "i8"), ("value", "f8")])
NO_PAIRS = np.zeros(0, PAIR)


@dataclass
class Choice:
    """How to choose from one row of logits: the number from [0, 1) that decides, the tokens so far."""

    params: SamplingParams
    uniform: float
    tokens: list[int]
    vocab: int | None = None  # tokens that may be chosen are those below it; None: all
    biases: np.ndarray = field(default_factory=lambda: NO_PAIRS)  # PAIR: what is added to logits, -inf: not to be chosen
    counts: np.ndarray = field(default_factory=lambda: NO_PAIRS)  # PAIR: how often each token was generated


class Sampler:
    """logits: float32 (rows, at least vocab)."""

    def __init__(self, logits: np.ndarray, vocab: int):
        self._logits, self._vocab = logits, vocab  # the kernel knows their addresses only
        self._choices, self._recent = np.zeros(len(logits), CHOICE), np.zeros((len(logits), RECENT), np.int64)
        self._kept, self._changed = np.zeros(vocab, np.int64), np.zeros(vocab, np.float32)
        self._tokens = np.zeros(len(logits), np.int64)
        self._args = sample.record(
            logits=logits.ctypes.data, stride=logits.strides[0], count=0, choices=self._choices.ctypes.data,
            kept=self._kept.ctypes.data, kept_stride=self._kept.nbytes, changed=self._changed.ctypes.data,
            changed_stride=self._changed.nbytes, out=self._tokens.ctypes.data,
        )  # fmt: skip
        self._sample = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(sample.address)

    def choose(self, choices: list[Choice], rows: Sequence[int] | None = None) -> list[int]:
        """The next token after each row of logits, or NO_NUMBERS or NO_TOKEN. rows: of the choices, None is the first ones."""
        for i, choice in enumerate(choices):
            p, recent = choice.params, choice.tokens[-RECENT:]
            vocab = self._vocab if choice.vocab is None else min(choice.vocab, self._vocab)
            self._choices[i] = (
                i if rows is None else rows[i], vocab, p.temperature, p.top_k, p.top_p, p.min_p, choice.uniform,
                p.repeat_penalty, p.frequency_penalty, p.presence_penalty, self._recent[i].ctypes.data, len(recent),
                choice.biases.ctypes.data, len(choice.biases), choice.counts.ctypes.data, len(choice.counts),
            )  # fmt: skip
            if p.repeat_penalty != 1:
                self._recent[i, : len(recent)] = recent
        self._args["count"] = len(choices)
        self._sample(self._args.ctypes.data, 0, 1)
        return self._tokens[: len(choices)].tolist()
