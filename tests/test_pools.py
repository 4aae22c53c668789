"""Keys that stand for runs of tokens, against numpy: prompts in pieces, rows that decode, guesses that are taken back."""

import numpy as np
import pytest
from support.kernels import call

from numatp.kernels import pools
from numatp.kernels.layout import CACHE_BLOCK
from numatp.kernels.states import ENTRY_TILE, PIECE, conv_rows, pool_bytes

EPSILON = np.finfo(np.float32).eps
LENGTH, SIZE = 300, 48
TABLES = np.random.default_rng(5).permutation(2 * 5).reshape(2, 5)  # of two sequences
SEQUENCE = 1


class Case:
    def __init__(self, every):
        rng = np.random.default_rng(0)
        self.every = every
        self.both = rng.standard_normal((LENGTH, 2 * SIZE)).astype(np.float32) * np.float32(2)
        self.places = rng.standard_normal((every, SIZE)).astype(np.float32)
        # A slot and blocks that somebody had before.
        self.state = np.full((2, pool_bytes(SIZE, every) // 4), np.nan, np.float32)
        self.kept = np.full((10, SIZE, ENTRY_TILE), np.nan, np.float16)

    def step(self, first, rows, threads):
        """rows: keys beside gates of the tokens from `first` on."""
        spans = np.array([(SEQUENCE, 0, len(rows), first)])
        call(
            pools.pool_keys, threads, x=rows, x_stride=rows.strides[0], size=SIZE, every=self.every, places=self.places,
            kept=conv_rows(self.every), state=self.state, state_stride=self.state.strides[0], spans=spans, num_spans=np.array([1]),
            tables=TABLES, table_length=5, keys=self.kept, block_stride=self.kept.strides[0],
        )  # fmt: skip

    def check(self):
        in_block = CACHE_BLOCK // self.every
        for run in range(LENGTH // self.every):
            own = self.both[run * self.every : (run + 1) * self.every].astype(np.float64)
            gates = own[:, SIZE:] + self.places
            weights = np.exp(gates - gates.max(0))
            wanted = (weights * own[:, :SIZE]).sum(0) / weights.sum(0)
            got = self.kept[TABLES[SEQUENCE, run // in_block], :, run % in_block]
            assert np.abs(got - wanted).max() <= 2.0**-11 * np.abs(wanted).max() + 16 * EPSILON, run
        assert np.isnan(self.state[1 - SEQUENCE]).all()


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("every", [4, 8, 16])
def test_each_run_has_the_mean_of_its_tokens(every, threads):
    case, first = Case(every), 0
    for count in (1, 2, 125, 1, 1, 1, 1, 60, 108):
        case.step(first, case.both[first : first + count], threads)
        first += count
    assert first == LENGTH
    case.check()


@pytest.mark.parametrize("guesses", range(1, PIECE))
def test_guesses_are_taken_back(guesses):
    """All but the last token of a piece may be wrong; the state is what comes of the others."""
    case, first, rng = Case(4), 0, np.random.default_rng(1)
    while first < LENGTH:
        wrong = min(guesses, PIECE - 1 - first % PIECE, LENGTH - first - 1)
        rows = rng.standard_normal((1 + wrong, 2 * SIZE)).astype(np.float32)
        rows[0] = case.both[first]
        case.step(first, rows, 2)
        first += 1
    case.check()


def test_the_normalised_half():
    rng, count = np.random.default_rng(3), 7
    both = rng.standard_normal((count, 2 * SIZE)).astype(np.float32) + np.float32(0.5)
    weight, bias = rng.uniform(0.5, 1.5, SIZE).astype(np.float32), rng.standard_normal(SIZE).astype(np.float32)
    before, exact = both.copy(), both[:, :SIZE].astype(np.float64)
    exact = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-3) * weight + bias
    call(
        pools.normalize_keys, 3, x=both, x_stride=both.strides[0], rows=np.array([count]), size=SIZE, weight=weight, bias=bias,
        epsilon=1e-3,
    )  # fmt: skip
    assert np.abs(both[:, :SIZE] - exact).max() <= 16 * EPSILON * np.abs(exact).max()
    assert (both[:, SIZE:] == before[:, SIZE:]).all()
