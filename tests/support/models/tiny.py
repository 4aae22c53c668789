"""Tiny random models as GGUF files, written by the gguf package: sizes that no number of ranks splits evenly."""

from contextlib import suppress

import gguf
import numpy as np
from support.models import vocabularies

from numatp import quants
from numatp.quants.table import FORMATS, TYPES
from numatp.weights import interleaved

OF_IK = [name for name, row in TYPES.items() if row.id >= 133]  # ik_llama.cpp's own types, which the gguf package does not know

SIZES = {
    "width": 96, "heads": 9, "kv_heads": 3, "head_size": 32, "ffn": 160, "vocab": 200, "layers": 2,
    "epsilon": 1e-5, "rope_base": 10000.0, "context": 256,
}  # fmt: skip

# Super-blocks of 256 columns, which 2 and 3 ranks cut between.
SUPER_SIZES = SIZES | {"width": 256, "heads": 8, "kv_heads": 4, "ffn": 512}


def iq1_m_scale(values):
    """uint8 (blocks, 8): each value's float16 as nibbles on top of four words, the lowest first."""
    halves = np.array(values, np.float16).view(np.uint16)
    return (halves[:, None] >> np.arange(0, 16, 4, dtype=np.uint16) << 12).view(np.uint8)


def quantized(data, matrix_type, rng):
    """(bytes (rows, row_bytes), float32 values) of a matrix; random bits that mean values of the size of data in a type that the
    gguf package does not write.
    """
    if matrix_type in OF_IK:
        raw = random_blocks(matrix_type, *data.shape, rng)
        scales_of(raw, matrix_type)[:] *= np.abs(data).mean() / np.abs(unpacked(matrix_type, raw)).mean()
        return raw, unpacked(matrix_type, raw)
    kind = gguf.GGMLQuantizationType[matrix_type]
    with suppress(NotImplementedError):
        packed = gguf.quants.quantize(data, kind).view(np.uint8)
        return packed, gguf.quants.dequantize(packed, kind)
    block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (len(data), data.shape[1] // block * block_bytes), np.uint8)
    if matrix_type not in FORMATS:
        return raw, np.zeros_like(data)  # nobody reads it
    blocks, size = raw.reshape(-1, block_bytes), 1.0
    scales = {place: times * rng.uniform(0.5, 1.5, len(blocks)) for place, times in FORMATS[matrix_type].scales.items()}
    for _ in range(2):  # once to see how large the values are
        for place, values in scales.items():
            blocks[:, place : place + 2] = (size * values).astype(np.float16)[:, None].view(np.uint8)
        if matrix_type == "NVFP4":  # bytes with three bits below the exponent
            blocks[:, :4] = 8 * np.clip(7 + np.round(np.log2(size)), 0, 14) + rng.integers(0, 8, (len(blocks), 4))
        if matrix_type == "IQ1_M":
            blocks[:, 48:] &= np.tile(np.array([0xFF, 0x0F], np.uint8), 4)
            blocks[:, 48:] |= iq1_m_scale(size * rng.uniform(0.5, 1.5, len(blocks)))
        result = gguf.quants.dequantize(raw, kind)
        size = np.abs(data).mean() / np.abs(result).mean()
    return raw, result


def scales_of(raw, matrix_type):
    """Those with which rows begin or their blocks, of one or of four rows, float16 or float32 (parts, scales), within raw."""
    format, rows = TYPES[matrix_type], interleaved.TOGETHER if matrix_type in interleaved.APART else 1
    kind = np.dtype(np.float32 if format.row_bytes == 4 else np.float16)
    parts = raw.reshape(len(raw) // rows, -1) if format.row_bytes else raw.reshape(-1, rows * format.block_bytes)
    return np.lib.stride_tricks.as_strided(
        raw.ravel()[: kind.itemsize].view(kind), (len(parts), rows), (parts.shape[1], kind.itemsize)
    )


def random_blocks(matrix_type, rows, columns, rng):
    """Bytes (rows, row_bytes) of one of ik_llama.cpp's types: any, but for the scales."""
    raw = rng.integers(0, 256, (rows, TYPES[matrix_type].bytes_of(columns)), np.uint8)
    scales = scales_of(raw, matrix_type)
    scales[:] = rng.uniform(0.5, 1.5, scales.shape)
    return raw


def unpacked(matrix_type, raw):
    """Their values, (rows, columns)."""
    if matrix_type in interleaved.APART:
        raw = interleaved.apart(matrix_type, raw.reshape(-1, interleaved.TOGETHER * raw.shape[1]))
    return quants.unpack(matrix_type.removesuffix(interleaved.END), raw)


def shapes_of(s, tied):
    shapes = {"token_embd": (s["vocab"], s["width"]), "output_norm": (s["width"],)}
    if not tied:
        shapes["output"] = (s["vocab"], s["width"])
    for i in range(s["layers"]):
        shapes |= {
            f"blk.{i}.attn_norm": (s["width"],),
            f"blk.{i}.attn_q": (s["heads"] * s["head_size"], s["width"]),
            f"blk.{i}.attn_k": (s["kv_heads"] * s["head_size"], s["width"]),
            f"blk.{i}.attn_v": (s["kv_heads"] * s["head_size"], s["width"]),
            f"blk.{i}.attn_output": (s["width"], s["heads"] * s["head_size"]),
            f"blk.{i}.ffn_norm": (s["width"],),
            f"blk.{i}.ffn_gate": (s["ffn"], s["width"]),
            f"blk.{i}.ffn_up": (s["ffn"], s["width"]),
            f"blk.{i}.ffn_down": (s["width"], s["ffn"]),
        }
    return shapes


def writer_of(path, architecture, s):
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(s["layers"])
    writer.add_context_length(s["context"])
    writer.add_embedding_length(s["width"])
    writer.add_feed_forward_length(s["ffn"])
    writer.add_head_count(s["heads"])
    writer.add_head_count_kv(s["kv_heads"])
    writer.add_layer_norm_rms_eps(s["epsilon"])
    writer.add_rope_freq_base(s["rope_base"])
    writer.add_rope_dimension_count(s["head_size"])
    writer.add_key_length(s["head_size"])  # which is not width / heads
    writer.add_value_length(s["head_size"])
    return writer


def write(
    path, matrix_type="F32", tied=False, architecture="llama", leave_out=(), seed=0, sizes=SIZES, vocabulary=None, factors=False
):
    """Writes the model and returns its tensors as float arrays, as the file's format rounds them.

    factors: whether each matrix has one in a tensor of its own.

    vocabulary: what vocabularies.add wants, for a model that text is given to; or what adds one to the writer.
    """
    rng, writer, tensors = np.random.default_rng(seed), writer_of(path, architecture, sizes), {}
    if callable(vocabulary):
        vocabulary(writer)
    elif vocabulary:
        vocabularies.add(writer, *vocabulary)
    for name, shape in shapes_of(sizes, tied).items():
        if name in leave_out:
            continue
        if len(shape) == 1:
            packed = values = rng.uniform(0.5, 1.5, shape).astype(np.float32)
            kind = TYPES["F32"].id
        else:
            data = (rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32)
            kind = TYPES[matrix_type].id
            factor = np.float32(rng.uniform(0.01, 0.02) if factors else 1)
            packed, values = quantized(data / factor, matrix_type, rng)
            values = values * factor
            if factors:
                writer.add_tensor(f"{name}.scale", factor.reshape(1))
                writer.add_tensor(f"{name}.input_scale", np.ones(1, np.float32))
        writer.add_tensor(f"{name}.weight", packed.view(np.int8), shape, kind)  # of bytes it would take the shape for the blocks'
        tensors[f"{name}.weight"] = values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tensors


def write_huge(path, **sizes):
    """A model of some terabytes, or of other sizes, whose file is a header and a hole."""
    s = SIZES | ({"width": 8192, "ffn": 1 << 20, "layers": 64} | sizes)
    writer = writer_of(path, "llama", s)
    for name, shape in shapes_of(s, tied=True).items():
        writer.add_tensor_info(f"{name}.weight", shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with open(path, "r+b") as file:
        file.truncate(8 << 40)
