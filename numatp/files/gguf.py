"""Read the header of a GGUF file: its metadata, and where each tensor's bytes are. Never touches the tensors' data.

A model may be split over several files; it is read as one, and every tensor says in which file it lies.
"""

import itertools
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from numatp.files.gguf_header import (
    ARRAY,
    BOOL,
    KINDS,
    SCALARS,
    SMALLEST,
    STRING,
    U32,
    U64,
    Header,
    LazyArray,
    Value,
    damaged,
    decode,
    fail,
    quote,
    truncated,
)
from numatp.files.model_file import ModelFile, TensorInfo
from numatp.quants.table import TYPES

TENSOR_TYPES = {row.id: row for row in TYPES.values()}

# Far above any real model; they keep Python's overhead per entry from exhausting memory.
MAX_KEYS, MAX_TENSORS = 1 << 16, 1 << 18
MAX_DIMS = 4
INT = 4  # kind: uint32
PART = re.compile(r"(?s)(.*)-([0-9]{5})-of-([0-9]{5})\.gguf")  # the name of one file of a split model: NAME, part, parts


BLOCK = re.compile(r"blk\.([0-9]{1,9})\.")


class Metadata(Mapping[str, Value]):
    """Key to value; an array is decoded when it is first asked for, since only one rank needs the vocabulary."""

    def __init__(
        self, entries: dict[str, int | float | str | LazyArray], header: bytes, places: dict[str, tuple[int, int]]
    ) -> None:
        """places: where in the header each value begins with its kind, and ends."""
        self.entries = entries
        self._header = header
        self._places = places
        self._decoded: dict[str, Sequence[Value]] = {}
        self._replaced: dict[str, int] = {}
        self._shortened: dict[str, LazyArray] = {}

    def __getitem__(self, key: str) -> Value:
        entry = self.entries[key]
        if not isinstance(entry, LazyArray):
            return entry
        if key not in self._decoded:
            self._decoded[key] = decode(self._header, entry)[0]
        return self._decoded[key]

    def encoded(self, key: str) -> bytes:
        """The kind and the value as they are in the file."""
        if key in self._replaced:
            return U32.pack(INT) + SCALARS[INT].pack(self._replaced[key])
        if key in self._shortened:
            array = self._shortened[key]
            items = self._header[array.start : array.start + array.count * SMALLEST[array.kind]]
            return U32.pack(ARRAY) + U32.pack(array.kind) + U64.pack(array.count) + items
        start, end = self._places[key]
        return self._header[start:end]

    def replace(self, key: str, value: int) -> None:
        """From now on the key has this value."""
        self.entries[key] = self._replaced[key] = value

    def shorten(self, key: str, count: int) -> None:
        """From now on the array of numbers has its first `count` only."""
        entry = self.entries[key]
        assert isinstance(entry, LazyArray) and entry.kind in SCALARS and count <= entry.count
        self.entries[key] = self._shortened[key] = replace(entry, count=count)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


class GGUFFile(ModelFile):
    """The header of a GGUF model; `path` and the metadata are those of its first file, `size` counts the bytes of all files."""

    def __init__(self, path: Path, size: int, metadata: Metadata) -> None:
        self.path = path
        self.size = size
        self.metadata = metadata
        self.notes: list[str] = []
        self.tensors: dict[str, TensorInfo] = {}

    def strings(self, key: str, default: Sequence[str] | None = None) -> Sequence[str]:
        """Bytes that are not UTF-8 come back as lone surrogates (`surrogateescape`), so nothing of a token is lost."""
        texts: Sequence[str] = self._list(key, default, "a list of texts", (STRING,))
        return texts

    def integers(self, key: str, default: Sequence[int] | None = None) -> Sequence[int]:
        numbers: Sequence[int] = self._list(key, default, "a list of whole numbers", (0, 1, 2, 3, 4, 5, 10, 11))
        return numbers

    def flags(self, key: str, default: Sequence[bool] | None = None) -> Sequence[bool]:
        flags: Sequence[bool] = self._list(key, default, "a list of true and false", (BOOL,))
        return flags

    def is_list(self, key: str) -> bool:
        return isinstance(self.metadata.entries.get(key), LazyArray)

    def numbers(self, key: str, default: Sequence[float] | None = None) -> Sequence[float]:
        numbers: Sequence[float] = self._list(key, default, "a list of numbers", (6, 12))
        return numbers

    def encoded_metadata(self) -> dict[str, bytes]:
        return {key: self.metadata.encoded(key) for key in self.metadata}

    def _list(self, key: str, default: Any, expected: str, kinds: tuple[int, ...]) -> Any:
        entry = self._get(key, default, expected)
        if key not in self.metadata.entries:
            return default
        return self.metadata[key] if isinstance(entry, LazyArray) and entry.kind in kinds else self._wrong(key, expected)

    def _get(self, key: str, default: Any, expected: str) -> Any:
        entry = self.metadata.entries.get(key, default)
        if entry is None:
            self.fail(f"the metadata lacks {quote(key)} ({expected}); convert the model again with a current converter")
        return entry

    def _wrong(self, key: str, expected: str, default: object = None) -> NoReturn:
        entry = self.metadata.entries.get(key, default)
        found = f"an array of {entry.count} {KINDS[entry.kind]}" if isinstance(entry, LazyArray) else quote(entry)
        self.fail(f"metadata {quote(key)} should be {expected} and is {found}; convert the model again")


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Read the header of a GGUF file of version 2 or 3, and of all files that it is split into if it is the first of them.

    UserError (one line) for whatever is not sound or not there.
    """
    file = _read_one(Path(path))
    parts = file.integer("split.count", 1)
    if parts > 1:
        _add_parts(file, parts)
    _take_factors(file)
    return file


def _take_factors(file: GGUFFile) -> None:
    """NVFP4 matrices keep a factor of all their weights, or of each expert's, in a tensor of its own."""
    for name in [name for name, info in file.tensors.items() if info.type == "NVFP4" and name.endswith(".weight")]:
        stem, info = name.removesuffix("weight"), file.tensors[name]
        factors = file.tensors.pop(stem + "scale", None)
        file.tensors.pop(stem + "input_scale", None)  # of activations, which are rounded to 8 bits here
        if factors is None:
            continue
        if factors.type != "F32" or math.prod(factors.shape) not in (1, math.prod(info.shape[:-2])):
            what = f"is {factors.type} of shape {factors.shape}, and should be a number in F32, or one for each expert"
            fail(factors.path, f"tensor {quote(factors.name)} {what}; convert the model again")
        file.tensors[name] = replace(info, factors=factors)


def leave_out_further_layers(file: GGUFFile) -> None:
    """Layers behind the model's own that predict further tokens (MTP): the model without them is whole."""
    name = file.text("general.architecture")
    further = file.integer(f"{name}.nextn_predict_layers", default=0)
    if not further:
        return
    layers = file.count(f"{name}.block_count")
    if not 0 < further < layers:
        file.fail(f"claims that {further} of its {layers} layers predict further tokens; convert the model again")
    own = layers - further
    kept = {tensor: info for tensor, info in file.tensors.items() if not (match := BLOCK.match(tensor)) or int(match[1]) < own}
    file.notes.append(f"{file.path}: {len(file.tensors) - len(kept)} tensors of layers that predict further tokens are left out")
    file.tensors = kept
    file.metadata.replace(f"{name}.block_count", own)
    file.metadata.replace(f"{name}.nextn_predict_layers", 0)
    for key, entry in file.metadata.entries.items():
        of_layers = key.startswith(f"{name}.") and not key.startswith(f"{name}.rope.")
        if of_layers and isinstance(entry, LazyArray) and entry.kind in SCALARS and entry.count == layers:
            file.metadata.shorten(key, own)


def part_name(name: str, part: int, parts: int) -> str:
    """What splitting NAME.gguf calls its part, counted from 1."""
    return f"{name}-{part:05}-of-{parts:05}.gguf"


def _add_parts(file: GGUFFile, parts: int) -> None:
    path, own = file.path, file.integer("split.no", 0) + 1
    named = PART.fullmatch(path.name)
    if not 1 <= own <= parts:
        damaged(path, f"it says that it is part {own} of {parts}")
    if not named or (int(named[2]), int(named[3])) != (own, parts):
        file.fail(f"is part {own} of a model split into {parts}; rename it to {part_name('NAME', own, parts)}")
    if own > 1:
        file.fail(f"is part {own} of a split model; give the first part, {quote(part_name(named[1], 1, parts))}")
    for number in range(2, parts + 1):
        name = part_name(named[1], number, parts)
        if not os.path.lexists(path.with_name(name)):
            file.fail(f"its part {quote(name)} is missing; download it into the same folder")
        part = _read_one(path.with_name(name))
        found = part.integer("split.no", 0) + 1, part.integer("split.count", 1)
        if found != (number, parts):
            part.fail(f"says that it is part {found[0]} of {found[1]}, not {number} of {parts}; download it again")
        both = file.tensors.keys() & part.tensors.keys()
        if both:
            part.fail(f"tensor {quote(min(both))} is in another part too; download all parts again")
        file.size += part.size
        file.tensors |= part.tensors
        if len(file.tensors) > MAX_TENSORS:
            file.fail(f"its parts have more than {MAX_TENSORS} tensors; download them again")
    expected = file.integer("split.tensors.count", len(file.tensors))
    if expected != len(file.tensors):
        file.fail(f"its parts have {len(file.tensors)} tensors instead of {expected}; download them again")


def _read_one(path: Path) -> GGUFFile:
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for ever.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        fail(path, f"cannot open: {error.strerror}; check the path and its permissions")
    except ValueError as error:
        fail(path, f"cannot open: {error}; check the path")
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            what = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            fail(path, f"is {what}; give the path of a GGUF file")
        return _parse(Header(fd, status.st_size, path))
    except OSError as error:
        fail(path, f"cannot read: {error.strerror}; check the disk, or copy the file again")
    finally:
        os.close(fd)


def _parse(header: Header) -> GGUFFile:
    path = header.path
    if header.size == 0:
        fail(path, "the file is empty; download it again")
    header.need(min(header.size, 4), "the magic")
    if header.data[:4] != b"GGUF":
        fail(path, "not a GGUF file; give a model in GGUF format")
    header.pos = 4
    version = header.scalar(U32, "the version")
    if version and version & 0xFFFF == 0:
        fail(path, "a big-endian GGUF file; get the little-endian one, or convert it")
    if version not in (2, 3):
        fail(path, f"GGUF version {version}, and numatp reads 2 and 3; convert the model again with a current converter")
    num_tensors, num_keys = header.scalar(U64, "the tensor count"), header.scalar(U64, "the metadata count")
    if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
        damaged(path, f"it claims {num_tensors} tensors and {num_keys} metadata entries")

    entries: dict[str, int | float | str | LazyArray] = {}
    places: dict[str, tuple[int, int]] = {}
    for index in range(num_keys):
        key = header.name(f"the name of metadata entry {index}")
        if key in entries:
            damaged(path, f"metadata {quote(key)} is there twice")
        start = header.pos
        entries[key] = _entry(header, f"metadata {quote(key)}")
        places[key] = start, header.pos
    infos = [_tensor_info(header, index) for index in range(num_tensors)]

    file = GGUFFile(path, header.size, Metadata(entries, bytes(header.data[: header.pos]), places))
    alignment = file.integer("general.alignment", 32)
    if alignment <= 0 or alignment & (alignment - 1):
        damaged(path, f"alignment {alignment} is not a power of two")
    file.tensors = _place(infos, -(-header.pos // alignment) * alignment, alignment, file)
    return file


def _entry(header: Header, what: str) -> int | float | str | LazyArray:
    kind = header.scalar(U32, what)
    if kind in SCALARS:
        value: int | float = header.scalar(SCALARS[kind], what)
        return value
    if kind == STRING:
        return header.string(what).decode(errors="surrogateescape")
    if kind == ARRAY:
        return header.array(what)
    damaged(header.path, f"{what} is of unknown kind {kind}")


# Types of ik_llama.cpp's own that numatp does not read, to say what a file is made for.
OF_IK = {
    134: "IQ1_BN", 135: "IQ2_BN", 153: "IQ2_KT", 154: "IQ3_KT", 155: "IQ4_KT", 158: "IQ1_KT",
    **dict.fromkeys(set(range(202, 400)) - TENSOR_TYPES.keys(), "of several rows at once"),
}  # fmt: skip


def _tensor_info(header: Header, index: int) -> TensorInfo:
    """One row of the tensor table; its offset is still relative to the start of the data."""
    name = header.name(f"the name of tensor {index}")
    what = f"tensor {quote(name)}"
    num_dims = header.scalar(U32, what)
    if not 1 <= num_dims <= MAX_DIMS:
        damaged(header.path, f"{what} has {num_dims} dimensions, not 1 to {MAX_DIMS}")
    dims = [header.scalar(U64, what) for _ in range(num_dims)]  # fastest first, the reverse of a shape
    type_id, offset = header.scalar(U32, what), header.scalar(U64, what)
    if type_id in OF_IK:
        what = f"{what} is {OF_IK[type_id]} (type id {type_id}), which ik_llama.cpp alone knows"
        fail(header.path, f"{what}; use a file for llama.cpp")
    if type_id not in TENSOR_TYPES:
        fail(header.path, f"{what} has type id {type_id}, which numatp does not know; use a file in another quantisation")
    type = TENSOR_TYPES[type_id]
    if 0 in dims or dims[0] % type.block:
        damaged(header.path, f"{what} has dimensions {dims}, not whole {type.name} blocks of {type.block}")
    return TensorInfo(name, type.name, tuple(reversed(dims)), offset, type.bytes_of(dims[0], math.prod(dims[1:])), header.path)


def _place(infos: list[TensorInfo], start: int, alignment: int, file: GGUFFile) -> dict[str, TensorInfo]:
    """Make offsets absolute; every tensor must be aligned, inside the file and apart from the others."""
    path, tensors = file.path, {}
    for info in infos:
        what, offset = f"tensor {quote(info.name)}", start + info.offset
        if info.name in tensors:
            damaged(path, f"{what} is there twice")
        if info.offset % alignment:
            damaged(path, f"{what} starts at byte {offset}, not at a multiple of {alignment}")
        if offset + info.num_bytes > file.size:
            truncated(path, what, offset + info.num_bytes, file.size)
        tensors[info.name] = replace(info, offset=offset)
    in_order = sorted(tensors.values(), key=lambda info: info.offset)
    for one, other in itertools.pairwise(in_order):
        if one.offset + one.num_bytes > other.offset:
            damaged(path, f"tensors {quote(one.name)} and {quote(other.name)} overlap")
    return tensors
