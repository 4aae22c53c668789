"""The Step as it lies in the window: what rank 0 tells all ranks to compute, in one contiguous piece of int64 arrays."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StepShape:
    """How much one Step can hold; the same on every rank."""

    max_rows: int  # tokens of one Step
    max_sequences: int
    table_length: int  # cache blocks of one sequence

    @property
    def num_bytes(self) -> int:
        return 8 * (2 + 4 * self.max_rows + self.max_sequences * self.table_length)


class StepWindow:
    """Views of the Step at `address`. A row is one token of one sequence; its cache blocks are tables[sequences[row]]."""

    def __init__(self, shape: StepShape, memory: np.ndarray):
        """memory: int64 (shape.num_bytes // 8,)."""
        self.shape = shape
        rows = shape.max_rows
        parts = np.split(memory, np.cumsum([1, 1, rows, rows, rows, rows]))
        self.num_rows, self.num_logits, self.tokens, self.positions, self.sequences, self.logit_rows, tables = parts
        self.tables = tables.reshape(shape.max_sequences, shape.table_length)  # block numbers
