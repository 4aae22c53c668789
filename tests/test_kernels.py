"""Each kernel against plain numpy in float64, with tolerances from norms and epsilon."""

import json
import os
import subprocess
import sys
from functools import partial
from itertools import pairwise, product

import llvmlite.binding as llvm
import numpy as np
import pytest
from support.commands import SCRIPTS, TESTS, run
from support.kernels import BELOW, OWN, TESTED, aligned, all_kernels, call, left_out, load_matrix, packed_matrix
from support.models import tiny

from numatp import quants
from numatp.errors import NumatpError
from numatp.kernels import (
    activation,
    bias,
    channels,
    convolution,
    delta,
    dot,
    exchange,
    experts,
    gate,
    norm,
    pieces,
    rope,
    scale,
    softcap,
)
from numatp.kernels.compile import compiler_environ, make_all_ready, read, specialize
from numatp.kernels.layout import CACHE_BLOCK, HANDED_BYTES, NO_WINDOW, PANELS_BYTES, PART_UNITS, cache_bytes
from numatp.kernels.rows import FEW, GROUP, HALF, MANY
from numatp.kernels.scratch import scratch_bytes
from numatp.kernels.states import PIECE, conv_bytes, conv_rows, delta_bytes
from numatp.machine import isa
from numatp.program import division
from numatp.quants.table import FORMATS, UNIT
from numatp.weights.matrix import Matrix
from numatp.weights.splits import part

pytestmark = pytest.mark.cores  # runs of other levels go on beside these

EPSILON = np.finfo(np.float32).eps
BF16_EPSILON = 2.0**-7
# Of a product: passes of every size, and one or two groups at once.
ROWS = sorted({1, 2, 3, HALF + 1, HALF + FEW - 1, GROUP - 1, GROUP, GROUP + FEW, 2 * GROUP - 3, 2 * GROUP + FEW + 1})


def through_tiles(format):
    """Whether some rows may be multiplied on tile registers, on this level."""
    return format.expand is not None and MANY > 0


def weights(format_name, rows, columns, seed=0):
    """(bytes as in a file (rows, row_bytes), float32 values by the gguf package)."""
    rng = np.random.default_rng(seed)
    return tiny.quantized(rng.standard_normal((rows, columns)).astype(np.float32), format_name, rng)


def grouped(x, form, pitch, zero=0, tiled=True, many=0):
    """(groups of rows as the matrix kernels want them, bytes of a group); many: rows, the first ones, for tile registers."""
    rows, width = x.shape
    group = activation.group_bytes(form, width, pitch)
    out = aligned((-(-many // pitch) - (many - rows) // pitch) * group)
    common = {
        "x": x, "x_stride": width * 4, "x_thread_stride": 0, "select": np.arange(rows), "rows": np.array([rows, many]),
        "tiled": tiled, "routed": 0, "many": 0, "out": out,
        "out_group": group, "out_thread_stride": 0, "pitch": pitch, "private": 0,
    }  # fmt: skip
    if form == "q8":
        call(activation.quantize, blocks=width // 32, zero=zero, **common)
    else:
        call(activation.interleave, width=width, **common)
    return out, group


def rounded_to_bf16(x):
    """float32 to the nearest BF16, of two the even one, as float64."""
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32).astype(np.float64)


def tables_of(group, blocks, pitch):
    """The parts of one q8 group by name; (pitch, ...)."""
    values, parts, start = blocks * pitch, {}, 0
    for name, kind, per_value in (
        ("codes", np.int8, 32), ("scales", np.float32, 1), ("sums", np.float32, 1), ("starts", np.int32, 1),
        ("half_sums", np.float32, 2), ("half_starts", np.int32, 2),
    ):  # fmt: skip
        size = values * per_value * np.dtype(kind).itemsize
        part = group[start : start + size].copy().view(kind)
        if name == "codes":
            parts[name] = part.reshape(blocks, pitch, 32).transpose(1, 0, 2)
        else:
            parts[name] = part.reshape(blocks, per_value, pitch).transpose(2, 0, 1)
        start += size
    return parts


def quantized(x, pitch, zero=0):
    """(groups, bytes of a group, the exact values of the rows)."""
    rows, width = x.shape
    out, group = grouped(x, "q8", pitch, zero)
    values = []
    for start in range(0, len(out), max(group, 1)):
        parts = tables_of(out[start : start + group], width // 32, pitch)
        values.append((parts["codes"] * parts["scales"].astype(np.float64)).reshape(pitch, width))
    return out, group, np.concatenate(values)[:rows] if values else np.zeros((rows, 0))


@pytest.mark.parametrize("pitch", [1, 4, 16])
def test_quantize_rounds_to_nearest_and_sums(pitch):
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    x[2] = 0
    out, group, values = quantized(x, pitch, zero=7)
    step = np.abs(x.reshape(5, -1, 32)).max(-1).repeat(32).reshape(5, 96) / 127
    assert (np.abs(values - x) <= step * (0.5 + 127 * EPSILON)).all()
    for row in range(5):
        start = row // pitch * group
        parts = {name: part[row % pitch] for name, part in tables_of(out[start : start + group], 3, pitch).items()}
        halves = parts["codes"].reshape(3, 2, 16).astype(np.int64).sum(-1)
        assert (parts["half_starts"] == -7 * halves).all()
        assert (parts["starts"][:, 0] == -7 * halves.sum(-1)).all()
        scales = parts["scales"].astype(np.float64)
        assert np.abs(parts["half_sums"] - halves * scales).max() <= EPSILON * 127 * 16 * scales.max()
        assert np.abs(parts["sums"] - halves.sum(-1, keepdims=True) * scales).max() <= EPSILON * 127 * 32 * scales.max()


@pytest.mark.parametrize("format_name", [name for name in FORMATS if name not in tiny.OF_IK])
def test_unpack_is_the_gguf_package_bit_by_bit(format_name):
    raw, values = weights(format_name, 33, 512)
    assert (quants.kernels_of(format_name).unpack(raw).view(np.uint32) == values.view(np.uint32)).all()


@pytest.mark.parametrize("format_name", tiny.OF_IK)
def test_unpack_is_ik_llama_cpp_bit_by_bit(format_name):
    """Also of rows that are interleaved by four (numatp/weights/interleaved.py)."""
    recorded = np.load(TESTS / "data/ik_llama.npz")
    raw, values = recorded[f"{format_name} bytes"], recorded[f"{format_name} values"]
    found = tiny.unpacked(format_name, raw)
    if format_name == "IQ6_K":  # of which ik_llama.cpp multiplies whole numbers, but unpacks the polynomial that they are near
        steps = tiny.scales_of(raw, format_name).astype(np.float32) * raw[:, 4:20].view(np.int8)
        assert (np.abs(found - values).reshape(-1, 16, 16) <= np.abs(steps)[..., None] / 2).all()
    else:
        assert (found.view(np.uint32) == values.view(np.uint32)).all()


def not_finite(format_name):
    """(place in a block of the file, bytes) that make weights of it no finite numbers."""
    if format_name == "MXFP4":
        return [(0, bytes([scale, *[0x77] * 16])) for scale in (253, 255)]
    numbers = {"F32": "<f4", "F16": "<f2"}
    if format_name == "NVFP4":  # its not-a-number counts as zero
        return []
    if format_name == "IQ1_M":
        return [(48, tiny.iq1_m_scale([value]).tobytes()) for value in (np.nan, np.inf, -np.inf)]
    if format_name == "BF16":
        return [(0, np.float32(value).tobytes()[2:]) for value in (np.nan, np.inf, -np.inf)]
    if FORMATS[format_name].row_bytes == 4:  # what is too large for a float32 once it is multiplied too
        return [(0, np.float32(value).tobytes()) for value in (np.nan, np.inf, -np.inf, 3e38)]
    kind, places = np.dtype(numbers.get(format_name, "<f2")), FORMATS[format_name].scales or [0]
    return [(place, kind.type(value).tobytes()) for place in places for value in (np.nan, np.inf, -np.inf)]


@pytest.mark.parametrize("format_name", TESTED)
def test_weights_that_are_no_finite_numbers_are_seen(tmp_path, format_name):
    """In the first and last block of the last of 37 rows, and not in the columns of another rank; a row's one scale is for all."""
    sound, _ = weights(format_name, 37, 768)
    row_bytes, block_bytes, of_rows = sound.shape[1], FORMATS[format_name].block_bytes, FORMATS[format_name].row_bytes > 0
    for start in (0,) if of_rows else (0, row_bytes - block_bytes):
        for place, number in not_finite(format_name):
            raw = sound.copy()
            raw[36, start + place : start + place + len(number)] = np.frombuffer(number, np.uint8)
            assert not np.isfinite(quants.unpack(format_name, raw)).all()
            for first_unit, units in ((0, 8), (8, 8), (16, 8)):
                failed = load_matrix(tmp_path, format_name, raw, first_unit, units)[2]
                assert failed.tolist() == [0, of_rows or first_unit == (16 if start else 0)], (start, place, first_unit)


@pytest.mark.parametrize("format_name", TESTED)
@pytest.mark.parametrize(("rows", "first_unit", "units"), [(48, 0, 24), (45, 5, 14), (16, 6, 3), (16, 23, 1), (7, 0, 0), (7, 5, 0)])
def test_matmul(tmp_path, format_name, rows, first_unit, units):
    raw, values = weights(format_name, rows, 768)
    tiles, tile_bytes = packed_matrix(tmp_path, format_name, raw, first_unit, units)
    format, matmul = quants.kernels_of(format_name), specialize("matmul", "quant", FORMATS[format_name].module).matmul
    padded = -(-rows // 16) * 16
    part = values[:, first_unit * 32 : (first_unit + units) * 32].astype(np.float64)
    panels = aligned(3 * PANELS_BYTES)
    through_panels = [True] if through_tiles(format) else []
    for num_rows, add, on_tiles in product(ROWS, [False, True], [False, *through_panels]):
        x = np.random.default_rng(1).standard_normal((num_rows, units * 32)).astype(np.float32)
        pitch, many = 1 if num_rows == 1 and not on_tiles else GROUP, num_rows if on_tiles else 0
        if on_tiles:
            source, group, exact = *grouped(x, format.ACTIVATION, pitch, many=many), rounded_to_bf16(x)
        elif format.ACTIVATION == "q8":
            source, group, exact = quantized(x, pitch, format.ZERO)
        else:
            source, group, exact = *grouped(x, "f32", pitch, tiled=format.expand is not None), x.astype(np.float64)
        out = np.full((-(-num_rows // pitch) * pitch, padded), np.nan, np.float32)
        before = np.random.default_rng(2).standard_normal((num_rows, padded)) if add else np.zeros((num_rows, padded))
        if add:
            out[:num_rows] = before
        call(
            matmul, weights=tiles, tiles=padded // 16, tile_bytes=tile_bytes, units=units, rows=np.array([num_rows, many]),
            x=source, x_group=group, x_thread_stride=0, pitch=pitch, out=out, out_stride=padded * 4, add=add,
            panels=panels, panels_thread_stride=PANELS_BYTES,
        )  # fmt: skip
        # Q4_1 adds a large minimum to a large product: the terms that are rounded are as large as the sums of magnitudes.
        before = before[:, :rows]
        magnitudes = np.abs(exact) @ np.abs(part).T + np.abs(exact).sum(-1, keepdims=True) * 4 + np.abs(before)
        bound = 8 * EPSILON * np.sqrt(max(units, 1)) * magnitudes
        if on_tiles:
            # Weights are rounded to BF16: independent errors of at most half its epsilon each, so their sum is below 8 deviations.
            bound += 8 * BF16_EPSILON / 2 / np.sqrt(3) * np.sqrt(exact**2 @ (part**2).T)
        assert (np.abs(out[:num_rows, :rows] - (before + exact @ part.T)) <= bound).all(), (num_rows, add, on_tiles)


@pytest.mark.parametrize("format_name", [name for name in FORMATS if f"dealt_{name.lower()}.multiply" not in left_out()])
@pytest.mark.parametrize(("used", "first_unit", "units", "add"), [(None, 5, 14, True), (2, 0, 20, False), (2, 6, 3, False)])
def test_dealt_tiles_have_the_bits_of_whole_ones(tmp_path, monkeypatch, format_name, used, first_unit, units, add):
    """Of one matrix and of some that are stacked; each thread's parts in the order of the threads, so that sums are handed on."""
    monkeypatch.setattr(division, "WORTH_DEALING", 1)
    format, stacked, tiles = FORMATS[format_name], 3, 3
    raw, _ = weights(format_name, stacked * tiles * 16, 768)
    memory, tile_bytes = packed_matrix(tmp_path, format_name, raw, first_unit, units)
    whole = Matrix("", format, 0, stacked * tiles * 16, units * 32, stacked if used else 1, first_unit * 32)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((used or 1, units * 32)).astype(np.float32)
    kernels = quants.kernels_of(format_name)
    source, group = grouped(x, kernels.ACTIVATION, 1, kernels.ZERO, tiled=kernels.expand is not None)
    active = np.array([[2, 0, 0, 1], [0, 1, 0, 1]] if used else [[0, 0, 0, 1]])
    count = whole.tiles // whole.stacked
    common = {"tiles": count, "tile_bytes": tile_bytes, "units": units, "x_group": group, "x_thread_stride": 0, "add": add}
    before = (
        rng.standard_normal((len(x), count * 16)).astype(np.float32) if add else np.full((len(x), count * 16), np.nan, np.float32)
    )
    wanted = before.copy()
    for expert, row, *_ in active:
        call(
            specialize("matmul", "quant", format.module).matmul, weights=memory.ctypes.data + expert * count * tile_bytes,
            rows=np.array([1, 0]), x=source.ctypes.data + row * group, pitch=1, out=wanted[row], out_stride=count * 64, panels=0,
            panels_thread_stride=0, **common,
        )  # fmt: skip
    dealt = specialize("dealt", "quant", format.module).multiply
    cut, shared = 0, division.tiles_of(whole, used)
    for threads in (2, 4, 5, 7):
        dealt_to = division.deal.__wrapped__((shared,), threads)
        if dealt_to is None:
            continue
        works = division.in_turn(shared, dealt_to[0])
        cut += (works[2][:, 2] > 0).sum()
        # A row that has its first expert twice has one expert, with two places.
        for chosen, places in ((active, range(len(x))), *(((np.array([[2, 0, 0, 2]]), [0, 0]),) if used else ())):
            out, handed = before.copy(), aligned(threads * HANDED_BYTES)
            for work in works:
                call(
                    dealt, threads, weights=memory, counted=np.array([len(chosen)]), active=chosen, work=work, x=source, out=out,
                    out_stride=count * 64, handed=handed, **common,
                )  # fmt: skip
            assert (out == wanted[places]).all(), threads
    assert cut or units < 8


@pytest.mark.skipif(not MANY, reason="this level has no tile registers")
@pytest.mark.parametrize("format_name", [name for name in TESTED if name not in ("F32", "F16", "BF16")])
@pytest.mark.parametrize("add", [False, True])
def test_a_row_has_the_same_bits_in_any_company(tmp_path, format_name, add):
    """Rows for tile registers and others in one product, as alone, however many of each kind there are."""
    units, columns = 40, 48
    raw, _ = weights(format_name, columns, units * 32)
    tiles, tile_bytes = packed_matrix(tmp_path, format_name, raw, 0, units)
    format, matmul = quants.kernels_of(format_name), specialize("matmul", "quant", FORMATS[format_name].module).matmul
    x = np.random.default_rng(1).standard_normal((60, units * 32)).astype(np.float32)
    before, panels = np.random.default_rng(2).standard_normal((60, columns)).astype(np.float32), aligned(3 * PANELS_BYTES)

    def multiplied(rows, many):
        source, group = grouped(x[rows], format.ACTIVATION, GROUP, format.ZERO, many=many)
        out = np.full((len(rows) + GROUP, columns), np.nan, np.float32)
        if add:
            out[: len(rows)] = before[rows]
        call(
            matmul, weights=tiles, tiles=columns // 16, tile_bytes=tile_bytes, units=units, rows=np.array([len(rows), many]),
            x=source, x_group=group, x_thread_stride=0, pitch=GROUP, out=out, out_stride=columns * 4, add=add, panels=panels,
            panels_thread_stride=PANELS_BYTES,
        )  # fmt: skip
        return out[: len(rows)]

    of_prompts, of_others = multiplied(range(60), 60), multiplied(range(60), 0)
    assert (of_prompts != of_others).any()
    for many in (1, 2, 15, 16, 17, 31, 32, 33, 47, 59):
        together = multiplied(range(60), many)
        assert (together[:many] == of_prompts[:many]).all() and (together[many:] == of_others[many:]).all(), many
    for first, last in ((0, 1), (5, 14), (3, 21), (0, 27), (21, 60)):
        assert (multiplied(range(first, last), last - first) == of_prompts[first:last]).all()
        assert (multiplied(range(first, last), 0) == of_others[first:last]).all()


@pytest.mark.parametrize("format_name", [name for name, format in FORMATS.items() if format.block == 1])
def test_thin_matrices(tmp_path, format_name):
    """Right, and the same bits for any number of threads, alone or among other rows."""
    rows, units, threads = 40, PART_UNITS * 2 + 1, (1, 2, 5, 64)
    raw, values = weights(format_name, rows, units * 32)
    tiles, _ = packed_matrix(tmp_path, format_name, raw, 0, units)
    thin = specialize("thin", "quant", FORMATS[format_name].module)
    x = np.random.default_rng(1).standard_normal((2 * GROUP + 5, units * 32)).astype(np.float32)
    matrix = {"weights": tiles, "tiles": 3, "units": units, "unit_bytes": FORMATS[format_name].tile_bytes}
    made = []
    for count in threads:
        alone = aligned(len(x) * 3 * 64).view(np.float32).reshape(len(x), 48)
        for row, out in zip(x, alone, strict=True):
            sums = aligned(3 * 3 * 64)
            call(thin.multiply_parts, count, x=row, x_thread_stride=0, sums=sums, **matrix)
            call(thin.join_parts, count, sums=sums, tiles=3, units=units, out=out)
        made.append(alone)
        for num_rows in (2, 4, 7, len(x)):
            source, group = grouped(x[:num_rows], "f32", GROUP, tiled=False)
            together = np.full((-(-num_rows // GROUP) * GROUP, 48), np.nan, np.float32)
            call(
                thin.multiply_groups, count, rows=np.array([num_rows]), x=source, x_group=group, pitch=GROUP, out=together,
                out_stride=48 * 4, **matrix,
            )  # fmt: skip
            assert (together[:num_rows] == alone[:num_rows]).all(), num_rows
    exact = x.astype(np.float64)
    bound = 8 * EPSILON * np.sqrt(units) * (np.abs(exact) @ np.abs(values.astype(np.float64)).T)
    assert (np.abs(made[0][:, :rows] - exact @ values.T) <= bound).all()
    assert all((other == made[0]).all() for other in made)


@pytest.mark.skipif(not MANY, reason="this level has no tile registers")
@pytest.mark.parametrize(
    ("format_name", "rows", "first_unit", "units"),
    [(name, *part) for name in TESTED if name not in ("F32", "F16", "BF16") for part in [(33, 5, 14), (7, 23, 1)]]
    + [(name, 1040, 0, 66) for name in BELOW if name != "F16"],  # more panels than fit at once, whatever they are made from
)
def test_expanded_weights_are_the_nearest_bf16(tmp_path, format_name, rows, first_unit, units):
    """Rows that are one in one column and zero in all others show the weights themselves."""
    columns = -(-(first_unit + units) * 32 // 256) * 256
    raw, values = weights(format_name, rows, columns)
    tiles, tile_bytes = packed_matrix(tmp_path, format_name, raw, first_unit, units)
    format, matmul = quants.kernels_of(format_name), specialize("matmul", "quant", FORMATS[format_name].module).matmul
    padded, seen = -(-rows // 16) * 16, range(0, units * 32, 31 if units > 32 else 1)
    source, group = grouped(np.eye(units * 32, dtype=np.float32)[seen], format.ACTIVATION, GROUP, many=len(seen))
    out, panels = np.full((-(-len(seen) // GROUP) * GROUP, padded), np.nan, np.float32), aligned(3 * PANELS_BYTES)
    call(
        matmul, weights=tiles, tiles=padded // 16, tile_bytes=tile_bytes, units=units, rows=np.array([len(seen)] * 2), x=source,
        x_group=group, x_thread_stride=0, pitch=GROUP, out=out, out_stride=padded * 4, add=False,
        panels=panels, panels_thread_stride=PANELS_BYTES,
    )  # fmt: skip
    wanted = values[:, first_unit * 32 :][:, seen].T.astype(np.float64)
    # A weight that is the difference of a product and a minimum may be small beside them.
    terms = np.abs(values).max(-1)[None] * 4 * EPSILON
    assert (np.abs(out[: len(seen), :rows] - wanted) <= BF16_EPSILON / 2 * np.abs(wanted) + terms).all()


@pytest.mark.skipif(not MANY, reason="this level has no tile registers")
@pytest.mark.parametrize("kernel", [activation.quantize, activation.interleave], ids=lambda kernel: kernel.name)
def test_rows_for_tile_registers_become_bf16(kernel):
    """Each place of an expert is for them or not, whatever the others are."""
    x = np.random.default_rng(0).standard_normal((2 * GROUP, 64)).astype(np.float32)
    x[1, :6] = [np.nan, np.inf, -np.inf, 1 + 2.0**-8, 1 + 3 * 2.0**-8, 0]
    x.view(np.uint32)[1, 6] = 0xFFFFFFFF
    form = "q8" if kernel is activation.quantize else "f32"
    group = activation.group_bytes(form, 64, GROUP)
    out, alone = aligned(2 * group), aligned(2 * group)
    common = {
        "x": x, "x_stride": 256, "x_thread_stride": 0, "select": np.arange(2 * GROUP), "out_group": group, "out_thread_stride": 0,
        "pitch": GROUP, "private": 0, "tiled": 1, **({"blocks": 2, "zero": 3} if form == "q8" else {"width": 64}),
    }  # fmt: skip
    many = np.array([1] * GROUP + [0] * GROUP)
    call(kernel, rows=np.array([2 * GROUP, 0]), routed=1, many=many, out=out, **common)
    bits = out[: GROUP * 128].view(np.uint16).reshape(2, GROUP, 32).transpose(1, 0, 2).reshape(GROUP, 64)
    values = (bits.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(values[:1], rounded_to_bf16(x[:1])) and np.array_equal(values[2:], rounded_to_bf16(x[2:GROUP]))
    assert np.isnan(values[1, [0, 6]]).all() and values[1, 1:6].tolist() == [np.inf, -np.inf, 1, 1 + 2.0**-6, 0]
    call(kernel, rows=np.array([2 * GROUP, 0]), routed=1, many=np.zeros(2 * GROUP, int), out=alone, **common)
    size = 64 * GROUP * 4 if form == "f32" else GROUP * (64 + 2 * 28)
    assert (out[group : group + size] == alone[group : group + size]).all()


@pytest.mark.parametrize("format_name", TESTED)
def test_embed(tmp_path, format_name):
    raw, values = weights(format_name, 40, 512)
    tiles, tile_bytes = packed_matrix(tmp_path, format_name, raw, 3, 11)
    out, tokens = np.full((4, 352), np.nan, np.float32), np.array([100, 139, 99, 140])
    embed = specialize("matmul", "quant", FORMATS[format_name].module).embed
    args = {
        "weights": tiles, "tile_bytes": tile_bytes, "units": 11, "first_token": 100, "last_token": 140, "tokens": tokens,
        "rows": np.array([4]), "scale": 3, "out_stride": 352 * 4,
    }  # fmt: skip
    call(embed, first=0, count=11, out=out, **args)
    part = np.full_like(out, np.nan)
    call(embed, first=4, count=3, out=part, **args)
    assert (part[:, :96] == out[:, 128:224]).all() and np.isnan(part[:, 96:]).all()
    assert np.abs(out[:2] - 3 * values[[0, 39], 96:448]).max() <= 6 * EPSILON * np.abs(values).max()
    assert (out[2:] == 0).all()


# Bits in memory to bits in the file; widths of the models that numatp is for, a multiple of the format's block.
MOST_MEMORY = {"Q4_K": 1.05, "IQ1_M": 1.05}
WIDTHS = [512, 768, 1536, 2048, 2560, 2880, 4096, 5120, 8192, 11008, 12288, 14336, 29568]


@pytest.mark.parametrize("format_name", TESTED)
def test_memory_is_little_more_than_the_file(format_name):
    format = FORMATS[format_name]
    for width in WIDTHS:
        if width % format.block == 0:
            cuts = [part(width, UNIT, rank, ranks) for ranks in (1, 2) for rank in range(ranks)]
            for own in cuts:
                in_memory = format.bytes_of_tile(len(own), own.start)
                ratio = in_memory / (16 * (format.row_bytes + len(own) / format.block * format.block_bytes))
                assert ratio <= MOST_MEMORY.get(format_name, 1.04), (width, own, ratio)


def test_rms_norm_selects_rows():
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    weight, out = np.linspace(0.5, 2, 64, dtype=np.float32), np.empty((2, 64), np.float32)
    call(
        norm.rms_norm, x=x, rows=np.array([2]), select=np.array([4, 1]), weight=weight, width=64, epsilon=1e-3, scale=0.3,
        out=out, out_thread_stride=0, private=0,
    )  # fmt: skip
    wanted = 0.3 * x[[4, 1]] / np.sqrt((x[[4, 1]].astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-3) * weight
    assert np.abs(out - wanted).max() <= 16 * EPSILON * np.abs(wanted).max()


def test_layer_norm_selects_rows():
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32) + 3
    weight, out = np.linspace(0.5, 2, 64, dtype=np.float32), np.empty((2, 64), np.float32)
    call(
        norm.layer_norm, x=x, rows=np.array([2]), select=np.array([4, 1]), weight=weight, width=64, epsilon=1e-3, scale=0.3,
        out=out, out_thread_stride=0, private=0,
    )  # fmt: skip
    apart = x[[4, 1]] - x[[4, 1]].astype(np.float64).mean(-1, keepdims=True)
    wanted = 0.3 * apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-3) * weight
    assert np.abs(out - wanted).max() <= 16 * EPSILON * np.abs(x).max()


def rotated(x, frequencies, neighbours):
    """float64 (tokens, heads, size) with token t's pairs turned by t * frequency."""
    first, second = (x[..., 0::2], x[..., 1::2]) if neighbours else np.split(x.astype(np.float64), 2, -1)
    turned = (first + 1j * second.astype(np.float64)) * np.exp(1j * np.arange(len(x))[:, None, None] * frequencies)
    parts = [turned.real, turned.imag]
    return np.stack(parts, -1).reshape(x.shape) if neighbours else np.concatenate(parts, -1)


class Attention:
    """Sequences in one cache whose blocks are mixed; places that are not filled hold not-a-number."""

    def __init__(self, lengths, heads, kv_heads, size, neighbours=True, cache_type="f16"):
        self.kernels, append = (
            specialize(template, "cache", f"numatp.kernels.caches.{cache_type}") for template in ("attention", "append")
        )
        self.head_bytes = cache_bytes(cache_type, size)
        rng, block = np.random.default_rng(0), CACHE_BLOCK
        self.heads, self.kv_heads, self.size = heads, kv_heads, size
        self.table_length = max(-(-length // block) for length in lengths)
        self.tables = rng.permutation(len(lengths) * self.table_length).reshape(len(lengths), -1)
        self.stride = 2 * kv_heads * self.head_bytes
        self.cache = aligned(self.tables.size * self.stride)
        frequencies = 100.0 ** (-np.arange(0, size, 2) / size)
        self.q, self.exact, self.value_scales = [], [], []
        for sequence, length in enumerate(lengths):
            qkv = rng.standard_normal((length, heads + 2 * kv_heads, size)).astype(np.float32)
            exact = 1.25 * rotated(qkv[:, : heads + kv_heads], frequencies, neighbours)
            v = qkv[:, heads + kv_heads :].copy()
            angles, positions = np.empty((length, size), np.float32), np.arange(length)
            common = {"rows": np.array([length]), "positions": positions}
            call(rope.rotation_angles, frequencies=frequencies, pairs=size // 2, scale=1.25, out=angles, **common)
            call(
                append.rotate_and_append, qkv=qkv, heads=heads, kv_heads=kv_heads, head_size=size, angles=angles,
                pairs=size // 2, step=2 if neighbours else 1, apart=1 if neighbours else size // 2,
                sequences=np.full(length, sequence), tables=self.tables, table_length=self.table_length, keys=self.cache,
                values=self.cache[self.stride // 2 :], block_stride=self.stride, head_bytes=self.head_bytes,
                value_bytes=self.head_bytes, value_size=size, **common,
            )  # fmt: skip
            assert np.abs(qkv[:, :heads] - exact[:, :heads]).max() <= 4 * EPSILON * np.abs(exact).max()
            self.q.append(qkv[:, :heads])
            if cache_type == "f16":
                assert np.abs(qkv[:, heads : heads + kv_heads] - exact[:, heads:]).max() <= 4 * EPSILON * np.abs(exact).max()
                k, v = (x.astype(np.float16).astype(np.float64) for x in (exact[:, heads:], v))
                self.exact.append((exact[:, :heads], k, v))
                continue
            k, kept, scales = self.read_q8_0(sequence, length)
            self.value_scales.append(scales)
            for got, wanted in ((k, exact[:, heads:]), (kept, v)):
                step = np.abs(wanted).reshape(*wanted.shape[:2], -1, 32).max(-1).repeat(32, -1) / 127
                assert (np.abs(got - wanted) <= step * (0.5 + 127 * 2.0**-11 + 127 * 4 * EPSILON)).all()
            self.exact.append((rounded_to_q8(qkv[:, :heads]), k, kept))

    def read_q8_0(self, sequence, length):
        """(keys, values), float64 (length, kv_heads, size), and values' scales, by the definition of the layout."""
        size, units = self.size, self.size // 32
        blocks = self.cache.reshape(-1, 2, self.kv_heads, self.head_bytes)[self.tables[sequence]]
        tiles = blocks[:, 0].reshape(len(blocks), self.kv_heads, 4, -1)
        codes = tiles[..., : units * 512].reshape(*tiles.shape[:3], units, 8, 16, 4).astype(np.float64) - 128
        d = tiles[..., units * 512 : units * 544].copy().view(np.float16).reshape(*tiles.shape[:3], units, 16)
        k = (codes.transpose(0, 2, 5, 1, 3, 4, 6) * d.transpose(0, 2, 4, 1, 3)[..., None, None].astype(np.float64)).reshape(
            -1, self.kv_heads, size
        )
        codes = blocks[:, 1, :, : CACHE_BLOCK * size].view(np.int8).reshape(len(blocks), self.kv_heads, size // 16, 16, 16, 4)
        codes = codes.transpose(0, 3, 5, 1, 2, 4).reshape(-1, self.kv_heads, units, 32)
        d = blocks[:, 1, :, CACHE_BLOCK * size :].copy().view(np.float16)[..., : units * CACHE_BLOCK]
        d = d.reshape(len(blocks), self.kv_heads, units, CACHE_BLOCK).transpose(0, 3, 1, 2).astype(np.float64)
        d = d.reshape(-1, self.kv_heads, units)
        v = (codes * d[..., None]).reshape(-1, self.kv_heads, size)
        return k[:length], v[:length], d[:length]

    def weights(self, sequence, position, window, sinks=None, cap=0):
        """The softmax's, float64 (heads, position + 1)."""
        q, k, _ = self.exact[sequence]
        keys = k[: position + 1].repeat(self.heads // self.kv_heads, 1)
        scores = np.einsum("thd,hd->ht", keys, q[position]) * 0.25
        scores = cap * np.tanh(scores / cap) if cap else scores
        scores[:, : max(position + 1 - window, 0)] = -np.inf
        p = np.exp(scores - scores.max(-1, keepdims=True))
        return p / (p.sum(-1) + (np.exp(sinks - scores.max(-1)) if sinks is not None else 0))[:, None]

    def wanted(self, sequence, position, window, sinks=None, cap=0):
        """float64 (heads, size)."""
        values = self.exact[sequence][2][: position + 1].repeat(self.heads // self.kv_heads, 1)
        return np.einsum("ht,thd->hd", self.weights(sequence, position, window, sinks, cap), values)

    def rounding(self, sequence, position, window, cap=0):
        """Standard deviation of the results (heads, size): with q8_0, weights times values' scales are rounded to int8, those of 32
        tokens with one scale; the error of a rounding is uniform.
        """
        if not self.value_scales:
            return np.zeros((self.heads, self.size))
        group, units, blocks = self.heads // self.kv_heads, self.size // 32, position // 32 + 1
        scales = self.value_scales[sequence][: position + 1].repeat(group, 1)  # (tokens, heads, units)
        codes = self.exact[sequence][2][: position + 1].repeat(group, 1).reshape(-1, self.heads, units, 32) / scales[..., None]
        products = self.weights(sequence, position, window, cap=cap).T[..., None] * scales
        variance = 0
        for block in range(blocks):
            tokens = slice(block * 32, block * 32 + 32)
            step = products[tokens].max(0) / 127
            codes_seen = codes[tokens] * (products[tokens] > 0)[..., None]
            variance = variance + step[..., None] ** 2 / 12 * (codes_seen**2).sum(0)
        return np.sqrt(variance).reshape(self.heads, self.size)

    def check(self, out, spans, window=NO_WINDOW, cap=0):
        """out: what run() gave for spans."""
        rows = [(s, p + i) for s, n, p in spans for i in range(n)]
        error = out - np.array([self.wanted(*row, window, cap=cap) for row in rows])
        noise = np.array([self.rounding(*row, window, cap) for row in rows])
        assert (np.abs(error) <= KEY_ROUNDING + 6 * noise).all()
        assert np.linalg.norm(error) <= KEY_ROUNDING * error.size**0.5 + 1.2 * np.linalg.norm(noise)

    def run(self, spans, window=NO_WINDOW, threads=3, heads=None, sinks=None, cap=0, many=0, chunked=False):
        """(rows, heads, size) for spans (sequence, number of rows, first position), of the given range of heads; the first `many`
        rows go through tile registers.
        """
        heads = heads or range(self.heads)
        group = self.heads // self.kv_heads
        kv_heads = range(heads.start // group, -(-heads.stop // group))
        assert kv_heads == range(self.kv_heads) or len(self.tables) == 1
        q = np.concatenate([self.q[s][p : p + n, heads.start : heads.stop] for s, n, p in spans])
        q = np.ascontiguousarray(q)
        starts = np.cumsum([0] + [n for _, n, _ in spans])
        table = np.array([(s, start, n, p) for (s, n, p), start in zip(spans, starts, strict=False)])
        offset = kv_heads.start * self.head_bytes
        out = np.full(q.shape, np.nan, np.float32)
        attention = self.kernels
        scratch = np.full((threads, scratch_bytes(self.size, self.size) // 4 + 16), np.nan, np.float32)
        panels = aligned(threads * PANELS_BYTES)
        panels.view(np.float32)[:] = np.nan
        parts = np.full((len(self.q), len(heads), attention.SPLITS, attention.part_bytes(self.size) // 4), np.nan, np.float32)
        finished = np.zeros((len(self.q), len(kv_heads)), np.int64)
        call(
            attention.attention, threads=threads, q=q, q_stride=len(heads) * self.size * 4, heads=len(heads),
            kv_heads=len(kv_heads), head_size=self.size, value_size=self.size, first_head=heads.start,
            first_kv_head=kv_heads.start, group=group, scale=0.25, window=window, chunked=chunked, spans=table,
            num_spans=np.array([len(spans)]), tables=self.tables, table_length=self.table_length, keys=self.cache[offset:],
            values=self.cache[offset + self.stride // 2 :], block_stride=self.stride, head_bytes=self.head_bytes,
            value_bytes=self.head_bytes, scratch=scratch, scratch_stride=scratch.strides[0], parts=parts, finished=finished,
            sinks=0 if sinks is None else sinks[heads.start :], sunk=sinks is not None, cap=cap,
            rows=np.array([len(q), many]), tiled=many > 0, panels=panels, panels_thread_stride=PANELS_BYTES, out=out,
        )  # fmt: skip
        assert (finished == 0).all()
        return out


def rounded_to_q8(x):
    """float32 (..., size) as the q8_0 cache's scores take queries: int8 times a scale per 32, in float64."""
    blocks = x.reshape(*x.shape[:-1], -1, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / np.float32(127)
    return (np.rint(blocks * (np.float32(1) / scale)) * scale.astype(np.float64)).reshape(x.shape)


# A key whose float32 differs in its last bit may round to the float16 next to it.
KEY_ROUNDING = 2.0**-11


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "cache_type"),
    [(6, 3, 32, "f16"), (4, 4, 48, "f16"), (7, 1, 64, "f16"), (20, 1, 16, "f16"), (12, 12, 16, "f16"), (6, 3, 32, "q8_0"),
     (4, 4, 96, "q8_0"), (20, 1, 64, "q8_0")],
)  # fmt: skip
@pytest.mark.parametrize(("window", "cap"), [(NO_WINDOW, 0), (100, 0), (100, 1.5), (NO_WINDOW, 40)])
def test_attention(heads, kv_heads, size, cache_type, window, cap):
    """Prompts, rows that follow a long past, and single rows of other sequences in one Step; scores as they are and capped."""
    case = Attention((300, 70, 130), heads, kv_heads, size, neighbours=heads != 7, cache_type=cache_type)
    spans = [(1, 70, 0), (0, 1, 299), (2, 37, 93)]
    case.check(case.run(spans, window, cap=cap), spans, window, cap)


BF16_ROUNDING = 2.0**-9  # of a number to the nearest BF16


def tile_bounds(case, sequence, position, window, sinks=None, cap=0):
    """Bounds of the error (heads, size) of a row on tile registers: queries, keys, weights and values are rounded to BF16."""
    q, k, v = case.exact[sequence]
    group = case.heads // case.kv_heads
    weights = case.weights(sequence, position, window, sinks, cap)
    # A score's error is the sum of products of roundings, a weight's share of it that times the weight, less the mean of all.
    scores = 2 * BF16_ROUNDING * 0.25 * np.einsum("thd,hd->ht", np.abs(k[: position + 1]).repeat(group, 1), np.abs(q[position]))
    values = np.abs(v[: position + 1]).repeat(group, 1)
    relative = 2 * BF16_ROUNDING + 2 * scores + KEY_ROUNDING
    return np.einsum("ht,thd->hd", weights * relative, values + np.einsum("ht,thd->hd", weights, values)) + KEY_ROUNDING


@pytest.mark.skipif(not MANY, reason="this level has no tile registers")
@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "cache_type"),
    [(6, 3, 32, "f16"), (4, 4, 48, "f16"), (7, 1, 64, "f16"), (20, 1, 16, "f16"), (6, 3, 32, "q8_0"), (4, 4, 96, "q8_0")],
)
@pytest.mark.parametrize(("window", "cap"), [(NO_WINDOW, 0), (100, 1.5)])
def test_attention_on_tile_registers(heads, kv_heads, size, cache_type, window, cap):
    """Prompts beside single rows; a row has the same bits however its prompt is cut, whatever the threads, and beside others."""
    case = Attention((300, 70, 130), heads, kv_heads, size, neighbours=heads != 7, cache_type=cache_type)
    spans, many = [(1, 70, 0), (2, 37, 93), (0, 1, 299)], 107
    out = case.run(spans, window, cap=cap, many=many)
    row = 0
    for sequence, count, first in spans[:2]:
        for position in range(first, first + count):
            error = np.abs(out[row] - case.wanted(sequence, position, window, cap=cap))
            assert (error <= tile_bounds(case, sequence, position, window, cap=cap)).all()
            row += 1
    plain = case.run(spans, window, cap=cap)
    assert (plain[many:] == out[many:]).all() and (plain[:many] != out[:many]).any()
    for cut in ([(1, 41, 0)], [(1, 29, 41), (2, 37, 93)], [(2, 35, 95)], [(1, 2, 0), (2, 5, 100)]):
        for threads in (1, 50):
            found = case.run(cut, window, cap=cap, many=sum(count for _, count, _ in cut), threads=threads)
            starts = {(1, 0): 0, (1, 41): 41, (2, 93): 70, (2, 95): 72, (2, 100): 77}
            row = 0
            for sequence, count, first in cut:
                wanted = out[starts[sequence, first] :][:count]
                assert (found[row : row + count].view(np.int32) == wanted.view(np.int32)).all(), (cut, threads)
                row += count


@pytest.mark.skipif(not MANY, reason="this level has no tile registers")
def test_sinks_and_heads_of_another_rank_on_tile_registers():
    case, sinks = Attention((130,), 20, 1, 32), np.resize(np.array([-2, 0, 3, 9, 1, 4], np.float32), 20)
    for heads in (range(20), range(17, 20), range(3, 19)):
        out = case.run([(0, 40, 90)], heads=heads, sinks=sinks, many=40)
        wanted = case.wanted(0, 129, NO_WINDOW, sinks)[heads.start : heads.stop]
        bounds = tile_bounds(case, 0, 129, NO_WINDOW, sinks)[heads.start : heads.stop]
        assert (np.abs(out[-1] - wanted) <= bounds).all()


@pytest.mark.parametrize("many", [0, 130] if MANY else [0])  # rows on tile registers
def test_attention_in_chunks(many):
    """Chunks begin inside blocks, and inside what a prompt takes together."""
    case, chunk = Attention((300, 130), 6, 3, 32), 70
    spans = [(1, 130, 0), (0, 1, 299), (0, 1, 280), (0, 37, 190)]
    out = case.run(spans, chunk, chunked=True, many=many)
    rows = [(s, p + i) for s, n, p in spans for i in range(n)]
    for i, (sequence, position) in enumerate(rows):
        seen = position % chunk + 1
        bounds = tile_bounds(case, sequence, position, seen) if i < many else KEY_ROUNDING
        assert (np.abs(out[i] - case.wanted(sequence, position, seen)) <= bounds).all()


# 20 heads of one KV head are more than are taken together; 3 of another rank's begin inside them.
@pytest.mark.parametrize(
    ("kv_heads", "heads"), [(3, range(6)), (3, range(3, 6)), (1, range(20)), (1, range(17, 20)), (1, range(3, 19))]
)
def test_sinks_take_a_part_of_the_softmax(kv_heads, heads):
    total = 6 if kv_heads == 3 else 20
    case = Attention((1100,), total, kv_heads, 32)
    sinks = np.resize(np.array([-2, 0, 3, 9, 1, 4], np.float32), total)
    for span in ((0, 1, 1099), (0, 40, 30), (0, 1, 3)):
        position = span[1] + span[2] - 1
        wanted = case.wanted(0, position, 100, sinks)[heads.start : heads.stop]
        assert np.abs(case.run([span], 100, heads=heads, sinks=sinks)[-1] - wanted).max() <= KEY_ROUNDING
    wanted = case.wanted(0, 1099, NO_WINDOW, sinks)[heads.start : heads.stop]  # in parts, of which one has the sink
    assert np.abs(case.run([(0, 1, 1099)], heads=heads, sinks=sinks)[0] - wanted).max() <= KEY_ROUNDING


@pytest.mark.parametrize("cache_type", ["f16", "q8_0"])
def test_attention_gives_the_same_bits_on_any_number_of_threads(cache_type):
    case = Attention((1100,), 6, 3, 32, cache_type=cache_type)  # 18 blocks: more than one per part
    for span in ((0, 1, 1099), (0, 45, 1000)):
        first = case.run([span], threads=1)
        assert (first.view(np.int32) == case.run([span], threads=5).view(np.int32)).all()
    case.check(case.run([(0, 1, 1099)]), [(0, 1, 1099)])


def test_attention_of_a_rank_whose_heads_begin_inside_a_group():
    case = Attention((70,), 6, 3, 32)
    heads = range(3, 6)  # head 3 shares the KV head of head 2, which is another rank's
    wanted = case.wanted(0, 69, NO_WINDOW)[3:6]
    assert np.abs(case.run([(0, 1, 69)], heads=heads)[0] - wanted).max() <= KEY_ROUNDING
    assert np.abs(case.run([(0, 5, 65)], heads=heads)[4] - wanted).max() <= KEY_ROUNDING


def tree(parts):
    """Neighbours first, where halves are whole; else in order."""
    if len(parts) in (2, 4, 8):
        return tree(parts[: len(parts) // 2]) + tree(parts[len(parts) // 2 :])
    return sum(parts[1:], start=parts[0])


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_sum_of_segments_has_the_same_bits_for_all_numbers_of_ranks(ranks):
    rows, width = 2, 48
    each = np.random.default_rng(0).standard_normal((8, rows, width)).astype(np.float32)
    common, partials = {"rows": np.array([rows]), "width": width}, each
    if ranks < 8:
        partials = np.full((ranks, rows, width), np.nan, np.float32)
        for out, parts in zip(partials, np.split(each, ranks), strict=True):
            segments = {f"s{i}": parts[i] if i < len(parts) else 0 for i in range(8)}
            call(exchange.join_segments, segments=len(parts), **segments, out=out, **common)
    table = np.array([partial.ctypes.data for partial in partials], np.uint64)
    out = np.full((rows, width), np.nan, np.float32)
    call(exchange.sum_partials, partials=table, ranks=ranks, lanes=2, out=out, add=0, **common)
    assert (out == tree([*each])).all() and (out != each.sum(0)).any()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_both_ways_of_the_exchange_give_the_same_bits(ranks, lanes):
    rng, width = np.random.default_rng(0), 176
    partials = rng.standard_normal((ranks, 2, width)).astype(np.float32)
    x = rng.standard_normal((2, width)).astype(np.float32)
    wanted = x + tree([*partials])
    common = {"ranks": ranks, "lanes": lanes, "rows": np.array([2]), "width": width}
    table = np.array([partial.ctypes.data for partial in partials], np.uint64)
    short, long = x.copy(), x.copy()
    call(exchange.sum_partials, partials=table, out=short, add=1, **common)
    for rank in range(ranks):
        call(exchange.reduce_scatter, partials=table, rank=rank, **common)
    call(exchange.gather, partials=table, out=long, add=1, **common)
    assert (short == wanted).all()
    assert (long == wanted).all()


@pytest.mark.parametrize("half", [0, 1])
@pytest.mark.parametrize("wires, lanes", [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_sums_of_several_hosts(wires, lanes, half):
    """Each host's sum in rank order, as BF16 where that is asked for, and their sum in the order of the hosts."""
    hosts, ranks, rows, width = 3, 3, 2, 176
    rng = np.random.default_rng(0)
    partials = rng.standard_normal((hosts, ranks, rows, width)).astype(np.float32)
    x = rng.standard_normal((rows, width)).astype(np.float32)
    edges = [16 * (width // 16 * wire // wires) for wire in range(wires + 1)]
    slices = [[np.full((rows, last - first), -1, np.int16 if half else np.float32) for _ in range(hosts)]
              for first, last in pairwise(edges)]  # fmt: skip
    common = {"rows": np.array([rows]), "width": width, "wires": wires, "half": half}
    for host in range(hosts):
        table = np.array([partial.ctypes.data for partial in partials[host]], np.uint64)
        for wire in range(wires):
            call(exchange.sum_slice, partials=table, ranks=ranks, wire=wire, out=slices[wire][host], **common)
    sums = np.array([[made.ctypes.data for made in of_wire] for of_wire in slices], np.uint64)
    found = x.copy()
    call(exchange.sum_hosts, sums=sums, hosts=hosts, lanes=lanes, out=found, add=1, **common)
    of_hosts = (partials[:, 0] + partials[:, 1]) + partials[:, 2]
    exact = x + ((of_hosts[0] + of_hosts[1]) + of_hosts[2])
    if half:
        assert (found != exact).any()
        assert (np.abs(found - exact) <= (2.0**-8 + 2.0**-21) * np.abs(of_hosts).sum(0) + 2.0**-23 * np.abs(exact)).all()
    else:
        assert (found == exact).all()


def sigmoid(x):
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def rms_normed(x, weight, epsilon):
    x = x.astype(np.float64)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * weight


@pytest.mark.parametrize("kernel", [gate.silu_gate, gate.sigmoid_gate], ids=lambda kernel: kernel.name)
def test_gates(kernel):
    rng = np.random.default_rng(0)
    x, opening, out = rng.standard_normal((5, 48)).astype(np.float32), *np.empty((2, 5, 48), np.float32)
    opening[:] = 4 * rng.standard_normal((5, 48))
    rest = {"rows": np.array([5]), "width": 48, "out": out, "out_thread_stride": 0, "private": 0}
    if kernel is gate.silu_gate:
        call(kernel, gate=opening, up=x, gate_stride=48 * 4, up_stride=48 * 4, **rest)
        wanted = opening * sigmoid(opening) * x
    else:
        call(kernel, x=x, x_stride=48 * 4, gate=opening, gate_stride=48 * 4, **rest)
        wanted = x * sigmoid(opening)
    assert np.abs(out - wanted).max() <= 8 * EPSILON * np.abs(wanted).max()


def test_gelu_and_clamped_gate():
    rng = np.random.default_rng(0)
    x, out = 4 * rng.standard_normal((5, 48)).astype(np.float32), np.empty((5, 48), np.float32)
    wide = 4 * rng.standard_normal((5, 64)).astype(np.float32)
    up = wide[:, :48]
    rest = {
        "gate": x, "gate_stride": 48 * 4, "up": wide, "up_stride": 64 * 4, "rows": np.array([5]), "width": 48, "out": out,
        "out_thread_stride": 0, "private": 0,
    }  # fmt: skip
    call(gate.gelu_gate, **rest)
    wanted = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x.astype(np.float64) + 0.044715 * x.astype(np.float64) ** 3))) * up
    assert np.abs(out - wanted).max() <= 16 * EPSILON * np.abs(wanted).max()
    for shift in (1.0, 0.0):
        call(gate.clamped_gate, alpha=1.7, limit=3.0, shift=shift, **rest)
        g, u = np.minimum(x, 3.0), np.clip(up, -3.0, 3.0)
        assert (g < x).any() and (u < up).any() and (u > up).any()
        wanted = g * sigmoid(1.7 * g) * (u + shift)
        assert np.abs(out - wanted).max() <= 16 * EPSILON * np.abs(wanted).max()


@pytest.mark.parametrize("private", [0, 1])
def test_one_number_per_row_gates_a_row(private):
    rng, threads = np.random.default_rng(0), 3
    x, h, weight = (rng.standard_normal(shape).astype(np.float32) for shape in ((5, 48), (5, 64), 64))
    copies = np.stack([x] * threads) if private else x.copy()
    call(
        gate.dot_gate, x=copies, x_thread_stride=x.nbytes if private else 0, width=48, h=h, h_thread_stride=0, h_width=64,
        weight=weight, rows=np.array([5]), private=private,
    )  # fmt: skip
    wanted = x * sigmoid(h.astype(np.float64) @ weight)[:, None]
    assert np.abs(copies - wanted).max() <= 16 * EPSILON * np.abs(wanted).max()


def test_biases():
    rng = np.random.default_rng(0)
    x, values = rng.standard_normal((5, 64)).astype(np.float32), rng.standard_normal((3, 48)).astype(np.float32)
    wanted = x.copy()
    wanted[:, :48] += values[0]
    call(bias.add_bias, x=x, x_stride=64 * 4, rows=np.array([5]), width=40, bias=values)
    assert (x == wanted).all()
    select = np.array([2, 0, 0, 1, 2])
    for private in (0, 1):
        wanted[:, :48] += values[select]
        call(
            bias.add_selected_bias, x=x, x_stride=64 * 4, rows=np.array([5]), width=48, select=select, bias=values, private=private
        )  # fmt: skip
        assert (x == wanted).all()


def test_soft_cap():
    """Of products whose columns threads share; what is no finite number does not become one."""
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32) * 20
    x[0, :7] = 0, 1e-3, -1e-3, 1e9, -1e9, np.nan, np.inf
    wanted = x.astype(np.float64)
    wanted[:, :48] = 30 * np.tanh(wanted[:, :48] / 30)
    call(softcap.cap_columns, x=x, x_stride=64 * 4, rows=np.array([5]), width=40, cap=30)
    assert np.isnan(x[0, 5:7]).all()
    wanted[0, 5:7] = x[0, 5:7] = 0
    assert np.abs(x - wanted).max() <= 4 * EPSILON * 30
    assert (x[:, 48:] == wanted[:, 48:]).all()


@pytest.mark.parametrize("private", [0, 1])
def test_add_rms_norm(private):
    x, out = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
    weight, before = np.linspace(0.5, 2, 64, dtype=np.float32), out.copy()
    named = {"x": x, "rows": np.array([5]), "weight": weight, "width": 64, "epsilon": 1e-3, "out": out, "private": private}
    call(norm.add_rms_norm, **named, add=1, scale=0.7)
    wanted = 0.7 * (before + rms_normed(x, weight, 1e-3))
    assert np.abs(out - wanted).max() <= 16 * EPSILON * np.abs(wanted).max()
    out[:] = np.nan
    call(norm.add_rms_norm, **named, add=0, scale=1.0)
    assert np.abs(out - rms_normed(x, weight, 1e-3)).max() <= 16 * EPSILON * np.abs(wanted).max()


@pytest.mark.parametrize("from_keys", [0, 1])
def test_rms_norm_values(from_keys):
    x = np.random.default_rng(0).standard_normal((5, 3 + 2 + 2, 32)).astype(np.float32)
    wanted = x.astype(np.float64)
    wanted[:, 5:] = rms_normed(x[:, 3:5] if from_keys else x[:, 5:], 1, 1e-3)
    call(norm.rms_norm_values, x=x, rows=np.array([5]), heads=7, k_heads=2, size=32, from_keys=from_keys, epsilon=1e-3)
    assert np.abs(x - wanted).max() <= 16 * EPSILON * np.abs(wanted).max()


def test_scale_columns():
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    wanted = x.copy()
    wanted[:, :48] *= np.float32(0.3)
    call(scale.scale_columns, x=x, x_stride=64 * 4, rows=np.array([5]), width=40, factor=0.3)
    assert np.abs(x - wanted).max() <= EPSILON * np.abs(wanted).max()


def test_add_scaled():
    x, out = np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)
    wanted = out.astype(np.float64)
    wanted[:, :32] += 0.3 * x[:, 16:48]
    args = {"x_stride": 64 * 4, "rows": np.array([5]), "width": 32, "factor": 0.3, "out": out, "out_stride": 64 * 4}
    call(scale.add_scaled, x=x.ravel()[16:], **args)
    assert np.abs(out - wanted).max() <= 4 * EPSILON * np.abs(wanted).max()


def test_temper_heads():
    x = np.random.default_rng(0).standard_normal((5, 3 + 2 + 2, 32)).astype(np.float32)
    positions, wanted = np.array([0, 19, 38, 39, 1000]), x.astype(np.float64)
    wanted[:, :3] *= (1 + 0.2 * np.log(1 + (positions + 1) // 20))[:, None, None]
    call(
        scale.temper_heads, x=x, rows=np.array([5]), heads=7, q_heads=3, size=32, positions=positions, every=20, by=0.2, shift=1,
    )  # fmt: skip
    assert np.abs(x - wanted).max() <= 4 * EPSILON * np.abs(wanted).max()


def test_shares_by_the_factors_of_experts():
    chosen, shares = np.array([[2, 0], [1, 2], [0, 1]]), np.random.default_rng(0).uniform(0, 1, (3, 2)).astype(np.float32)
    factors = np.array([0.5, 2, 3], np.float32)
    wanted = shares * factors[chosen]
    call(experts.weigh, rows=np.array([3]), used=2, chosen=chosen, shares=shares, factors=factors)
    assert (shares == wanted).all()


def test_rows_at_their_places_by_their_shares():
    """Places that no pair has stay as they are."""
    rng = np.random.default_rng(0)
    x, shares = rng.standard_normal((8, 48)).astype(np.float32), rng.uniform(0, 1, (3, 2)).astype(np.float32)
    places, wanted = np.array([[6, 0], [1, 2], [5, 3]]), x.copy()
    wanted[places] *= shares[..., None]
    call(experts.weigh_places, x=x, x_stride=48 * 4, rows=np.array([3]), used=2, places=places, shares=shares, width=48)
    assert (x == wanted).all()


def test_layer_norm_heads_have_weights_of_their_own():
    x = np.random.default_rng(0).standard_normal((5, 3 + 2 + 2, 32)).astype(np.float32) + 2
    weights = np.random.default_rng(1).uniform(0.5, 2, (5, 32)).astype(np.float32)
    wanted = x.astype(np.float64)
    apart = wanted[:, :5] - wanted[:, :5].mean(-1, keepdims=True)
    wanted[:, :5] = apart / np.sqrt((apart**2).mean(-1, keepdims=True) + 1e-3) * weights
    call(
        norm.layer_norm_heads, x=x, rows=np.array([5]), heads=7, q_heads=3, k_heads=2, size=32, q_weight=weights,
        k_weight=weights[3:], epsilon=1e-3,
    )  # fmt: skip
    assert np.abs(x - wanted).max() <= 32 * EPSILON * np.abs(wanted).max()


def test_rms_norm_heads_leaves_the_values():
    x = np.random.default_rng(0).standard_normal((5, 3 + 2 + 2, 32)).astype(np.float32)
    weights = np.random.default_rng(1).uniform(0.5, 2, (2, 32)).astype(np.float32)
    wanted = x.astype(np.float64)
    wanted[:, :3], wanted[:, 3:5] = rms_normed(x[:, :3], weights[0], 1e-3), rms_normed(x[:, 3:5], weights[1], 1e-3)
    call(
        norm.rms_norm_heads, x=x, rows=np.array([5]), heads=7, q_heads=3, k_heads=2, size=32, q_weight=weights[0],
        k_weight=weights[1], epsilon=1e-3,
    )  # fmt: skip
    assert np.abs(x - wanted).max() <= 16 * EPSILON * np.abs(wanted).max()


@pytest.mark.parametrize(("first_key", "counted_keys"), [(0, 2), (1, 1), (2, 0)])
def test_rms_norm_over_the_heads_of_all_ranks(first_key, counted_keys):
    """Sums of this rank's squares in rows of 16 floats; then rows normalised by sums over heads of other ranks too."""
    rng, shape = np.random.default_rng(0), {"q_heads": 3, "k_heads": 2, "size": 32}
    x = rng.standard_normal((11, 3 + 2 + 2, 32)).astype(np.float32)
    weights, rows = rng.uniform(0.5, 2, (5, 32)).astype(np.float32), np.array([11])
    sums, count = np.full(2 * 16, np.nan, np.float32), np.zeros(1, np.int64)
    call(
        norm.sums_of_squares, x=x, x_stride=x.strides[0], rows=rows, **shape, first_key=first_key, counted_keys=counted_keys,
        width=16, out=sums, count=count,
    )  # fmt: skip
    squares = x.astype(np.float64) ** 2
    keys = squares[:, 3 + first_key : 3 + first_key + counted_keys]
    wanted = np.stack([squares[:, :3].sum((1, 2)), keys.sum((1, 2))], 1)
    assert count[0] == 2 and (sums[22:] == 0).all()
    assert np.abs(sums[:22].reshape(11, 2) - wanted).max() <= 8 * EPSILON * wanted.max()
    sums, wanted = rng.uniform(100, 300, (11, 2)).astype(np.float32), x.astype(np.float64)
    for heads, column, values in ((slice(0, 3), 0, 192), (slice(3, 5), 1, 96)):
        wanted[:, heads] *= weights[heads] / np.sqrt(sums[:, column, None, None].astype(np.float64) / values + 1e-3)
    call(
        norm.rms_norm_all_heads, x=x, rows=rows, heads=7, **shape, sums=sums, q_values=192, k_values=96, q_weight=weights,
        k_weight=weights[3:], epsilon=1e-3,
    )  # fmt: skip
    assert np.abs(x - wanted).max() <= 8 * EPSILON * np.abs(wanted).max()


@pytest.mark.parametrize("function", [0, experts.SIGMOID, experts.ROOT_OF_SOFTPLUS])
@pytest.mark.parametrize(("count", "used", "groups", "groups_used"), [(12, 3, 1, 1), (12, 3, 4, 2), (12, 4, 6, 2), (12, 2, 12, 5)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("normalize", "factor"), [(0, 1.0), (1, 2.5)])
def test_choose_wanted(function, count, used, groups, groups_used, biased, normalize, factor):
    rng, rows = np.random.default_rng(0), 7
    logits, bias = rng.standard_normal((rows, count)).astype(np.float32), rng.normal(0, 0.5, count).astype(np.float32)
    logits[3] = 200 * np.sign(logits[3])  # an exponential of it does not fit float32
    chosen, shares = np.zeros((rows, used), np.int64), np.zeros((rows, used), np.float32)
    x = logits.astype(np.float64)
    if function == experts.SIGMOID:
        probabilities = np.exp(-np.logaddexp(0, -x))
    elif function == experts.ROOT_OF_SOFTPLUS:
        probabilities = np.sqrt(np.logaddexp(0, x))
    else:
        probabilities = np.exp(x - x.max(1, keepdims=True))
        probabilities /= probabilities.sum(1, keepdims=True)
    call(
        experts.choose_wanted, logits=logits, logits_stride=logits.strides[0], rows=np.array([rows]), experts=count, used=used,
        normalize=normalize, function=function, bias=bias, biased=biased, groups=groups, groups_used=groups_used, pairs=1,
        factor=factor, chosen=chosen, shares=shares,
    )  # fmt: skip
    wanted = probabilities + bias if biased else probabilities
    for row in range(rows):
        by_group = np.sort(wanted[row].reshape(groups, -1), 1)[:, -2:].sum(1)
        kept = np.sort(by_group)[-groups_used] - 1e-6 <= by_group
        allowed = np.where(kept.repeat(count // groups), wanted[row], -np.inf)
        assert len(set(chosen[row])) == used and np.isfinite(allowed[chosen[row]]).all()
        assert np.allclose(allowed[chosen[row]], np.sort(allowed)[::-1][:used], rtol=0, atol=1e-6)  # equals are chosen at will
        own = probabilities[row, chosen[row]]
        total = own.sum() + 1e-20 if normalize else 1
        largest = max(1, own.max() / total)  # a root of softplus may be above 1
        assert np.abs(shares[row] - factor * own / total).max() <= 8 * EPSILON * factor * largest + 1e-15


@pytest.mark.parametrize(("normalize", "factor"), [(0, 1.0), (1, 2.5)])
def test_choose_listed(normalize, factor):
    """What a table lists for a row's token, weighed by the row's scores."""
    rng, rows, tokens = np.random.default_rng(0), 4, np.array([5, 0, 7, 5])
    logits = rng.standard_normal((rows, 12)).astype(np.float32)
    table = np.array([rng.permutation(12)[:3] for _ in range(8)], np.float32)
    chosen, shares, x = np.zeros((rows, 3), np.int64), np.zeros((rows, 3), np.float32), logits.astype(np.float64)
    call(
        experts.choose_listed, logits=logits, logits_stride=logits.strides[0], rows=np.array([rows]), experts=12, used=3,
        normalize=normalize, function=experts.ROOT_OF_SOFTPLUS, factor=factor, tokens=tokens, table=table, chosen=chosen,
        shares=shares,
    )  # fmt: skip
    assert (chosen == table[tokens]).all()
    own = np.take_along_axis(np.sqrt(np.logaddexp(0, x)), chosen, 1)
    own = factor * own / (own.sum(1, keepdims=True) if normalize else 1)
    assert np.abs(shares - own).max() <= 8 * EPSILON * own.max()


def test_groups_by_their_best_expert():
    logits = np.array([[5, 0, 4, 4, 1, 1], [0, 1, 2, 3, -1, 9]], np.float32)
    chosen, shares = np.zeros((2, 2), np.int64), np.zeros((2, 2), np.float32)
    args = {"normalize": 0, "function": 0, "bias": 0, "biased": 0, "groups": 3, "groups_used": 1, "pairs": 0, "factor": 1.0}
    call(
        experts.choose_wanted, logits=logits, logits_stride=logits.strides[0], rows=np.array([2]), experts=6, used=2,
        chosen=chosen, shares=shares, **args,
    )  # fmt: skip
    assert chosen.tolist() == [[0, 1], [5, 4]]


def test_head_gate():
    x, opening = np.random.default_rng(0).standard_normal((5, 3, 32)).astype(np.float32), np.linspace(-9, 9, 40, dtype=np.float32)
    opening, wanted = opening.reshape(5, 8), x * sigmoid(opening.reshape(5, 8)[:, 2:5].astype(np.float64))[..., None]
    call(gate.head_gate, x=x, rows=np.array([5]), heads=3, size=32, gate=opening[:, 2:], gate_stride=opening.strides[0])
    assert np.abs(x - wanted).max() <= 8 * EPSILON * np.abs(wanted).max()


@pytest.mark.parametrize("by_sigmoid", [0, 1])
def test_gated_rms_norm(by_sigmoid):
    x, opening = np.random.default_rng(0).standard_normal((2, 5, 3, 32)).astype(np.float32)
    weight, out = np.linspace(0.5, 2, 32, dtype=np.float32), np.empty((5, 3, 32), np.float32)
    call(
        norm.gated_rms_norm, x=x, x_stride=96 * 4, gate=opening, gate_stride=96 * 4, rows=np.array([5]), heads=3, size=32,
        weight=weight, epsilon=1e-3, by_sigmoid=by_sigmoid, out=out, out_thread_stride=0, private=0,
    )  # fmt: skip
    wanted = rms_normed(x, weight, 1e-3) * (1 if by_sigmoid else opening) * sigmoid(opening)
    assert np.abs(out - wanted).max() <= 32 * EPSILON * np.abs(wanted).max()


SPANS = [[(1, 5, 0)], [(0, 2, 0), (1, 1, 5)], [(1, 2, 6), (0, 1, 2)], [(0, 7, 3)]]  # Steps of (sequence, rows, first position)


def run_spans(work, length, inputs, out_width, state, steps=SPANS, **args):
    """float32 (2 sequences, length, out_width): what work(...) makes of inputs {name: (2, length, ...)} in Steps."""
    results = np.full((2, length, out_width), np.nan, np.float32)
    for spans in steps:
        starts = np.cumsum([0] + [rows for _, rows, _ in spans])
        table = np.array([(s, start, rows, p) for (s, rows, p), start in zip(spans, starts, strict=False)])
        rows = {name: np.concatenate([x[s, p : p + n] for s, n, p in spans]) for name, x in inputs.items()}
        strides = {f"{name}_stride": x.strides[0] for name, x in rows.items()}
        out = np.full((starts[-1], out_width), np.nan, np.float32)
        work(
            spans=table, num_spans=np.array([len(spans)]), state=state, state_stride=state.strides[0], out=out,
            out_stride=out_width * 4, **rows, **strides, **args,
        )  # fmt: skip
        for (s, n, p), start in zip(spans, starts, strict=False):
            results[s, p : p + n] = out[start : start + n]
    return results


@pytest.mark.parametrize("width", [2, 4, 7])
def test_causal_conv(width):
    rng, channels = np.random.default_rng(0), 80
    x, weight = rng.standard_normal((2, 10, channels)).astype(np.float32), rng.standard_normal((width, channels)).astype(np.float32)
    state = np.full((2, conv_bytes(channels, width) // 4), np.nan, np.float32)
    conv = partial(call, convolution.causal_conv)
    back = [[(0, PIECE - 1, 10 - (PIECE - 1))]]  # as many as are taken back at most
    more = {"channels": channels, "weight": weight, "width": width, "kept": conv_rows(width)}
    out = run_spans(conv, 10, {"x": x}, channels, state, [*SPANS, *back], **more)
    past = np.concatenate([np.zeros((2, width - 1, channels)), x], 1)
    sums = sum(past[:, j : j + 10] * weight[j].astype(np.float64) for j in range(width))
    for sequence, length in ((0, 10), (1, 8)):
        wanted = (sums * sigmoid(sums))[sequence, :length]
        assert np.abs(out[sequence, :length] - wanted).max() <= 8 * width * EPSILON * np.abs(sums).max()


def delta_rule(
    qkv, qkv_stride, alpha, alpha_stride, beta, beta_stride, decay, bias, epsilon, state, out, out_stride, key_heads, group,
    tiled, by_channel, head_size, gate_steps, bound, threads=3, **both,
):  # fmt: skip
    """Both kernels, on one another's memory as a program has it."""
    heads, room = key_heads * group, len(qkv) // PIECE + 2 * len(both["spans"])
    ends = np.cumsum(delta_bytes(key_heads, heads, head_size, by_channel)) // 4
    matrices, changes, keys, decays = np.split(state, ends[:-1], axis=1)
    keys_bytes = channels.CHANNEL_KEYS_BYTES if by_channel else pieces.KEYS_BYTES
    both |= {
        "key_heads": key_heads, "head_size": head_size, "pieces": room, "kept_keys": keys, "kept_decays": decays,
        "keys": aligned(room * key_heads * keys_bytes), "weights": aligned(room * heads * pieces.WEIGHTS_BYTES),
    }  # fmt: skip
    more = {"bound": bound} if by_channel else {"group": group, "tiled": tiled, **gate_steps}
    call(
        channels.channel_pieces if by_channel else pieces.delta_pieces, threads, qkv=qkv, qkv_stride=qkv_stride, alpha=alpha,
        alpha_stride=alpha_stride, beta=beta, beta_stride=beta_stride, decay=decay, bias=bias, epsilon=epsilon, **more, **both,
    )  # fmt: skip
    call(
        delta.gated_delta, threads, values=qkv[:, 2 * key_heads :], values_stride=qkv_stride, state=matrices, kept_changes=changes,
        scratch=aligned(threads * delta.SCRATCH_BYTES), scratch_stride=delta.SCRATCH_BYTES, out=out, out_stride=out_stride,
        keys_bytes=keys_bytes, group=group, tiled=tiled, by_channel=by_channel, **both,
    )  # fmt: skip


class DeltaCase:
    """Two sequences through the gated delta rule, and what comes out of the definition, in float64."""

    def __init__(self, kind, length, size=32):
        """kind: "grouped", value heads of a key head follow each other; "tiled", they lie apart, as in a model with two more key
        heads; "channels", every channel of a key has a decay of its own; "bounded", and a sigmoid makes it.
        """
        by_channel = kind in ("channels", "bounded")
        rng, key_heads, group = np.random.default_rng(0), 3, 1 if by_channel else 2
        heads, every = key_heads * group, key_heads + 2
        qkv = rng.standard_normal((2, length, 2 * key_heads + heads, size)).astype(np.float32)
        gates = 2 * rng.standard_normal((2, length, key_heads, 2, group)).astype(np.float32)
        gates[:, 4] = 200  # an exponential of it does not fit float32
        gates[:, 5] = -200
        decay, bias = -rng.uniform(0.02, 1.5, heads).astype(np.float32), rng.standard_normal(heads).astype(np.float32)
        steps = {"gate_key_step": 2 * group, "gate_step": 1, "key_step": group, "step": 1}
        given = {"decay": decay, "bias": bias}
        inputs = {"beta": gates.reshape(2, length, -1), "alpha": gates.reshape(2, length, -1)[..., group:]}
        values, self.order = qkv, np.arange(heads)
        beta, alpha = (gates[:, :, :, i].reshape(2, length, heads) for i in (0, 1))
        if kind == "tiled":
            order = np.arange(heads).reshape(key_heads, group).T.ravel()  # of the value heads
            values = np.concatenate([qkv[:, :, : 2 * key_heads], qkv[:, :, 2 * key_heads + order]], 2)
            self.order = np.argsort(order)

            def apart(x):
                """(..., key heads, group) as (group, all key heads) in a row."""
                all_heads = np.concatenate([x, np.zeros((*x.shape[:-2], 2, group), np.float32)], -2)
                return all_heads.swapaxes(-1, -2).reshape(*x.shape[:-2], -1)

            inputs = {"beta": apart(gates[:, :, :, 0]), "alpha": apart(gates[:, :, :, 1])}
            given = {name: apart(given[name].reshape(key_heads, group)) for name in ("decay", "bias")}
            steps = {"gate_key_step": 1, "gate_step": every, "key_step": 1, "step": every}
        bound = -2.0 if kind == "bounded" else 0.0
        if by_channel:
            alpha = 2 * rng.standard_normal((2, length, heads, size)).astype(np.float32)
            alpha[:, 4:6] = gates[:, 4:6, :, 1, :1]
            bias = rng.standard_normal((heads, size)).astype(np.float32)
            decay = -decay if bound else decay
            inputs, given = {"beta": beta.copy(), "alpha": alpha}, {"decay": decay, "bias": bias}
            decay = decay[:, None]
        self.length, self.heads, self.size = length, heads, size
        self.inputs = {"qkv": values, **inputs}
        self.given = given | {
            "key_heads": key_heads, "group": group, "tiled": kind == "tiled", "by_channel": by_channel, "head_size": size,
            "epsilon": 1e-3, "gate_steps": steps, "bound": bound,
        }  # fmt: skip
        self.state_floats = sum(delta_bytes(key_heads, heads, size, by_channel)) // 4
        alpha = alpha.astype(np.float64) + bias
        kept = np.exp(bound / (1 + np.exp(-decay * alpha)) if bound else decay * np.logaddexp(0, alpha))
        self.wanted, self.bounds = self.defined(qkv, beta, kept if kept.ndim == 4 else kept[..., None], key_heads)

    def run(self, steps, **args):
        """(2, length, heads, size)"""
        state = np.full((2, self.state_floats), np.nan, np.float32)
        width = self.heads * self.size
        out = run_spans(delta_rule, self.length, self.inputs, width, state, steps, **self.given, **args)
        return out.reshape(2, self.length, self.heads, self.size)[:, :, self.order]

    def defined(self, qkv, opening, kept, key_heads):
        """What is wanted, and how far each token may be from it. kept (2, length, heads, size or 1): of each row of a state."""
        group, size, length = self.heads // key_heads, self.size, self.length
        q, k, v = np.split(qkv.astype(np.float64), [key_heads, 2 * key_heads], 2)
        q, k = ((x / np.sqrt((x * x).sum(-1, keepdims=True) + 1e-3)).repeat(group, 2) for x in (q, k))
        beta = sigmoid(opening)
        wanted = np.zeros((2, length, self.heads, size))
        for sequence in (0, 1):
            s = np.zeros((self.heads, size, size))
            for t in range(length):
                s *= kept[sequence, t, :, :, None]
                change = v[sequence, t] - np.einsum("hkv,hk->hv", s, k[sequence, t])
                s += np.einsum("hk,hv->hkv", k[sequence, t], beta[sequence, t, :, None] * change)
                wanted[sequence, t] = np.einsum("hkv,hk->hv", s, q[sequence, t]) / np.sqrt(size)
        # Each token adds the rounding of sums over `size` terms as large as a value.
        return wanted, EPSILON * np.sqrt(size) * np.arange(1, length + 1) * np.abs(v).max()


KINDS_OF_DELTA = ["grouped", "tiled", "channels", "bounded"]


@pytest.mark.parametrize("kind", KINDS_OF_DELTA)
@pytest.mark.parametrize("steps", [SPANS, [[(0, 10, 0)], [(1, 8, 0)]]], ids=["in turns", "whole"])
def test_gated_delta(kind, steps):
    case = DeltaCase(kind, 10)
    out = case.run(steps)
    for sequence, length in ((0, 10), (1, 8)):
        errors = np.abs(out[sequence, :length] - case.wanted[sequence, :length]).max((1, 2))
        assert (errors <= case.bounds[:length]).all()


@pytest.mark.parametrize("kind", ["tiled", "channels"])
def test_gated_delta_has_the_same_bits_however_a_sequence_is_cut(kind):
    """Pieces of tokens begin where they begin in the sequence: whole in one Step, cut inside, or token after token."""
    case = DeltaCase(kind, 3 * PIECE + 5)
    whole = case.run([[(0, case.length, 0), (1, case.length, 0)]])
    assert (np.abs(whole - case.wanted).max((2, 3)) <= case.bounds).all()
    for counts in ([1] * case.length, [3, 2, PIECE + 6, 1, 1, PIECE], [PIECE, PIECE + 1, 1, 1, PIECE + 2], [case.length - 1, 1]):
        firsts = np.cumsum([0, *counts]).tolist()
        steps = [
            [(0, n, first), (1, n, first)] if i % 2 else [(1, n, first), (0, n, first)]
            for i, (n, first) in enumerate(zip(counts, firsts, strict=False))
        ]
        for threads in (1, 3, 7):
            assert (case.run(steps, threads=threads) == whole).all()


def bitcode_of(kernel):
    """LLVM's module, optimised: what a kernel's machine code is made of."""
    assert kernel.address  # so it was compiled
    return read(kernel.path).bitcode


def may_raise_or_allocate(bitcode, entry):
    """Bitcode has the names of all that a module calls side by side and as they are, behind all else."""
    assert entry.encode() in bitcode
    return any(
        name in bitcode for name in (b"picklebuf", b"numba_do_raise", b"NRT_")
    )  # an exception's arguments; its throw; memory


@pytest.mark.parametrize("kernel", all_kernels(), ids=lambda kernel: kernel.name)
def test_kernels_neither_raise_nor_allocate(kernel):
    assert not may_raise_or_allocate(bitcode_of(kernel), read(kernel.path).entry)


def test_a_kernel_that_raises_or_allocates_would_be_seen():
    result = run(sys.executable, SCRIPTS / "bad_kernels.py", env=compiler_environ())
    assert result.returncode == 0, result.stderr
    for name, bitcode in json.loads(result.stdout).items():
        assert may_raise_or_allocate(bytes.fromhex(bitcode), name)


def innermost_loops(kernel):
    """The instructions of each loop of a kernel's machine code that has no loop inside."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    level = isa.level()
    machine = llvm.Target.from_default_triple().create_target_machine(
        level.numba_cpu, level.numba_features, opt=3, reloc="static", codemodel="jitdefault", jit=True
    )
    module, entry = llvm.parse_bitcode(bitcode_of(kernel)), read(kernel.path).entry
    for function in module.functions:  # other kernels of its file
        if function.name != entry and not function.is_declaration:
            function.linkage = "internal"
    passes = llvm.create_new_module_pass_manager()
    passes.add_global_dead_code_eliminate_pass()
    passes.run(module, llvm.create_pass_builder(machine, llvm.create_pipeline_tuning_options(0)))
    code = machine.emit_assembly(module)
    lines = [line.partition("#")[0].split() for line in code.splitlines()]
    labels = {line[0].rstrip(":"): i for i, line in enumerate(lines) if line and line[0].endswith(":")}
    jumps = [(labels.get(line[-1], i + 1), i) for i, line in enumerate(lines) if line and line[0].startswith("j")]
    loops = [(start, end) for start, end in jumps if start <= end]
    inner = [one for one in loops if not any(one != other and one[0] <= other[0] and other[1] <= one[1] for other in loops)]
    return [[line[0] for line in lines[start : end + 1] if line] for start, end in inner]


@pytest.mark.parametrize("format_name", FORMATS if OWN else BELOW)
def test_the_inner_loops_hold_the_dot_instruction_and_no_call(format_name):
    format = quants.kernels_of(format_name)
    wanted = dot.isa.DOT if format.ACTIVATION == "q8" else ["vfmadd"]
    loops = innermost_loops(specialize("matmul", "quant", FORMATS[format_name].module).matmul)
    fused = [loop for loop in loops if holds(loop, "vfmadd")]
    products = [loop for loop in fused if all(holds(loop, instruction) for instruction in wanted)]
    # On tile registers the integers of a GROUP of rows, and panels of 1 or 2 groups x 1 or 2 panels.
    on_tiles = through_tiles(format)
    assert len(products) >= len({1, 2, FEW, HALF} if on_tiles else {1, 2, FEW, HALF, GROUP})
    assert on_tiles or products == fused
    integers, panels = ([loop for loop in loops if holds(loop, name)] for name in ("tdpbssd", "tdpbf16ps"))
    assert len(integers) >= on_tiles
    assert len(panels) >= 4 * on_tiles
    for loop in fused + integers + panels:
        assert not holds(loop, "call")


def holds(loop, instruction):
    return any(name.startswith(instruction) for name in loop)


def test_a_call_in_a_loop_would_be_seen():
    loops = innermost_loops(specialize("matmul", "quant", "numatp.quants.f32").load)
    assert any(name.startswith("call") for loop in loops for name in loop)


OTHER_LEVELS = [level.name for level in isa.LEVELS if level != isa.level()]


def lacks(level):
    """Why this machine cannot run it, or nothing."""
    try:
        isa.choose({"NUMATP_ISA": level})
    except NumatpError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def other_levels(tmp_path_factory):
    """{level: (a run of these tests there, its output)}. They go on beside this process's tests and share no kernels with them."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not levels", __file__]
    runs, folder = {}, tmp_path_factory.mktemp("levels")
    for level in OTHER_LEVELS:
        if not lacks(level):
            with open(folder / level, "w") as out:
                process = subprocess.Popen(command, stdout=out, stderr=out, env=os.environ | {"NUMATP_ISA": level})
            runs[level] = process, folder / level
    yield runs
    for process, _ in runs.values():
        process.kill()
        process.wait()


@pytest.fixture(scope="module", autouse=True)
def other_levels_start_first(request):
    """Before the other tests, and only if they are wanted."""
    if any("other_levels" in getattr(item, "fixturenames", ()) for item in request.session.items):
        request.getfixturevalue("other_levels")


@pytest.fixture(scope="module", autouse=True)
def one_process_compiles_all(request, other_levels_start_first):
    """Instead of one for each kernel that a test asks for, where most of these tests run."""
    if sum(item.path == request.path for item in request.session.items) > len(all_kernels()):
        make_all_ready(all_kernels())


@pytest.mark.parametrize("level", OTHER_LEVELS)
def test_other_levels_give_the_same_answers(level, other_levels):
    if reason := lacks(level):
        pytest.skip(reason)
    process, output = other_levels[level]
    assert process.wait(1200) == 0, output.read_text()[-3000:]


def test_choosing_tests_compiles_no_kernel(tmp_path):
    """After each edit of a kernel all of them would be compiled to run one test."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", "-k", "embed", __file__]
    result = run(*command, env={"NUMATP_CACHE_DIR": str(tmp_path)})
    assert result.returncode == 0 and "test_embed" in result.stdout, result.stdout[-3000:]
    assert not list(tmp_path.rglob("*.kernel"))
