"""Steps in two halves: which rows go ahead, and which way is taken."""

import time

import numpy as np
import pytest

from numatp.engine import ways
from numatp.machine.tiles import LONG_PROMPT
from numatp.program.builder import Op, Program
from numatp.program.halves import LEAST, halve, in_turns
from numatp.program.layout import Layout
from numatp.program.step import Span


def span(sequence, count, prompt=None, first=0, **more):
    return Span(sequence, list(range(first, first + count)), first, [[]], prompt=count if prompt is None else prompt, **more)


def rows(spans):
    return [(one.sequence, one.position, len(one.tokens), one.want_logits) for one in spans]


def test_half_of_a_prompt_goes_ahead():
    first, rest = halve([span(3, 512, 1000, first=64)])
    assert rows(first) == [(3, 64, 256, False)] and rows(rest) == [(3, 320, 256, True)]
    assert first[0].tokens + rest[0].tokens == list(range(64, 576)) and first[0].prompt == rest[0].prompt == 1000


def test_rows_whose_logits_are_wanted_stay():
    """Of several prompts, and of who decodes beside them."""
    spans = [span(0, 200, 300, want_logits=False), span(1, 150), span(2, 20), span(3, 1, 0), span(4, 1, 0)]
    first, rest = halve(spans)
    assert rows(first) == [(0, 0, 176, False)]  # of 372 rows, in groups of 16
    assert rows(rest) == [(0, 176, 24, False), (1, 0, 150, True), (2, 0, 20, True), (3, 0, 1, True), (4, 0, 1, True)]
    first, rest = halve([span(0, 66), span(1, 66), span(2, 66)])
    assert [count for *_, count, _ in rows(first)] == [64, 32] and [count for *_, count, _ in rows(rest)] == [2, 34, 66]


def test_no_row_of_a_prompt_is_a_span_of_its_own():
    first, rest = halve([span(0, 65), span(1, 65), span(2, 1, 0)])
    assert all(len(one.tokens) > 1 for one in first) and [len(one.tokens) for one in rest] == [17, 49, 1]


@pytest.mark.parametrize("spans", [[span(0, 2 * LEAST - 1)], [span(i, LONG_PROMPT - 1) for i in range(16)], [span(0, 1, 0)]])
def test_few_rows_stay_together(spans):
    assert halve(spans) is None


def half_program(name, turns, syncs):
    """Ops of a name each, the second of which meets other ranks, and where they may rest."""
    ops = [Op(f"{name}{i}", 0, np.zeros(1), [], []) for i in range(2 * len(turns) + 2)]
    for i in range(1, len(ops), 2):
        ops[i] = Op("sync", 0, np.array([(7, i)], dtype=[("team", np.uint64), ("ordinal", np.int64)]), [], [])
    return Program(name, ops, syncs, [name], layout=Layout([], [], 1), crossings=len(turns), turns=turns)


def test_halves_take_turns():
    """Whoever takes over waits for all threads, and the ranks of a host meet in one order."""
    made = in_turns("both", half_program("a", [2, 4], 3), half_program("b", [2, 4], 3))
    names = [op.name for op in made.ops]
    assert [name for name in names if name != "sync"] == ["a0", "b0", "a2", "b2", "a4", "b4"] and names[1::2] == ["sync"] * 6
    assert all(op.barrier for op in made.ops[::2]) and made.num_syncs == 6 and made.crossings == 4 and made.keep == ["a", "b"]
    assert [int(op.arguments["ordinal"][0]) for op in made.ops[1::2]] == [1, 2, 3, 4, 5, 6]


def test_halves_that_never_rest_follow_each_other():
    made = in_turns("both", half_program("a", [], 1), half_program("b", [], 1))
    assert [op.name for op in made.ops] == ["a0", "sync", "b0", "sync"] and [op.barrier for op in made.ops][2]


@pytest.mark.parametrize("faster", [False, True])
def test_the_faster_way_is_taken(monkeypatch, faster):
    now, seen = [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    both = ways.TwoWays()
    for number in range(20):
        with both.one_step(100 + number) as in_halves:
            now[0] += (100 + number) * (1 if in_halves == faster else 2) * (3 if number < 2 else 1)  # the first ones are slow
        seen.append(in_halves)
    assert seen.count(not faster) == ways.TRIES and set(seen[2 * ways.TRIES :]) == {faster}
