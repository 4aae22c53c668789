"""Each kernel against plain numpy in float64, with tolerances from norms and epsilon."""

import ctypes
import sys

import gguf
import numba
import numpy as np
import pytest
from conftest import run

from numatp import quants
from numatp.errors import NumatpError
from numatp.kernels import activation, attention, exchange, norm, rope, sampling
from numatp.kernels.compile import OPTIONS, specialize
from numatp.kernels.compile import kernel as declare
from numatp.machine import isa

KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
EPSILON = np.finfo(np.float32).eps
FORMATS = quants.names()


def call(kernel, threads=3, **args):
    """Runs all threads of a kernel, one after the other; arrays are passed by address."""
    values = {name: value.ctypes.data if isinstance(value, np.ndarray) else value for name, value in args.items()}
    record = kernel.record(**values)
    for thread in range(threads):
        KERNEL(kernel.address)(record.ctypes.data, thread, threads)


def aligned(num_bytes, fill=0xFF):
    memory = np.full(num_bytes + 64, fill, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + num_bytes]


def weights(format_name, rows, columns, seed=0):
    """(bytes as in a file (rows, row_bytes), float32 values by the gguf package)."""
    kind = gguf.GGMLQuantizationType[format_name]
    data = np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)
    packed = gguf.quants.quantize(data, kind)
    return packed.view(np.uint8).reshape(rows, -1), gguf.quants.dequantize(packed, kind)


def packed_matrix(tmp_path, format_name, raw, first_unit, units):
    """The tiles of columns [first_unit, first_unit + units) * 32, loaded from a file."""
    format = quants.find(format_name, "test")
    (tmp_path / "weights").write_bytes(b"head" + raw.tobytes())
    rows, row_bytes = raw.shape
    tile_bytes = quants.tile_bytes(format, units * 32)
    tiles = aligned(-(-rows // 16) * tile_bytes)
    staging, failed = aligned(3 * 16 * row_bytes), np.zeros(1, np.int64)
    with open(tmp_path / "weights", "rb") as file:
        call(
            specialize("matmul", "quant", format.__name__).load,
            file=file.fileno(), position=4, row_bytes=row_bytes, rows=rows, first_unit=first_unit, units=units,
            weights=tiles, tile_bytes=tile_bytes, staging=staging, staging_bytes=16 * row_bytes, failed=failed,
        )  # fmt: skip
    assert not failed[0]
    return tiles, tile_bytes


def quantized(x):
    """(rows as the kernel quantises them, their exact values)."""
    rows, width = x.shape
    stride = activation.row_bytes(width)
    out = aligned(rows * stride)
    call(
        activation.quantize, x=x, x_stride=width * 4, x_thread_stride=0, out=out, out_stride=stride, out_thread_stride=0,
        rows=np.array([rows]), blocks=width // 32, private=0,
    )  # fmt: skip
    table = out.reshape(rows, stride)
    codes = table[:, :width].view(np.int8).reshape(rows, -1, 32).astype(np.float64)
    scales = table[:, width : width + width // 8].copy().view(np.float32).astype(np.float64)
    return out, (codes * scales[..., None]).reshape(rows, width)


def test_quantize_rounds_to_nearest():
    x = np.random.default_rng(0).standard_normal((5, 96)).astype(np.float32)
    x[2] = 0
    _, values = quantized(x)
    step = np.abs(x.reshape(5, -1, 32)).max(-1).repeat(32).reshape(5, 96) / 127
    assert (np.abs(values - x) <= step * (0.5 + 127 * EPSILON)).all()


@pytest.mark.parametrize("format_name", FORMATS)
def test_unpack_is_the_gguf_package_bit_by_bit(format_name):
    raw, values = weights(format_name, 33, 96)
    assert (quants.find(format_name, "test").unpack(raw) == values).all()


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize(("rows", "first_unit", "units"), [(48, 0, 3), (33, 1, 2), (16, 2, 1), (7, 0, 0)])
def test_matmul(tmp_path, format_name, rows, first_unit, units):
    raw, values = weights(format_name, rows, 96)
    tiles, tile_bytes = packed_matrix(tmp_path, format_name, raw, first_unit, units)
    x = np.random.default_rng(1).standard_normal((4, units * 32)).astype(np.float32)
    source, exact = quantized(x) if quants.find(format_name, "test").ACTIVATION == "q8" else (x, x.astype(np.float64))
    padded = -(-rows // 16) * 16
    out = np.full((4, padded), np.nan, np.float32)
    stride = activation.row_bytes(units * 32) if source is not x else units * 128
    matmul = specialize("matmul", "quant", quants.find(format_name, "test").__name__).matmul
    call(
        matmul, weights=tiles, tiles=padded // 16, tile_bytes=tile_bytes, units=units, rows=np.array([4]), x=source,
        x_stride=stride, x_thread_stride=0, out=out, out_stride=padded * 4,
    )  # fmt: skip
    part = values[:, first_unit * 32 : (first_unit + units) * 32].astype(np.float64)
    # Q4_1 adds a large minimum to a large product: the terms that are rounded are as large as the sums of magnitudes.
    bound = 8 * EPSILON * np.sqrt(max(units, 1)) * (np.abs(exact) @ np.abs(part).T + np.abs(exact).sum(-1, keepdims=True) * 4)
    assert (np.abs(out[:, :rows] - exact @ part.T) <= bound).all()


@pytest.mark.parametrize("format_name", FORMATS)
def test_embed(tmp_path, format_name):
    raw, values = weights(format_name, 40, 96)
    tiles, tile_bytes = packed_matrix(tmp_path, format_name, raw, 0, 3)
    out, tokens = np.full((4, 96), np.nan, np.float32), np.array([100, 139, 99, 140])
    embed = specialize("matmul", "quant", quants.find(format_name, "test").__name__).embed
    call(
        embed, weights=tiles, tile_bytes=tile_bytes, units=3, first_token=100, last_token=140, tokens=tokens,
        rows=np.array([4]), out=out, out_stride=96 * 4,
    )  # fmt: skip
    assert np.abs(out[:2] - values[[0, 39]]).max() <= 2 * EPSILON * np.abs(values).max()
    assert (out[2:] == 0).all()


def test_gated_matmul(tmp_path):
    raw, values = weights("F32", 64, 96)
    gate, tile_bytes = packed_matrix(tmp_path, "F32", raw, 0, 3)
    x = np.random.default_rng(1).standard_normal((2, 96)).astype(np.float32) * 3
    out = np.empty((2, 32), np.float32)
    call(
        specialize("matmul", "quant", "numatp.quants.f32").gated_matmul, gate=gate, up=gate[2 * tile_bytes :], tiles=2,
        tile_bytes=tile_bytes, units=3, rows=np.array([2]), x=x, x_stride=96 * 4, x_thread_stride=0, out=out, out_stride=128,
    )  # fmt: skip
    product = x.astype(np.float64) @ values.T.astype(np.float64)
    g, u = product[:, :32], product[:, 32:]
    wanted = g / (1 + np.exp(-g)) * u
    size = np.abs(x) @ np.abs(values).T
    assert (np.abs(out - wanted) <= 32 * EPSILON * (1 + size[:, :32]) * size[:, 32:]).all()


def test_rms_norm_selects_rows():
    x = np.random.default_rng(0).standard_normal((5, 64)).astype(np.float32)
    weight, out = np.linspace(0.5, 2, 64, dtype=np.float32), np.empty((2, 64), np.float32)
    call(
        norm.rms_norm, x=x, rows=np.array([2]), select=np.array([4, 1]), weight=weight, width=64, epsilon=1e-3, out=out,
        out_thread_stride=0, private=0,
    )  # fmt: skip
    wanted = x[[4, 1]] / np.sqrt((x[[4, 1]].astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-3) * weight
    assert np.abs(out - wanted).max() <= 16 * EPSILON * np.abs(wanted).max()


def test_attention_and_rotation_over_shuffled_blocks():
    """Two sequences whose blocks are mixed in the cache; places that are not filled hold not-a-number."""
    rng, heads, kv_heads, size, block = np.random.default_rng(0), 6, 3, 32, attention.CACHE_BLOCK
    lengths, tables = (150, 70), np.array([[4, 0, 3], [5, 2, 1]])
    stride = 2 * kv_heads * size * block * 2
    cache, wanted, out = aligned(6 * stride), [], np.empty((2, heads * size), np.float32)
    scratch = np.empty((3, block), np.float32)
    last_rows = np.empty((2, (heads + 2 * kv_heads) * size), np.float32)
    frequencies = 100.0 ** (-np.arange(0, size, 2) / size)
    for sequence, length in enumerate(lengths):
        qkv = rng.standard_normal((length, heads + 2 * kv_heads, size)).astype(np.float32)
        turn = np.exp(1j * np.arange(length)[:, None, None] * frequencies)
        turned = (qkv[:, : heads + kv_heads, 0::2] + 1j * qkv[:, : heads + kv_heads, 1::2].astype(np.float64)) * turn
        exact = np.stack([turned.real, turned.imag], -1).reshape(length, heads + kv_heads, size)
        angles, positions = np.empty((length, size), np.float32), np.arange(length)
        common = {"rows": np.array([length]), "positions": positions}
        call(rope.rotation_angles, frequencies=frequencies, pairs=size // 2, out=angles, **common)
        call(
            rope.rotate_and_append, qkv=qkv, heads=heads, kv_heads=kv_heads, head_size=size, angles=angles, pairs=size // 2,
            sequences=np.full(length, sequence), tables=tables, table_length=3, keys=cache, values=cache[stride // 2 :],
            block_stride=stride, **common,
        )  # fmt: skip
        assert np.abs(qkv[:, : heads + kv_heads] - exact).max() <= 4 * EPSILON * np.abs(exact).max()
        last_rows[sequence] = qkv[-1].reshape(-1)
        k = exact[:, heads:].astype(np.float16).astype(np.float64)
        v = qkv[:, heads + kv_heads :].astype(np.float16).astype(np.float64)
        for head in range(heads):
            scores = k[:, head // 2] @ exact[-1, head] * 0.25
            p = np.exp(scores - scores.max())
            wanted.append(p @ v[:, head // 2] / p.sum())
    call(
        attention.attention, qkv=last_rows, rows=np.array([2]), heads=heads, kv_heads=kv_heads, head_size=size, first_head=0,
        first_kv_head=0, group=2, scale=0.25, positions=np.array(lengths) - 1, sequences=np.array([0, 1]), tables=tables,
        table_length=3, keys=cache, values=cache[stride // 2 :], block_stride=stride, scratch=scratch,
        scratch_stride=block * 4, out=out,
    )  # fmt: skip
    # A key whose float32 differs in its last bit may round to the float16 next to it.
    assert np.abs(out.reshape(-1) - np.concatenate(wanted)).max() <= 2.0**-11


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_both_ways_of_the_exchange_give_the_same_bits(ranks, lanes):
    rng, width = np.random.default_rng(0), 176
    partials = rng.standard_normal((ranks, 2, width)).astype(np.float32)
    x = rng.standard_normal((2, width)).astype(np.float32)
    wanted = partials[0].copy()
    for rank in range(1, ranks):
        wanted += partials[rank]
    wanted = x + wanted
    common = {"ranks": ranks, "lanes": lanes, "rows": np.array([2]), "width": width}
    table = np.array([partial.ctypes.data for partial in partials], np.uint64)
    short, long = x.copy(), x.copy()
    call(exchange.sum_partials, partials=table, out=short, add=1, **common)
    for rank in range(ranks):
        call(exchange.reduce_scatter, partials=table, rank=rank, **common)
    call(exchange.gather, partials=table, out=long, add=1, **common)
    assert (short == wanted).all()
    assert (long == wanted).all()


def test_greedy_takes_the_first_of_equals():
    logits, out = np.array([[1, 5, 5, 9], [-3, -2, -7, 9]], np.float32), np.zeros(2, np.int64)
    call(sampling.greedy, logits=logits, stride=16, rows=np.array([2]), vocab=3, out=out)
    assert out.tolist() == [1, 1]


def all_kernels():
    modules = [activation, attention, exchange, norm, rope, sampling]
    modules += [specialize("matmul", "quant", quants.find(name, "test").__name__) for name in FORMATS]
    return [value for module in modules for value in vars(module).values() if hasattr(value, "address")]


def may_raise_or_allocate(kernel):
    code = numba.cfunc(kernel.signature, **OPTIONS)(kernel.function).inspect_llvm()
    return any(name in code for name in ("picklebuf", "numba_do_raise", "NRT_"))  # an exception's arguments; its throw; memory


@pytest.mark.parametrize("kernel", all_kernels(), ids=lambda kernel: kernel.name)
def test_kernels_neither_raise_nor_allocate(kernel):
    assert not may_raise_or_allocate(kernel)


def test_a_raising_kernel_would_be_seen():
    @declare(n="int")
    def raising(args, thread, threads):
        if args.n > 1:
            raise ValueError

    assert may_raise_or_allocate(raising)


@pytest.mark.parametrize("level", ["avx2", "avx512bw"])
def test_other_levels_give_the_same_answers(level):
    try:
        isa.choose({"NUMATP_ISA": level})
    except NumatpError as error:
        pytest.skip(str(error))
    # Numba's target is set once in a process, before Numba loads.
    program = (
        "import sys; from numatp.machine import isa; isa.set_numba_target(isa.choose()); import pytest; "
        f"sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', '-k', 'not levels and not raise', {__file__!r}]))"
    )
    result = run(sys.executable, "-c", program, env={"NUMATP_ISA": level})
    assert result.returncode == 0, result.stdout[-3000:]
