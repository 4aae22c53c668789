"""A Step in two halves, which take turns: while the sums of one travel between hosts, the other is computed. Where hosts hold
layers, the first half goes on to the next host while the second is computed.

The halves are recorded as two programs, each with its own Step and memory. The rows of a prompt have the same bits however it is
cut into Steps, and a half is one: what the second reads of the first, keys, values and states, that has written in its turn before.
"""

from dataclasses import dataclass
from itertools import chain, pairwise, zip_longest

import numpy as np

from numatp.kernels.rows import GROUP
from numatp.machine.tiles import LONG_PROMPT
from numatp.program.builder import Op, Program
from numatp.program.layout import LINE, Layout
from numatp.program.step import Span

LEAST = 64  # rows of the first half: weights are read twice


def halve(spans: list[Span]) -> tuple[list[Span], list[Span]] | None:
    """(the first half of the rows of long prompts, whose logits nobody wants; the rest), None where these are few."""
    half = sum(len(span.tokens) for span in spans) // 2
    if half < LEAST:
        return None
    first: list[Span] = []
    rest: list[Span] = []
    taken = 0
    for span in spans:
        # Whole groups, and two rows at least stay: a prompt's row is never a span of its own.
        count = min(half - taken, len(span.tokens) - 2) // GROUP * GROUP if span.prompt >= LONG_PROMPT else 0
        if count > 0:
            first.append(span._replace(tokens=span.tokens[:count], want_logits=False))
            taken += count
            span = span._replace(tokens=span.tokens[count:], position=span.position + count)
        rest.append(span)
    return (first, rest) if taken >= LEAST else None


@dataclass(frozen=True)
class Layouts:
    """Both halves' memory, one behind the other."""

    first: Layout
    second: Layout

    @property
    def num_bytes(self) -> int:
        return self._begin + self.second.num_bytes

    @property
    def _begin(self) -> int:
        return -(-self.first.num_bytes // LINE) * LINE

    def place(self, address: int) -> None:
        self.first.place(address)
        self.second.place(address + self._begin)


def in_turns(name: str, first: Program, second: Program) -> Program:
    """One program of both, whose ops become its own."""
    ops: list[Op] = []
    for turn in chain.from_iterable(zip_longest(_turns(first), _turns(second))):
        if turn:
            turn[0].barrier = True  # what the other half did in between was not counted
        ops += turn
    num_syncs = 0
    for op in ops:
        if op.name == "sync":
            num_syncs += 1
            assert isinstance(op.arguments, np.ndarray)
            op.arguments["ordinal"] = num_syncs
    assert isinstance(first.layout, Layout) and isinstance(second.layout, Layout)
    return Program(
        name, ops, num_syncs, first.keep + second.keep, layout=Layouts(first.layout, second.layout),
        crossings=first.crossings + second.crossings,
    )  # fmt: skip


def _turns(program: Program) -> list[list[Op]]:
    return [program.ops[start:end] for start, end in pairwise([0, *program.turns, len(program.ops)])]
