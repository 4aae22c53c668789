"""Known models (known.py) without their files: metadata and tensors as GGUF files have them, so that a plan needs no download.

`NAME:TYPE` names one, TYPE as llama.cpp's llama-quantize calls it. Which tensor gets which type follows llama-quantize
(src/llama-quant.cpp of llama.cpp).
"""

import re
from collections import Counter
from collections.abc import Iterable
from math import prod
from pathlib import Path

import numpy as np

from numatp import models
from numatp.errors import UserError
from numatp.files.gguf import GGUFFile, Metadata
from numatp.files.gguf_header import LazyArray
from numatp.files.model_file import TensorInfo
from numatp.models.known import SAME, SHAPES, Shape
from numatp.models.spec import Spec
from numatp.quants.mixes import MIXES, base_of, fitting, gets_better, output_type
from numatp.quants.table import FORMATS
from numatp.weights.rules import Extents, Rule

TYPES = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")  # whose files have been compared with a plan
DEFAULT_TYPE = "q4_k_m"
INT32 = 5  # as GGUF numbers kinds of values


def find(name: str) -> str | None:
    """The known name that somebody means: also with other marks between its words, or without the last ones."""
    wanted = re.sub(r"[-_. ]", "", name.lower())
    meant: dict[int, set[str]] = {}  # by how many of the known name's words it lacks
    for known in (*SHAPES, *SAME):
        words = known.split("-")
        for count in range(len(words), 1, -1):
            if wanted == "".join(words[:count]).replace(".", ""):
                meant.setdefault(len(words) - count, set()).add(SAME.get(known, known))
    best = meant[min(meant)] if meant else set()
    return next(iter(best)) if len(best) == 1 else None


def names() -> str:
    """For people."""
    return f"{', '.join(SHAPES)}, with a type as in {next(iter(SHAPES))}:{DEFAULT_TYPE} ({', '.join(TYPES)})"


def header(name: str) -> GGUFFile | None:
    """As a GGUF file of "qwen2.5-72b:q4_k_m" has it; None for a name that is not known, UserError for a type that is not."""
    given, _, kind = name.lower().partition(":")
    base = find(given)
    if base is None:
        return None
    if (kind or DEFAULT_TYPE) not in TYPES:
        raise UserError(f"{name}: no type {kind!r} is known; known types: {', '.join(TYPES)}")
    return describe(SHAPES[base], (kind or DEFAULT_TYPE).upper(), Path(f"{base}:{kind or DEFAULT_TYPE}"))


def describe(shape: Shape, kind: str, path: Path) -> GGUFFile:
    """The header of a file of that shape, most of whose matrices have the format `kind`, or a format of the mix `kind`."""
    file = GGUFFile(path, 0, _metadata(shape))
    # Readers look for the vocabulary in the embedding, for the output matrix, and for a tensor per layer at least.
    width, layers = file.count(f"{shape.architecture}.embedding_length"), file.count(f"{shape.architecture}.block_count")
    file.tensors = {f"blk.{layer}": TensorInfo(f"blk.{layer}", "F32", (1,), 0, 4, path) for layer in range(layers)}
    for tensor in shape.optional:
        file.tensors[tensor] = TensorInfo(tensor, "F32", (1,), 0, 4, path)
    for matrix in ("token_embd.weight", "output.weight")[: 1 if shape.tied else 2]:
        file.tensors[matrix] = TensorInfo(matrix, "F32", (shape.vocab, width), 0, 0, path)
    model = models.find(file)
    spec = model.read_spec(file)
    file.tensors = _tensors(model.rules(spec), spec, path, kind)
    file.size = sum(info.num_bytes for info in file.tensors.values())
    return file


def _metadata(shape: Shape) -> Metadata:
    entries: dict[str, int | float | str | LazyArray] = {"general.architecture": shape.architecture}
    arrays = b""
    for key, value in shape.metadata.items():
        if isinstance(value, list):
            entries[f"{shape.architecture}.{key}"] = LazyArray(INT32, len(value), len(arrays))
            arrays += np.array(value, "<i4").tobytes()
        else:
            entries[f"{shape.architecture}.{key}"] = value
    return Metadata(entries, arrays, {})


def _tensors(rules: Iterable[Rule], spec: Spec, path: Path, wanted: str) -> dict[str, TensorInfo]:
    most, better = base_of(wanted), MIXES[wanted].better if wanted in MIXES else None
    whole = Extents(spec.sizes, None)
    shapes = {rule.name: (rule, whole.shape(rule)) for rule in rules}
    counts = Counter(name.split(".")[2] for name in shapes if name.startswith("blk."))
    seen: Counter[str] = Counter()
    tensors = {}
    for name, (rule, shape) in shapes.items():
        part = name.split(".")[-2]
        kind = most
        if rule.kind == "head":
            kind = output_type(most)
        elif rule.kind in ("vector", "table", "router"):
            kind = "F32"
        elif better and part in ("attn_v", "ffn_down", "ffn_down_exps", "ffn_down_shexp"):
            if gets_better(seen[part], counts[part]):
                kind = better
            elif part == "attn_v" and len(spec.layers) == 80 and most == "Q4_K":
                kind = "Q5_K"
        seen[part] += 1
        kind = fitting(kind, shape[-1]) or kind
        tensors[name] = TensorInfo(name, kind, shape, 0, FORMATS[kind].bytes_of(shape[-1], prod(shape[:-1])), path)
    return tensors
