"""The Step as it lies in the window: what rank 0 tells all ranks to compute, in one contiguous piece of int64 arrays."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from numatp.machine.tiles import LONG_PROMPT


@dataclass(frozen=True)
class StepShape:
    """How much one Step can hold; the same on every rank."""

    max_rows: int  # tokens of one Step
    max_sequences: int  # sequences that have a place in the caches
    table_length: int  # cache blocks of one sequence
    num_tables: int  # kinds of cache that are cut in blocks
    drafts: int = 0  # tokens that are guessed, each a span of its own

    @property
    def max_spans(self) -> int:
        return self.max_sequences + self.drafts

    @property
    def num_bytes(self) -> int:
        rows, sequences = self.max_rows, self.max_sequences
        return 8 * (8 + 5 * rows + 4 * self.max_spans + 6 * sequences + self.num_tables * sequences * self.table_length)


class Span(NamedTuple):
    """The next tokens of one sequence."""

    sequence: int  # its place, 0 .. max_sequences - 1
    tokens: list[int]
    position: int  # of the first token
    tables: Sequence[Sequence[int]]  # per kind of cache: block numbers, from the sequence's first block on
    want_logits: bool = True  # of the last token
    targets: Sequence[int] = ()  # instead of logits, score the last tokens as followed by these
    num_top: int = 0  # beside each target, as many of the most probable tokens are scored
    prompt: int = 0  # tokens of the prompt that these are a part of; 0: of none, or a token by itself


class StepWindow:
    """Views of a Step in memory. A row is one token of one sequence; a span is rows of one sequence that follow each other."""

    def __init__(self, shape: StepShape, memory: np.ndarray):
        """memory: int64 (shape.num_bytes // 8,)."""
        self.shape = shape
        rows, sequences = shape.max_rows, shape.max_sequences
        sizes = [2, 2, 1, 1, 1, 1, rows, rows, rows, rows, rows, 4 * shape.max_spans, 4 * sequences, 2 * sequences]
        parts = np.split(memory, np.cumsum(sizes))
        self.num_rows, self.num_logits = parts[:2]  # and how many of them, the first ones, are of long prompts
        self.num_spans, self.num_joined, self.num_copies, self.num_top = parts[2:6]
        self.tokens, self.positions, self.sequences = parts[6:9]  # per row
        self.logit_rows, self.targets = parts[9:11]  # per row that wants logits or a score: its row; the token to score
        self.spans = parts[11].reshape(shape.max_spans, 4)  # sequence, first row, number of rows, first position
        self.joined = parts[12].reshape(sequences, 4)  # the same, all spans of a sequence as one
        self.copies = parts[13].reshape(sequences, 2)  # of states of recurrent layers: from slot, to slot
        self.tables = parts[14].reshape(shape.num_tables, sequences, shape.table_length)  # block numbers

    def write(self, spans: list[Span]) -> None:
        """One token at least and max_rows at most in all, those of the longest prompts first. Several spans of one sequence follow
        each other, as tokens do.
        """
        tokens, positions, sequences = list[int](), list[int](), list[int]()
        logit_rows, targets = list[int](), list[int]()
        described, joined = list[list[int]](), list[list[int]]()
        many = many_targets = 0
        before: Span | None = None
        for span in spans:
            row, count = len(tokens), len(span.tokens)
            if span.prompt >= LONG_PROMPT:
                assert count > 1 and many == row, "rows of long prompts come first, and none is a Step or a span of its own"
                many, many_targets = many + count, many_targets + len(span.targets)
            tokens += span.tokens
            positions += range(span.position, span.position + count)
            sequences += [span.sequence] * count
            described.append([span.sequence, row, count, span.position])
            goes_on = before is not None and before.sequence == span.sequence
            if goes_on:
                joined[-1][2] += count
            else:
                joined.append([*described[-1]])
            if not goes_on or before is None or span.tables is not before.tables:
                for table, blocks in zip(self.tables, span.tables, strict=True):
                    table[span.sequence, : len(blocks)] = blocks
            if span.targets:
                logit_rows += range(row + count - len(span.targets), row + count)
                targets += span.targets
            elif span.want_logits:
                logit_rows.append(row + count - 1)
                targets.append(0)
            before = span
        self.tokens[: len(tokens)] = tokens
        self.positions[: len(tokens)] = positions
        self.sequences[: len(tokens)] = sequences
        self.spans[: len(spans)] = described
        self.joined[: len(joined)] = joined
        self.logit_rows[: len(logit_rows)] = logit_rows
        self.targets[: len(targets)] = targets
        self.num_rows[:] = len(tokens), many
        self.num_logits[:] = len(logit_rows), many_targets
        self.num_spans[0], self.num_joined[0] = len(spans), len(joined)
        self.num_top[0] = max(span.num_top for span in spans)
