"""A model file in another format: its matrices quantised anew, all else as it is."""

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path

import numpy as np

from numatp import quants
from numatp.errors import UserError
from numatp.files.gguf_writer import GGUFWriter, encoded, new_file, num_bytes
from numatp.files.huggingface import Assembled
from numatp.files.layouts import Rows
from numatp.files.model_file import ModelFile, TensorInfo
from numatp.files.safetensors import FLOATS
from numatp.kernels.fit import MOST_F16
from numatp.quants.mixes import MIXES, base_of, file_type_of, fitting, gets_better, output_type
from numatp.quants.table import FORMATS
from numatp.weights.load import by_piece, factors_of, not_finite
from numatp.weights.rules import Kind

PIECE = 1 << 19  # weights that a thread converts at a time
FLOAT_KINDS = ("vector", "table", "router")  # of Rule.kind: kernels read them as floats, or their errors decide too much
# The same by names, which is all that there is to go by in a file of an architecture that numatp does not know.
KEPT = re.compile(
    r"_norm|ffn_gate_(inp|tid2eid)|indexer\.proj|ssm_conv1d|shortconv|position_embd|token_types|hc_(\w+_)?fn|compressor_ape"
)


@dataclass(frozen=True)
class Change:
    """One tensor and the type that it will have."""

    info: TensorInfo | Assembled
    name: str  # GGUF's
    type: str

    @property
    def num_bytes(self) -> int:
        return num_bytes(self.type, self.info.shape)

    @property
    def num_weights(self) -> int:
        return prod(self.info.shape)


def type_names() -> list[str]:
    return sorted({*quants.writable(), *MIXES})


def choose_types(file: ModelFile, wanted: str, kinds: Mapping[str, Kind] | None = None) -> list[Change]:
    """What becomes of each tensor. kinds: what tensors are by their rules; of others it goes by names. UserError for a tensor that
    numatp cannot read.
    """
    layers = 1 + max((int(match[1]) for match in map(_layer, file.tensors) if match), default=0)
    tied, found = "output.weight" not in file.tensors, kinds or {}
    named = {name: found.get(name) or _kind_by_name(name, tied) for name in file.tensors}
    return [Change(info, name, _type_of(name, info, named[name], wanted, layers)) for name, info in file.tensors.items()]


def _kind_by_name(name: str, tied: bool) -> Kind:
    if KEPT.search(name):
        return "table"
    return "head" if name == ("token_embd.weight" if tied else "output.weight") else "matrix"


def _layer(name: str) -> re.Match[str] | None:
    return re.match(r"blk\.(\d+)\.", name)


def _type_of(name: str, info: TensorInfo | Assembled, kind: Kind, wanted: str, layers: int) -> str:
    if not name.endswith(".weight") or len(info.shape) < 2 or kind in FLOAT_KINDS:
        return "F32" if info.type in FLOATS else info.type
    type = base_of(wanted)
    if kind == "head":
        type = output_type(type)
    elif wanted in MIXES and _matters(name, layers):
        type = MIXES[wanted].better
    quants.format_of(info.type, info.name)
    return fitting(type, info.shape[-1]) or (info.type if info.type in FLOATS else "F32")


def _matters(name: str, layers: int) -> bool:
    """Whether a mix has a better type for the tensor."""
    match = _layer(name)
    return bool(match and re.search(r"attn_v\.|ffn_down", name) and gets_better(int(match[1]), layers))


def describe(changes: list[Change], wanted: str) -> list[str]:
    """Sentences worth showing before the work."""
    lines, main = [], FORMATS[base_of(wanted)]
    others = Counter((c.type, c.info.shape[-1]) for c in changes if c.type == main.narrow and c.type != c.info.type)
    for (type, columns), count in sorted(others.items()):
        why = f"their rows of {columns} are no multiple of {main.block}, as {main.name} needs"
        lines.append(f"{count} tensors become {type}: {why}")
    lossy = {_lossy(c.info) for c in changes if c.type != c.info.type} - {""}
    if lossy:
        lines.append(f"quantised before ({', '.join(sorted(lossy))}): what was lost then stays lost")
    return lines


def _lossy(info: TensorInfo | Assembled) -> str:
    """How a tensor was quantised before, if it was."""
    if isinstance(info, Assembled) and info.note:
        return info.note
    return "" if info.type in FLOATS else info.type


def convert(
    metadata: Mapping[str, bytes], changes: list[Change], wanted: str, out: Path, threads: int, progress: Callable[[int, int], None]
) -> None:
    """Writes `out`. metadata: by key as gguf_writer encodes it. progress(bytes done, bytes in all).

    UserError for weights that are no numbers or do not fit the type.
    """
    ours = {"general.file_type": encoded(file_type_of(wanted)), "general.quantization_version": encoded(2)}
    kept = {key: value for key, value in metadata.items() if not key.startswith("split.") and key != "general.alignment"}
    with new_file(out) as fd, ThreadPoolExecutor(threads) as pool:
        writer = GGUFWriter(fd, kept | ours, [(c.name, c.type, c.info.shape) for c in changes])
        done, total = 0, sum(c.num_bytes for c in changes)
        waiting: deque[Future[int]] = deque()
        try:
            for piece in _pieces(changes, writer):
                waiting.append(pool.submit(piece))
                while len(waiting) > 2 * threads:  # bounds the memory
                    done += waiting.popleft().result()
                    progress(done, total)
            while waiting:
                done += waiting.popleft().result()
                progress(done, total)
        finally:
            pool.shutdown(cancel_futures=True)


def _pieces(changes: list[Change], writer: GGUFWriter) -> Iterator[Callable[[], int]]:
    """Jobs that convert some rows of one tensor each and return the bytes that they wrote."""
    for change in changes:
        step = max(PIECE // change.info.shape[-1], 1)
        row_bytes, position = num_bytes(change.type, change.info.shape[-1:]), writer.offsets[change.name]
        factors = factors_of(change.info, [range(prod(change.info.shape[:-1]))])
        if factors is not None and change.type == change.info.type:
            what = "has a factor beside its blocks, which numatp does not write"
            raise UserError(f"{change.info.path}: tensor '{change.info.name}' {what}; use the model as it is")
        start = 0
        for read, rows in _sources(change.info):
            for first in range(0, rows, step):
                own = slice(first, min(first + step, rows))
                each = None if factors is None else factors[start + own.start : start + own.stop, None]
                yield partial(_piece, change, read, own, each, writer, position + first * row_bytes)
            start += rows
            position += rows * row_bytes


def _sources(info: TensorInfo | Assembled) -> Iterator[tuple[Rows, int]]:
    """What reads rows of a tensor as blocks of its type, and how many: one part after another."""
    rows = prod(info.shape[:-1])
    if isinstance(info, TensorInfo):
        yield partial(_read, info, info.num_bytes // rows), rows
    elif info.values:
        values = np.ascontiguousarray(info.values().reshape(rows, -1))
        yield values.view(np.uint8).__getitem__, rows
    else:
        for layout, numbers in by_piece(info, [range(rows)]):
            yield layout.cut(numbers, range(info.shape[-1])), len(numbers)


def _piece(change: Change, read: Rows, rows: slice, factors: np.ndarray | None, writer: GGUFWriter, position: int) -> int:
    """factors: of each row, (rows, 1)."""
    raw = read(rows)
    if change.info.type in FORMATS:  # a tensor that stays as it is may also be of another type
        x = quants.unpack(change.info.type, raw)
        if factors is not None:
            x *= factors
        _check(x, change)
        if change.type != change.info.type:
            # A vector need not be whole blocks, which even F32 has here.
            raw = x if change.type == "F32" else quants.quantize(change.type, x)
    data = raw.tobytes()
    writer.write(data, position)
    return len(data)


def _read(info: TensorInfo, row_bytes: int, rows: slice) -> np.ndarray:
    parts: list[bytes] = []
    position, count = info.offset + rows.start * row_bytes, (rows.stop - rows.start) * row_bytes
    try:
        with open(info.path, "rb", buffering=0) as source:
            while count:
                part = os.pread(source.fileno(), count, position)
                if not part:
                    raise UserError(f"{info.path}: tensor '{info.name}' cannot be read: the file has shrunk")
                parts.append(part)
                count, position = count - len(part), position + len(part)
    except OSError as error:
        raise UserError(f"{info.path}: tensor '{info.name}' cannot be read: {error.strerror}; check the disk") from None
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, row_bytes)


def _check(x: np.ndarray, change: Change) -> None:
    largest = np.abs(x).max()  # not a number if one is none
    if not np.isfinite(largest):
        raise not_finite(change.info)
    if change.type == "F16" and largest > MOST_F16:
        raise UserError(f"{change.info.path}: tensor '{change.info.name}' holds {largest:g}, too large for F16; use BF16")
