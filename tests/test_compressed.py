"""The kernels of compressed attention and of hyper-connections against numpy: entries of few tokens and of more than a block has,
prompts in pieces and rows that decode, on any number of threads."""

import numpy as np
import pytest
from support.kernels import call

from numatp.kernels import compressed, streams
from numatp.kernels.layout import CACHE_BLOCK
from numatp.kernels.scratch import SCRATCH_BYTES
from numatp.kernels.states import ENTRY_TILE, MIXES, STREAMS, pooled_bytes

EPSILON = np.finfo(np.float32).eps
LENGTH, SIZE, HEADS, WINDOW, PAIRS = 420, 48, 35, 90, 8
PIECES = [1, 3, 125, 1, 0, 130, 40, 120]  # rows of each Step: LENGTH together
TABLES = np.random.default_rng(5).permutation(2 * 7).reshape(2, 7)  # of two sequences


def pooled(values, gates, every, overlapping):
    """float64 (LENGTH // every, SIZE): of each channel a mean by the softmax of its gates over an entry's tokens."""
    made = []
    for entry in range(LENGTH // every):
        own = slice(entry * every, entry * every + every)
        v, g = values[own, -SIZE:], gates[own, -SIZE:]
        if overlapping and entry:
            before = slice(own.start - every, own.start)
            v, g = np.concatenate([values[before, :SIZE], v]), np.concatenate([gates[before, :SIZE], g])
        weights = np.exp(g - g.max(0))
        made.append((weights * v).sum(0) / weights.sum(0))
    return np.array(made)


def normalized(x, weight, epsilon):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * weight


def turned(x, positions, frequencies):
    """The last pairs, which are neighbours."""
    x = x.copy()
    angles = positions[:, None] * frequencies
    a, b = x[:, -2 * PAIRS :: 2].copy(), x[:, -2 * PAIRS + 1 :: 2].copy()
    x[:, -2 * PAIRS :: 2], x[:, -2 * PAIRS + 1 :: 2] = (
        a * np.cos(angles) - b * np.sin(angles),
        a * np.sin(angles) + b * np.cos(angles),
    )
    return x


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize(("every", "overlapping"), [(4, True), (16, False), (64, False), (128, False)])
def test_entries_are_those_of_their_tokens(every, overlapping, threads):
    """In pieces of any length, of a sequence whose slot somebody had before."""
    rng, channels = np.random.default_rng(0), SIZE * (1 + overlapping)
    both = rng.standard_normal((LENGTH, 2 * channels)).astype(np.float32) * np.float32(3)
    places = rng.standard_normal((every, channels)).astype(np.float32)
    weight, frequencies = rng.uniform(0.5, 1.5, SIZE).astype(np.float32), 100.0 ** -np.linspace(0, 1, PAIRS)
    gates = both[:, channels:].astype(np.float64) + np.tile(places, (-(-LENGTH // every), 1))[:LENGTH]
    exact = pooled(both[:, :channels].astype(np.float64), gates, every, overlapping)
    exact = turned(normalized(exact, weight, 1e-3), np.arange(len(exact)) * every, frequencies)
    state = np.full((2, pooled_bytes(SIZE, overlapping) // 4), np.nan, np.float32)
    in_block = max(CACHE_BLOCK // every, 1)
    kept, columns = (np.full((14, 5000), np.nan, np.float16) for _ in range(2))
    first, sequence = 0, 1
    for count in PIECES:
        x, out = both[first : first + count], np.full((count, SIZE), np.nan, np.float32)
        spans = np.array([(sequence, 0, count, first)])
        call(
            compressed.compress, threads, x=x, x_stride=both.strides[0], gates=both[first:, channels:], size=SIZE,
            overlapping=overlapping, every=every, places=places, state=state, state_stride=state.strides[0], spans=spans,
            num_spans=np.array([1]), out=out,
        )  # fmt: skip
        for target, by_columns in ((kept, 0), (columns, 1)) if every >= 4 and in_block <= ENTRY_TILE else ():
            call(
                compressed.append_entry, threads, x=out.copy(), rows=np.array([count]), size=SIZE, every=every, weight=weight,
                epsilon=1e-3, frequencies=frequencies, pairs=PAIRS, positions=np.arange(first, first + count),
                sequences=np.full(count, sequence), tables=TABLES, table_length=7, kept=target, block_stride=target.strides[0],
                by_columns=by_columns,
            )  # fmt: skip
        first += count
    assert first == LENGTH
    assert np.isnan(state[0]).all()
    for entry, wanted in enumerate(exact):
        last = entry * every + every - 1
        block, place = TABLES[sequence, last // CACHE_BLOCK], entry % in_block
        rows = kept[block, : in_block * SIZE].reshape(in_block, SIZE)
        keys = columns[block, : ENTRY_TILE * SIZE].reshape(SIZE, ENTRY_TILE)
        assert np.abs(rows[place] - wanted).max() <= 2.0**-11 * np.abs(wanted).max() + 64 * EPSILON
        assert (keys[:, place] == rows[place]).all()


class Case:
    """Rows of tokens and entries of two sequences, and queries."""

    SPANS = ((1, 30, 150), (0, 1, 419), (1, 1, 12))  # sequence, rows, first position

    def __init__(self, every):
        rng = np.random.default_rng(1)
        self.every, self.in_block = every, max(CACHE_BLOCK // every, 1)
        self.tokens = rng.standard_normal((2, LENGTH, SIZE)).astype(np.float16)
        self.entries = rng.standard_normal((2, LENGTH // every, SIZE)).astype(np.float16)
        self.kept, self.far = (np.full((14, CACHE_BLOCK * SIZE), np.nan, np.float16) for _ in range(2))
        for sequence in range(2):
            for token in range(LENGTH):
                place = token % CACHE_BLOCK * SIZE
                self.kept[TABLES[sequence, token // CACHE_BLOCK], place : place + SIZE] = self.tokens[sequence, token]
            for entry in range(LENGTH // every):
                place = entry % self.in_block * SIZE
                block = TABLES[1 - sequence, (entry * every + every - 1) // CACHE_BLOCK]  # these have tables of their own
                self.far[block, place : place + SIZE] = self.entries[sequence, entry]
        self.rows = [(sequence, first + i) for sequence, count, first in self.SPANS for i in range(count)]
        self.q = rng.standard_normal((len(self.rows), HEADS, SIZE)).astype(np.float32)
        self.sinks = rng.standard_normal(HEADS).astype(np.float32)

    def wanted(self, row, chosen):
        sequence, position = self.rows[row]
        keys = [self.tokens[sequence, max(position + 1 - WINDOW, 0) : position + 1]]
        count = (position + 1) // self.every
        keys.append(self.entries[sequence, :count] if chosen is None else self.entries[sequence][chosen[chosen >= 0]])
        keys = np.concatenate(keys).astype(np.float64)
        scores = np.concatenate([0.2 * self.q[row].astype(np.float64) @ keys.T, self.sinks[:, None]], 1)
        p = np.exp(scores - scores.max(1, keepdims=True))
        return (p / p.sum(1, keepdims=True))[:, :-1] @ keys

    def run(self, threads, chosen):
        parts, spans = compressed.attention, []
        for sequence, count, first in self.SPANS:
            spans.append((sequence, sum(span[2] for span in spans), count, first))
        scratch = np.full((threads, SCRATCH_BYTES // 4 + 16), np.nan, np.float32)
        room = np.full((threads, 2 * CACHE_BLOCK * SIZE), np.nan, np.float16)
        joined = np.full((len(spans), HEADS, parts.SPLITS, parts.part_bytes(SIZE) // 4), np.nan, np.float32)
        finished, out = np.zeros(len(spans), np.int64), np.full((len(self.rows), HEADS, SIZE), np.nan, np.float32)
        call(
            compressed.compressed_attention, threads, q=self.q, q_stride=HEADS * SIZE * 4, heads=HEADS, size=SIZE, scale=0.2,
            sinks=self.sinks, spans=np.array(spans), num_spans=np.array([len(spans)]), table_length=7, tables=TABLES,
            kept=self.kept, block_stride=self.kept.strides[0], window=WINDOW, entry_tables=TABLES[::-1].copy(), entries=self.far,
            entry_stride=self.far.strides[0], every=self.every, choosing=chosen is not None,
            chosen=np.zeros(1, np.int64) if chosen is None else chosen, top=0 if chosen is None else chosen.shape[1],
            scratch=scratch, scratch_stride=scratch.strides[0], room=room, room_stride=room.strides[0], parts=joined,
            finished=finished, out=out,
        )  # fmt: skip
        assert (finished == 0).all()
        return out


@pytest.mark.parametrize(("every", "top"), [(4, 0), (4, 70), (128, 0)])
def test_rows_see_the_last_tokens_and_entries(every, top):
    case, chosen = Case(every), None
    if top:
        rng, chosen = np.random.default_rng(2), np.full((len(case.rows), top), -1)
        for row, (_, position) in enumerate(case.rows):
            entries = (position + 1) // every
            own = np.arange(entries) if entries <= top else np.sort(rng.permutation(entries)[:top])
            chosen[row, : len(own)] = own
    out = case.run(3, chosen)
    for row in range(len(case.rows)):
        wanted = case.wanted(row, None if chosen is None else chosen[row])
        assert np.abs(out[row] - wanted).max() <= 64 * EPSILON * np.abs(wanted).max(), row
    assert (case.run(1, chosen).view(np.int32) == out.view(np.int32)).all()


def test_scores_of_entries():
    """Of rows that have more than are chosen."""
    rng, heads, every, top = np.random.default_rng(3), 8, 4, 20
    keys = rng.standard_normal((2, LENGTH // every, SIZE)).astype(np.float16)
    kept = np.full((14, SIZE, ENTRY_TILE), np.nan, np.float16)
    for sequence in range(2):
        for entry in range(LENGTH // every):
            kept[TABLES[sequence, entry // ENTRY_TILE], :, entry % ENTRY_TILE] = keys[sequence, entry]
    positions, sequences = np.array([419, 82, 83, 200]), np.array([1, 0, 0, 1])
    q, weights = rng.standard_normal((4, heads, SIZE)).astype(np.float32), rng.standard_normal((4, heads)).astype(np.float32)
    found = []
    for threads in (1, 3):
        scores = np.full((4, 112), np.nan, np.float32)
        call(
            compressed.score_entries, threads, q=q, q_stride=q.strides[0], rows=np.array([4]), heads=heads, size=SIZE,
            weights=weights, weights_stride=weights.strides[0], positions=positions, sequences=sequences, tables=TABLES,
            table_length=7, keys=kept, block_stride=kept.strides[0], every=every, top=top, pitch=112, scores=scores,
        )  # fmt: skip
        found.append(scores)
    assert (found[0].view(np.int32) == found[1].view(np.int32)).all()
    for row, (position, sequence) in enumerate(zip(positions, sequences, strict=True)):
        count = (position + 1) // every
        if count <= top:
            assert np.isnan(found[0][row]).all()
            continue
        wanted = weights[row].astype(np.float64) @ np.maximum(q[row].astype(np.float64) @ keys[sequence, :count].T.astype(float), 0)
        assert np.abs(found[0][row, :count] - wanted).max() <= 64 * EPSILON * np.abs(wanted).max()
        assert np.isnan(found[0][row, count:]).all()


# ---------------------------------------------------------------- hyper-connections


def sinkhorn(weights, rounds, least):
    weights = np.exp(weights - weights.max(1, keepdims=True))
    weights = weights / weights.sum(1, keepdims=True) + least
    weights /= weights.sum(0, keepdims=True) + least
    for _ in range(rounds - 1):
        weights /= weights.sum(1, keepdims=True) + least
        weights /= weights.sum(0, keepdims=True) + least
    return weights


@pytest.mark.parametrize("private", [0, 1])
@pytest.mark.parametrize("rounds", [1, 20])
def test_streams_are_gathered_and_merged(rounds, private):
    rng, rows, width, threads, least, epsilon = np.random.default_rng(4), 5, 64, 3, 0.02, 1e-3
    x = rng.standard_normal((rows, STREAMS, width)).astype(np.float32)
    mixes = rng.standard_normal((rows, MIXES + 8)).astype(np.float32) * np.float32(3)
    scale, base = rng.uniform(0.5, 1.5, 3).astype(np.float32), rng.standard_normal(MIXES).astype(np.float32)
    weight, made = rng.uniform(0.5, 1.5, width).astype(np.float32), rng.standard_normal((rows, width)).astype(np.float32)
    copies = threads if private else 1
    out, shares = np.full((copies, rows, width), np.nan, np.float32), np.full((copies, rows, MIXES), np.nan, np.float32)
    select = np.arange(rows)
    call(
        streams.gather_streams, threads, streams=x, mixes=mixes, mixes_stride=mixes.strides[0], rows=np.array([rows]),
        select=select, width=width, scale=scale, base=base, last=0, rounds=rounds, least=least, epsilon=epsilon, weight=weight,
        out=out, out_thread_stride=out.strides[0] if private else 0, shares=shares, shares_stride=MIXES * 4,
        shares_thread_stride=shares.strides[0] if private else 0, private=private,
    )  # fmt: skip
    merged = x.copy()
    call(
        streams.merge_streams, threads, streams=merged, made=made, rows=np.array([rows]), width=width, shares=shares,
        shares_stride=MIXES * 4, shares_thread_stride=shares.strides[0] if private else 0,
    )  # fmt: skip
    for row in range(rows):
        own = x[row].astype(np.float64)
        mix = mixes[row, :MIXES] / np.sqrt((own**2).mean() + epsilon)
        before = 1 / (1 + np.exp(-(mix[:4] * scale[0] + base[:4]))) + least
        back = 2 / (1 + np.exp(-(mix[4:8] * scale[1] + base[4:8])))
        mixed = sinkhorn((mix[8:] * scale[2] + base[8:]).reshape(4, 4), rounds, least)
        wanted = normalized(before @ own, weight, epsilon)
        assert np.abs(out[:, row] - wanted).max() <= 32 * EPSILON * np.abs(wanted).max()
        wanted = back[:, None] * made[row] + mixed.T @ own
        assert np.abs(merged[row] - wanted).max() <= 64 * EPSILON * np.abs(wanted).max()


def test_the_last_streams_are_only_added_up():
    rng, width = np.random.default_rng(6), 64
    x, mixes = rng.standard_normal((5, STREAMS, width)).astype(np.float32), rng.standard_normal((5, STREAMS)).astype(np.float32)
    scale, base, weight = np.array([0.7], np.float32), rng.standard_normal(4).astype(np.float32), np.ones(width, np.float32)
    out, shares = np.full((2, width), np.nan, np.float32), np.full((2, MIXES), np.nan, np.float32)
    call(
        streams.gather_streams, streams=x, mixes=mixes, mixes_stride=16, rows=np.array([2]), select=np.array([4, 1]), width=width,
        scale=scale, base=base, last=1, rounds=3, least=0.01, epsilon=1e-3, weight=weight, out=out, out_thread_stride=0,
        shares=shares, shares_stride=MIXES * 4, shares_thread_stride=0, private=0,
    )  # fmt: skip
    mean = np.full((2, width), np.nan, np.float32)
    call(
        streams.sum_streams, streams=x, shares=np.full(STREAMS, 0.25, np.float32), rows=np.array([2]), select=np.array([4, 1]),
        width=width, epsilon=1e-3, weight=weight, out=mean, out_thread_stride=0, private=0,
    )  # fmt: skip
    for row, of_mean, chosen in zip(out, mean, (4, 1), strict=True):
        own = x[chosen].astype(np.float64)
        wanted = normalized(own.mean(0), weight, 1e-3)
        assert np.abs(of_mean - wanted).max() <= 32 * EPSILON * np.abs(wanted).max()
        before = 1 / (1 + np.exp(-(mixes[chosen] / np.sqrt((own**2).mean() + 1e-3) * scale[0] + base))) + 0.01
        wanted = normalized(before @ own, weight, 1e-3)
        assert np.abs(row - wanted).max() <= 32 * EPSILON * np.abs(wanted).max()
