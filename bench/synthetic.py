"""A GGUF file of random weights at the shape of a known model: `python bench/synthetic.py llama-3.2-1b Q4_0 FILE [--layers N|A:B]`

For speed and memory, which do not depend on what the weights are. MODEL is one that `numatp plan` knows. TYPE is a format (all
matrices, and Q6_K for the matrix that makes the logits, as llama.cpp quantises), or one of llama.cpp's mixes; --pure leaves the
logits' matrix in the format of most others too. The vocabulary has the model's size, and tokens that llama.cpp and numatp accept.
"""

import argparse
import dataclasses
import math
import sys
import time
from pathlib import Path

import gguf
import numpy as np

from numatp.models import shapes
from numatp.models.known import Shape
from numatp.quants.mixes import MIXES, base_of, fitting
from numatp.quants.table import FORMATS

WRITTEN = ("F32", "F16", "BF16", "MXFP4", "TQ2_0")  # by the gguf package; the codes of random bytes have another mean in TQ2_0
VECTORS = {"ssm_a": -0.5}  # of which values all others are 1: a state loses half of its logarithm's softplus with each token
# Types of which random bytes make weights.
SCALES = {
    name: row.scales
    for name, row in FORMATS.items()
    if name == "NVFP4" or (row.scales and name not in WRITTEN and name in gguf.GGMLQuantizationType.__members__)
}
NVFP4_SCALES = 2 * gguf.quants.NVFP4.ue4m3_to_fp32(np.arange(127, dtype=np.uint8))  # of each byte
CHUNK = 32 << 20  # bytes of a matrix that are made and written at a time


def shape_of(name: str, layers: int | range | None = None) -> Shape:
    """Of a known model, or of so many of its first layers, of which as many are dense as in all, or of a run of its layers."""
    shape = shapes.SHAPES[shapes.find(name)]
    if layers is None:
        return shape
    run = layers if isinstance(layers, range) else range(layers)
    metadata = {key: value[run.start : run.stop] if isinstance(value, list) else value for key, value in shape.metadata.items()}
    dense = "leading_dense_block_count"
    if dense in metadata and not isinstance(layers, range):
        metadata[dense] = round(metadata[dense] * layers / metadata["block_count"])
    for key in (dense, "hash_layer_count"):  # of layers that come first
        if key in metadata and isinstance(layers, range):
            metadata[key] = min(max(metadata[key] - run.start, 0), len(run))
    return dataclasses.replace(shape, metadata=metadata | {"block_count": len(run)})


def layers_of(text: str) -> int | range:
    """Of the option."""
    first, colon, behind = text.partition(":")
    return range(int(first), int(behind)) if colon else int(text)


def add_vocabulary(writer, size):
    """The 256 bytes, then words of two and three letters with the merge that makes each, then two special tokens."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (chr(0x100 + i) for i in range(256))
    letters = [chr(byte) if byte in printable else next(others) for byte in range(256)]
    tokens, merges = list(letters), []
    for i in range(size - 2 - len(letters)):
        left, right = tokens[i // 256], letters[i % 256]  # words of three letters begin with those of two
        tokens.append(left + right)
        merges.append(f"{left} {right}")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([*tokens, "<|begin_of_text|>", "<|end_of_text|>"])
    writer.add_token_types([1] * len(tokens) + [3, 3])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(size - 2)
    writer.add_eos_token_id(size - 1)


def add_metadata(writer, shape):
    metadata = dict(shape.metadata)
    # What llama.cpp would take from the width, or demand, where numatp finds it in other keys.
    if latent := metadata.get("attention.kv_lora_rank"):
        metadata |= {"attention.key_length": latent + metadata["rope.dimension_count"], "attention.value_length": latent}
        metadata.setdefault("attention.head_count_kv", 1)
    elif "attention.key_length" in metadata:
        metadata.setdefault("attention.value_length", metadata["attention.key_length"])
    for key, value in metadata.items():
        if isinstance(value, list):
            writer.add_array(f"{shape.architecture}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{shape.architecture}.{key}", value)
        else:
            writer.add_uint32(f"{shape.architecture}.{key}", value)
    add_vocabulary(writer, shape.vocab)


class Blocks:
    """Random blocks of one format, whose values have mean 0 and a chosen deviation."""

    def __init__(self, kind, rng):
        self.kind, self.rng = gguf.GGMLQuantizationType[kind], rng
        self.block, self.block_bytes = gguf.GGML_QUANT_SIZES[self.kind]
        self.random = kind in SCALES
        if self.random:
            self.deviation = float(gguf.quants.dequantize(self.make(4096 * self.block, 1.0), self.kind).std())

    def make(self, values, deviation):
        """uint8 of so many values."""
        if not self.random:
            data = self.rng.standard_normal(values, np.float32) * np.float32(deviation)
            return gguf.quants.quantize(data, self.kind).view(np.uint8).reshape(-1)
        num_bytes = values // self.block * self.block_bytes
        raw = self.rng.integers(0, 1 << 64, -(-num_bytes // 8), np.uint64).view(np.uint8)[:num_bytes]
        blocks = raw.reshape(-1, self.block_bytes)
        unit = deviation / getattr(self, "deviation", 1.0)
        if self.kind.name == "NVFP4":  # bytes near the scale, whose mean it is
            above = int(np.searchsorted(NVFP4_SCALES, unit))
            part = (unit - NVFP4_SCALES[above - 1]) / (NVFP4_SCALES[above] - NVFP4_SCALES[above - 1])
            blocks[:, :4] = above - (self.rng.random((len(blocks), 4), np.float32) > part)
        for place, times in SCALES[self.kind.name].items():
            blocks[:, place : place + 2] = np.frombuffer(np.float16(unit * times).tobytes(), np.uint8)
        return raw


def write(path, shape, kind, pure=False, seed=0):
    """Writes the file at `path`; `kind` of SCALES, WRITTEN or MIXES."""
    rng = np.random.Generator(np.random.SFC64(seed))
    writer = gguf.GGUFWriter(str(path), shape.architecture)
    add_metadata(writer, shape)
    tensors = shapes.describe(shape, kind, path).tensors
    if pure:
        head = tensors["token_embd.weight" if shape.tied else "output.weight"]
        tensors[head.name] = dataclasses.replace(head, type=fitting(base_of(kind), head.shape[-1]))
    makers = {info.type: Blocks(info.type, rng) for info in tensors.values()}
    for info in tensors.values():
        maker = makers[info.type]
        row_bytes = info.shape[-1] // maker.block * maker.block_bytes
        num_bytes = math.prod(info.shape[:-1]) * row_bytes
        writer.add_tensor_info(info.name, (*info.shape[:-1], row_bytes), np.dtype(np.uint8), num_bytes, maker.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    file = writer.fout[0]
    writer.write_padding(file, file.tell())
    for info in tensors.values():
        left, maker = math.prod(info.shape), makers[info.type]
        if len(info.shape) == 1:
            file.write(np.full(left, VECTORS.get(info.name.rpartition(".")[2], 1), np.float32))
        while len(info.shape) > 1 and left:
            count = min(left, CHUNK // maker.block_bytes * maker.block)
            file.write(maker.make(count, 1 / math.sqrt(info.shape[-1])))
            left -= count
        writer.write_padding(file, file.tell())
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", choices=(*shapes.SHAPES, *shapes.SAME), metavar="MODEL", help=", ".join(shapes.SHAPES))
    kinds = [*MIXES, *SCALES, *WRITTEN]
    parser.add_argument("type", choices=kinds, metavar="TYPE", help=", ".join(kinds))
    parser.add_argument("file", type=Path)
    parser.add_argument("--layers", type=layers_of, metavar="N", help="instead of all the first ones, or A:B, a run of them")
    parser.add_argument("--pure", action="store_true", help="the matrix that makes the logits in TYPE too")
    options = parser.parse_args()
    began = time.perf_counter()
    write(options.file, shape_of(options.model, options.layers), options.type, options.pure)
    size, took = options.file.stat().st_size / 1e9, time.perf_counter() - began
    print(f"{options.file}: {size:.2f} GB in {took:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
