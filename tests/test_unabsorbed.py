"""Attention of prompts to keys and values made of latent rows: the kernels against numpy, and an engine that does so against one
that absorbs all rows.
"""

from pathlib import Path

import numpy as np
import pytest
from support.kernels import aligned, call, packed_matrix
from support.logits import error
from support.models import tiny
from support.scheduling import opened

from numatp.engine.blocks import Tables
from numatp.kernels import absorbed
from numatp.kernels.compile import specialize
from numatp.kernels.layout import CACHE_BLOCK, NO_WINDOW, PANELS_BYTES, cache_bytes
from numatp.kernels.rows import MANY
from numatp.program.step import Span
from numatp.program.words import latent as words
from numatp.quants.table import FORMATS

LATENT, ROTATED, NOPE, VALUE, HEADS = 96, 32, 64, 32, 3
SIZE, ROW = NOPE + ROTATED, LATENT + ROTATED
LENGTHS, SCALE, HEAT = (300, 130), 0.1, (0.1, 64)
BF16, F16 = 2.0**-9, 2.0**-11  # what rounding to them changes, in parts of a number


class Case:
    """Latent rows of two sequences in blocks that lie anywhere, places that are not filled hold not-a-number; matrices of heads."""

    def __init__(self, tmp_path, cache_type, kind):
        rng = np.random.default_rng(0)
        self.cache_type, self.kind = cache_type, kind
        self.tables = rng.permutation(2 * 5).reshape(2, 5)
        self.key_bytes = cache_bytes(cache_type, ROW)
        self.stride = self.key_bytes + cache_bytes(cache_type, LATENT)
        self.cache = aligned(10 * self.stride, 0x7E)
        self.kept = [self.append(rng, sequence, length) for sequence, length in enumerate(LENGTHS)]
        self.matrices = []
        for rows, columns in ((HEADS * LATENT, NOPE), (HEADS * VALUE, LATENT)):
            raw, values = tiny.quantized(rng.standard_normal((rows, columns)).astype(np.float32) / 8, kind, rng)
            tiles, tile_bytes = packed_matrix(tmp_path, kind, raw, 0, columns // 32)
            self.matrices.append((tiles, tile_bytes, values.reshape(HEADS, rows // HEADS, columns).astype(np.float64)))
        self.queries = rng.standard_normal((max(LENGTHS), HEADS, SIZE)).astype(np.float32)
        self.angles = rng.uniform(0, 6, (max(LENGTHS), ROTATED // 2))

    def append(self, rng, sequence, length):
        """What the cache keeps of latent rows, float64 (length, ROW)."""
        x = rng.standard_normal((length, ROW)).astype(np.float32)
        angles = np.zeros((length, ROTATED // 2, 2), np.float32)
        angles[..., 0] = 1
        call(
            specialize("latent", "cache", f"numatp.kernels.caches.{self.cache_type}").append_latent, x=x, x_stride=ROW * 4,
            rows=np.array([length, 0]), latent=LATENT, rotated=ROTATED, weight=np.ones(LATENT, np.float32), epsilon=1e-6,
            angles=angles, positions=np.arange(length), sequences=np.full(length, sequence), tables=self.tables, table_length=5,
            keys=self.cache, values=self.cache[self.key_bytes :], block_stride=self.stride, head_bytes=self.key_bytes,
            value_bytes=self.stride - self.key_bytes, copy=np.zeros((length, LATENT), np.float32),
        )  # fmt: skip
        out = np.zeros((len(self.tables[sequence]), ROW, CACHE_BLOCK), np.float32)
        for i, block in enumerate(self.tables[sequence]):
            own = self.cache[block * self.stride :][: self.key_bytes]
            out[i] = unpacked(own, self.cache_type)
        return out.transpose(0, 2, 1).reshape(-1, ROW)[:length].astype(np.float64)

    def query(self, position):
        """float64 (HEADS, SIZE), rotated and times its heat."""
        q = self.queries[position].astype(np.float64)
        pairs = q[:, NOPE:].reshape(HEADS, -1, 2)
        turned = (pairs[..., 0] + 1j * pairs[..., 1]) * np.exp(1j * self.angles[position])
        q[:, NOPE:] = np.stack([turned.real, turned.imag], -1).reshape(HEADS, -1)
        return q * (1 + HEAT[0] * np.log(1 + position // HEAT[1]))

    def wanted(self, sequence, position, tiled):
        """(results (HEADS, VALUE), bounds of their error)."""
        rows, q = self.kept[sequence][: position + 1], self.query(position)
        (_, _, k_b), (_, _, v_b) = self.matrices
        latents, rotated = rows[:, :LATENT], np.broadcast_to(rows[None, :, LATENT:], (HEADS, position + 1, ROTATED))
        keys = np.concatenate([np.einsum("tl,hld->htd", latents, k_b), rotated], 2)
        values = np.einsum("tl,hvl->htv", latents, v_b)
        scores = SCALE * np.einsum("hd,htd->ht", q, keys)
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        # Of numbers that were made the norm of what they are sums of; rounded are latent rows, matrices, what is made of both, and
        # queries or weights.
        key_norms = np.concatenate([np.einsum("tl,hld->htd", latents**2, k_b**2), rotated**2], 2)
        value_norms = np.sqrt(np.einsum("tl,hvl->htv", latents**2, v_b**2))
        part = 4 * BF16 if tiled else 0 if FORMATS[self.kind].block == 1 else 3 * BF16
        part += 2 * (ROW + SIZE + position) * np.finfo(np.float32).eps
        shift = part * SCALE * np.sqrt(np.einsum("hd,htd->ht", q**2, key_norms)).max(1, keepdims=True)
        bounds = part * np.einsum("ht,htv->hv", p, value_norms) + np.expm1(2 * shift) * np.einsum("ht,htv->hv", p, abs(values))
        return np.einsum("ht,htv->hv", p, values), bounds

    def run(self, spans, tiled, long=None, limit=1 << 20, threads=3):
        """spans: (sequence, rows, first position), of which the first `long` rows are of long prompts; (rows, HEADS, VALUE)."""
        count = sum(rows for _, rows, _ in spans)
        positions = np.array([first + i for _, rows, first in spans for i in range(rows)])
        starts = np.cumsum([0, *(rows for _, rows, _ in spans)])
        table = np.array([[sequence, starts[i], rows, first] for i, (sequence, rows, first) in enumerate(spans)])
        rows, made = np.array([count, count if long is None else long]), []
        for (tiles, tile_bytes, values), by_columns in zip(self.matrices, (1, 0), strict=True):
            made.append(aligned(values.size * 4))
            kernels = specialize("head_rows", "quant", FORMATS[self.kind].module)
            call(
                kernels.make_rows, weights=tiles, tile_bytes=tile_bytes, heads=HEADS, tiles=values.shape[1] // 16,
                units=values.shape[2] // 32, by_columns=by_columns, tiled=tiled, num_made=np.array([1]),
                scratch=aligned(3 * kernels.SCRATCH_BYTES), scratch_stride=kernels.SCRATCH_BYTES, out=made[-1],
            )  # fmt: skip
        kernels = specialize("unabsorbed", "cache", f"numatp.kernels.caches.{self.cache_type}")
        scratch = kernels.scratch_bytes(SIZE, VALUE, ROW)
        out = np.full((count, HEADS, VALUE), np.nan, np.float32)
        angles = np.stack([np.cos(self.angles), np.sin(self.angles)], -1).astype(np.float32)[positions]
        call(
            kernels.unabsorbed_attention, threads, q=self.queries[positions], q_stride=HEADS * SIZE * 4, heads=HEADS,
            head_size=SIZE, rotated=ROTATED, value_size=VALUE, latent=LATENT, scale=SCALE, heat=HEAT[0], heat_length=HEAT[1],
            angles=angles, limit=limit, window=NO_WINDOW, chunked=0, cap=0.0, spans=table, num_spans=np.array([len(spans)]),
            tables=self.tables, table_length=5, keys=self.cache, values=self.cache, block_stride=self.stride,
            head_bytes=self.key_bytes, value_bytes=0, k_b=made[0], v_b=made[1], scratch=aligned(threads * scratch),
            scratch_stride=scratch, rows=rows, tiled=tiled, panels=aligned(threads * PANELS_BYTES if tiled else 64),
            panels_thread_stride=PANELS_BYTES, out=out,
        )  # fmt: skip
        return out


def unpacked(keys, cache_type):
    """Those of a block as the cache has them, float32 (ROW, CACHE_BLOCK)."""
    if cache_type == "f16":
        return keys.view(np.float16).reshape(ROW, CACHE_BLOCK).astype(np.float32)
    tiles = keys.reshape(CACHE_BLOCK // 16, -1)
    units = tiles[:, : ROW * 16].reshape(-1, ROW // 32, 8, 16, 4).astype(np.float32) - 128  # tile, unit, four columns, row
    scales = tiles[:, ROW * 16 :][:, : ROW // 32 * 32].copy().view(np.float16).reshape(-1, ROW // 32, 1, 16, 1).astype(np.float32)
    return (units * scales).transpose(1, 2, 4, 0, 3).reshape(ROW, CACHE_BLOCK)


@pytest.mark.parametrize("tiled", [0, 1] if MANY else [0])
@pytest.mark.parametrize(("cache_type", "kind"), [("f16", "F16"), ("f16", "Q4_1"), ("q8_0", "Q4_1")])
def test_prompts_against_numpy(tmp_path, cache_type, kind, tiled):
    """A row has the same bits however its prompt is cut, whatever the threads; other rows are left alone."""
    case = Case(tmp_path, cache_type, kind)
    spans = [(0, 170, 130), (1, 70, 0), (1, 5, 90)]
    out = case.run(spans, tiled, long=240)
    assert np.isnan(out[240:]).all()
    rows = [(sequence, first + i) for sequence, count, first in spans[:2] for i in range(count)]
    for row in (0, 1, 61, 62, 169, 170, 171, 233, 239):
        wanted, bounds = case.wanted(*rows[row], tiled)
        assert (np.abs(out[row] - wanted) <= bounds).all(), row
    for cut, first, threads in (([(0, 41, 130)], 0, 1), ([(0, 129, 171), (1, 70, 0)], 41, 50), ([(1, 33, 0)], 170, 2)):
        found = case.run(cut, tiled, threads=threads)
        assert (found == out[first : first + len(found)]).all()
    found = case.run(spans[:1], tiled, limit=231)
    assert (found[:101] == out[:101]).all() and np.isnan(found[101:]).all()


def test_rows_are_arranged():
    """Absorbed rows of long prompts first, the others in a group of their own behind them; spans of these rows."""
    pitch, heads = 16, 2
    spans = np.array([[3, 0, 40, 70], [1, 40, 50, 0], [0, 90, 1, 7], [2, 91, 6, 0]])
    for limit in (0, 80, 100):
        rows, room = np.array([97, 90]), 97 + pitch
        out = {name: np.full(size, -9) for name, size in (
            ("counts", 2), ("active", 4 * heads), ("rows_of_places", heads * room), ("many", heads * room), ("places", room),
            ("own_spans", 4 * len(spans)), ("num_own_spans", 1), ("num_made", 1),
        )}  # fmt: skip
        call(absorbed.arrange_heads, rows=rows, spans=spans, num_spans=np.array([4]), limit=limit, heads=heads, pitch=pitch, **out)
        made = {0: 0, 80: 60, 100: 80}[limit]
        assert out["num_made"] == made and (out["places"][:97] < 0).sum() == made
        own = out["own_spans"].reshape(-1, 4)[: out["num_own_spans"][0]]
        covered = [row for _, first, count, _ in own for row in range(first, first + count)]
        assert covered == np.flatnonzero(out["places"][:97] >= 0).tolist()
        position = dict(zip(range(97), [p + i for _, _, n, p in spans for i in range(n)], strict=True))
        assert all(position[first] == start for _, first, _, start in own)
        in_head = out["counts"][0] // heads
        for row in covered:
            for head in range(heads):
                place = head * in_head + out["places"][row]
                assert out["rows_of_places"][place] == row * heads + head and out["many"][place] == (MANY > 0 and row < 90)


@pytest.mark.parametrize("model", ["deepseek2-lite", "mistral4"])
def test_an_engine_that_makes_keys_and_one_that_absorbs(model, monkeypatch):
    """The logits of all rows of a prompt, cut into Steps across the limit, within what float16 latent rows let them differ."""
    path = Path(__file__).parent / "data" / "golden" / f"{model}.gguf"
    tokens = np.random.default_rng(3).integers(0, 150, 100).tolist()

    def logits(limit, parts):
        monkeypatch.setattr(words, "UNABSORBED", limit)
        with opened(path, context=None, max_rows=112) as play:

            def work(p):
                tables, seen, done = Tables(p.engine.blocks), [], 0
                for count in parts:
                    p.engine.run([Span(0, tokens[done : done + count], done, tables.prepare(done, count), prompt=100)])
                    done += count
                    seen.append(p.engine.window.logits[0, : p.engine.loaded.spec.sizes.vocab].copy())
                tables.release()
                return np.array(seen)

            return play(work)

    absorbing, making = logits(0, (30, 37, 33)), logits(8192, (30, 37, 33))
    assert (absorbing != making).any() and error(making, absorbing.astype(np.float64)) < 4 * F16
    across = [logits(68, parts)[-1] for parts in ((30, 39, 31), (67, 33), (100,))]
    assert all((one == across[0]).all() for one in across) and (across[0] != making[-1]).any()
