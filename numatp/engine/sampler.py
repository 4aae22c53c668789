"""From the logits of a Step to the next tokens, on rank 0."""

import ctypes
from dataclasses import dataclass

import numpy as np

from numatp.engine.sampling import SamplingParams
from numatp.kernels.sampling import RECENT, sample

CHOICE = np.dtype(
    [
        ("temperature", "f8"),
        ("top_k", "i8"),
        ("top_p", "f8"),
        ("min_p", "f8"),
        ("penalty", "f8"),
        ("uniform", "f8"),
        ("recent", "i8"),
        ("vocab", "i8"),
    ]
)


@dataclass
class Choice:
    """One row of logits: how to choose, the number from [0, 1) that decides, the tokens so far."""

    params: SamplingParams
    uniform: float
    tokens: list[int]
    vocab: int | None = None  # tokens that may be chosen are those below it; None: all


class Sampler:
    """logits: float32 (rows, at least vocab). num_rows: int64 (1,), rows of the last Step."""

    def __init__(self, logits: np.ndarray, num_rows: np.ndarray, vocab: int):
        self._inputs, self._vocab = (logits, num_rows), vocab  # the kernel knows their addresses only
        self._choices, self._recent = np.zeros(len(logits), CHOICE), np.zeros((len(logits), RECENT), np.int64)
        self._kept, self._tokens = np.zeros(vocab, np.int64), np.zeros(len(logits), np.int64)
        self._args = sample.record(
            logits=logits.ctypes.data, stride=logits.strides[0], rows=num_rows.ctypes.data,
            choices=self._choices.ctypes.data, recent=self._recent.ctypes.data, kept=self._kept.ctypes.data,
            out=self._tokens.ctypes.data,
        )  # fmt: skip
        self._sample = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(sample.address)

    def choose(self, choices: list[Choice]) -> list[int]:
        """The next token after each row of logits, or NO_NUMBERS; the logits are changed by a repeat penalty."""
        for row, choice in enumerate(choices):
            p, recent = choice.params, choice.tokens[-RECENT:]
            vocab = self._vocab if choice.vocab is None else min(choice.vocab, self._vocab)
            self._choices[row] = (p.temperature, p.top_k, p.top_p, p.min_p, p.repeat_penalty, choice.uniform, len(recent), vocab)
            if p.repeat_penalty != 1:
                self._recent[row, : len(recent)] = recent
        self._sample(self._args.ctypes.data, 0, 1)
        return self._tokens[: len(choices)].tolist()
