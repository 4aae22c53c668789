"""The kernels of an indexer, and attention to the tokens that it chooses, against numpy: more tokens than are chosen and fewer,
prompts and rows that decode, on any number of threads."""

import numpy as np
import pytest
from support.kernels import call

from numatp.kernels import sparse
from numatp.kernels.layout import CACHE_BLOCK
from numatp.kernels.scratch import SCRATCH_BYTES

EPSILON = np.finfo(np.float32).eps
LENGTH, TOP = 420, 150  # tokens of a sequence, and those that a row sees: neither are whole blocks
HEADS, SIZE, VALUE = 35, 48, 32  # more heads than go through a block together
INDEX_HEADS, INDEX = 20, 32
SPANS = [(1, 40, 130), (0, 1, 419), (1, 1, 90)]  # sequence, rows, first position


class Case:
    """Keys, values and the indexer's keys of two sequences in blocks that lie anywhere; queries of the spans' rows."""

    def __init__(self):
        rng = np.random.default_rng(0)
        self.length = -(-LENGTH // CACHE_BLOCK)
        self.tables = rng.permutation(2 * self.length).reshape(2, -1)
        self.keys = rng.standard_normal((2, LENGTH, SIZE)).astype(np.float16)  # which begin with the value
        self.blocks = np.full((2 * self.length, CACHE_BLOCK * (SIZE + VALUE + INDEX)), np.nan, np.float16)
        self.index = self.append_index(rng)
        for sequence in range(2):
            for block, place in enumerate(self.tables[sequence]):
                own = self.keys[sequence, block * CACHE_BLOCK : (block + 1) * CACHE_BLOCK]
                self.blocks[place, : CACHE_BLOCK * SIZE].reshape(SIZE, CACHE_BLOCK)[:, : len(own)] = own.T
                values = self.blocks[place, CACHE_BLOCK * SIZE : CACHE_BLOCK * (SIZE + VALUE)].reshape(CACHE_BLOCK, VALUE)
                values[: len(own)] = own[:, :VALUE]
        self.rows = [(sequence, first + i) for sequence, count, first in SPANS for i in range(count)]
        count = len(self.rows)
        self.q = rng.standard_normal((count, HEADS, SIZE)).astype(np.float32)
        self.index_q = rng.standard_normal((count, INDEX_HEADS, INDEX)).astype(np.float32)
        self.weights = rng.standard_normal((count, INDEX_HEADS)).astype(np.float32)

    def common(self):
        return {"tables": self.tables, "table_length": self.length, "block_stride": self.blocks.strides[0]}

    def append_index(self, rng):
        """The kernel's keys, and what they must be, float16 (2, LENGTH, INDEX)."""
        x = rng.standard_normal((2 * LENGTH, INDEX)).astype(np.float32) + np.float32(0.5)
        weight, bias = rng.uniform(0.5, 1.5, INDEX).astype(np.float32), rng.standard_normal(INDEX).astype(np.float32)
        angles = rng.standard_normal((2 * LENGTH, 8, 2)).astype(np.float32)
        exact = x.astype(np.float64)
        exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-3) * weight + bias
        a, b, c, s = exact[:, :8].copy(), exact[:, 8:16].copy(), angles[..., 0], angles[..., 1]
        exact[:, :8], exact[:, 8:16] = a * c - b * s, a * s + b * c
        call(
            sparse.append_index, x=x, x_stride=INDEX * 4, rows=np.array([2 * LENGTH]), size=INDEX, weight=weight, bias=bias,
            epsilon=1e-3, angles=angles, pairs=8, step=1, apart=8, positions=np.tile(np.arange(LENGTH), 2),
            sequences=np.arange(2).repeat(LENGTH), keys=self.blocks.view(np.uint8)[:, CACHE_BLOCK * (SIZE + VALUE) * 2 :],
            **self.common(),
        )  # fmt: skip
        assert np.abs(x - exact).max() <= 16 * EPSILON * np.abs(exact).max()
        kept = self.blocks[self.tables, CACHE_BLOCK * (SIZE + VALUE) :].reshape(2, -1, INDEX, CACHE_BLOCK)
        kept = kept.swapaxes(2, 3).reshape(2, -1, INDEX)[:, :LENGTH]
        assert (kept == x.astype(np.float16).reshape(kept.shape)).all()
        return kept.astype(np.float64)

    def scores(self, row):
        sequence, position = self.rows[row]
        products = np.maximum(self.index_q[row].astype(np.float64) @ self.index[sequence, : position + 1].T, 0)
        return self.weights[row].astype(np.float64) @ products

    def wanted(self, row, chosen):
        sequence, _ = self.rows[row]
        keys = self.keys[sequence][chosen].astype(np.float64)
        scores = 0.2 * self.q[row].astype(np.float64) @ keys.T
        p = np.exp(scores - scores.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True) @ keys[:, :VALUE]

    def run(self, threads):
        """(what was chosen (rows, TOP), the results (rows, HEADS, VALUE))."""
        count, rows, keys = len(self.rows), np.array([len(self.rows)]), self.blocks.view(np.uint8)
        positions, sequences = np.array([p for _, p in self.rows]), np.array([s for s, _ in self.rows])
        scratch = np.full((threads, SCRATCH_BYTES // 4 + 16), np.nan, np.float32)
        scores = np.full((count, self.length * CACHE_BLOCK), np.nan, np.float32)
        chosen = np.full((count, TOP), -1)
        call(
            sparse.score_tokens, threads, q=self.index_q, q_stride=INDEX_HEADS * INDEX * 4, rows=rows, heads=INDEX_HEADS,
            size=INDEX, weights=self.weights, weights_stride=INDEX_HEADS * 4, positions=positions, sequences=sequences,
            keys=keys[:, CACHE_BLOCK * (SIZE + VALUE) * 2 :], top=TOP, scratch=scratch, scratch_stride=scratch.strides[0],
            scores=scores, **self.common(),
        )  # fmt: skip
        bins = np.full((threads, sparse.BINS + LENGTH), -1)
        call(
            sparse.choose_tokens, threads, scores=scores, pitch=scores.shape[1], rows=rows, positions=positions, every=1, top=TOP,
            bins=bins, bins_stride=bins.strides[0], chosen=chosen,
        )  # fmt: skip
        return chosen, self.attend(chosen, 1, threads)

    def attend(self, chosen, every, threads):
        """(rows, HEADS, VALUE). chosen (rows, runs of `every` tokens)."""
        count, parts, keys = len(self.rows), sparse.attention, self.blocks.view(np.uint8)
        scratch = np.full((threads, SCRATCH_BYTES // 4 + 16), np.nan, np.float32)
        starts = np.cumsum([0, *(n for _, n, _ in SPANS)])
        spans = np.array([(s, start, n, p) for (s, n, p), start in zip(SPANS, starts, strict=False)])
        room = np.full((threads, CACHE_BLOCK * (SIZE + VALUE)), np.nan, np.float16)
        joined = np.full((len(SPANS), HEADS, parts.SPLITS, parts.part_bytes(VALUE) // 4), np.nan, np.float32)
        finished, out = np.zeros(len(SPANS), np.int64), np.full((count, HEADS, VALUE), np.nan, np.float32)
        call(
            sparse.sparse_attention, threads, q=self.q, q_stride=HEADS * SIZE * 4, heads=HEADS, head_size=SIZE, value_size=VALUE,
            scale=0.2, spans=spans, num_spans=np.array([len(spans)]), keys=keys, values=keys[:, CACHE_BLOCK * SIZE * 2 :],
            chosen=chosen, top=chosen.shape[1], every=every, scratch=scratch, scratch_stride=scratch.strides[0], room=room,
            room_stride=room.strides[0], parts=joined, finished=finished, out=out, **self.common(),
        )  # fmt: skip
        assert (finished == 0).all()
        return out


def test_rows_see_the_tokens_of_the_highest_scores():
    case = Case()
    chosen, out = case.run(3)
    for row, (_, position) in enumerate(case.rows):
        seen = np.arange(position + 1)
        if position >= TOP:
            scores = case.scores(row)
            seen = chosen[row]
            assert (np.diff(seen) > 0).all() and seen[0] >= 0 and seen[-1] <= position
            others = np.setdiff1d(np.arange(position + 1), seen)
            apart = scores[seen].min() - scores[others].max()
            assert apart >= -64 * EPSILON * np.abs(scores).max(), row  # nearly equal ones may change places
        wanted = case.wanted(row, seen)
        assert np.abs(out[row] - wanted).max() <= 64 * EPSILON * np.abs(wanted).max()
    again, other = case.run(1)
    assert (again == chosen).all() and (other.view(np.int32) == out.view(np.int32)).all()


@pytest.mark.parametrize("every", [4, 16])
def test_rows_see_the_runs_that_are_chosen_and_the_last_tokens(every):
    case, rng, top = Case(), np.random.default_rng(2), 96 // every
    chosen = np.full((len(case.rows), top), -1)
    for row, (_, position) in enumerate(case.rows):
        runs = (position + 1) // every
        chosen[row, : min(runs, top)] = np.sort(rng.permutation(runs)[:top])
    out = case.attend(chosen, every, 3)
    behind = set()
    for row, (_, position) in enumerate(case.rows):
        whole = (position + 1) // every * every
        seen = np.concatenate(
            [(chosen[row, chosen[row] >= 0, None] * every + np.arange(every)).ravel(), np.arange(whole, position + 1)]
        )
        behind.add(position + 1 - whole)
        wanted = case.wanted(row, seen)
        assert np.abs(out[row] - wanted).max() <= 64 * EPSILON * np.abs(wanted).max(), row
    assert behind == set(range(every))
    assert (case.attend(chosen, every, 1).view(np.int32) == out.view(np.int32)).all()


def test_of_equal_scores_the_first_are_chosen():
    scores = np.zeros((3, 128), np.float32)
    scores[0, ::3] = [-1, 2, -3, 5] * 10 + [-1, 2, -3]
    scores[1, 90:] = -np.arange(38)
    scores[2] = np.random.default_rng(0).standard_normal(128)
    chosen, bins, positions = np.full((3, 60), -1), np.empty((2, sparse.BINS + 128), np.int64), np.array([127, 99, 80])
    call(
        sparse.choose_tokens, 2, scores=scores, pitch=128, rows=np.array([3]), positions=positions, every=1, top=60, bins=bins,
        bins_stride=bins.strides[0], chosen=chosen,
    )  # fmt: skip
    for row, position in enumerate(positions):
        order = np.argsort(-scores[row, : position + 1], kind="stable")
        assert (chosen[row] == np.sort(order[:60])).all()
