"""A model in a Hugging Face folder, seen by the names that GGUF gives to its metadata and tensors.

An architecture file says in a table, HUGGING_FACE, what the folder calls them (see numatp/models/README.md).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from numatp.files import layouts
from numatp.files.folder import Folder, refuse_lost, refuse_unlisted, rope_differs
from numatp.files.gguf_header import fail, quote
from numatp.files.gguf_writer import encoded
from numatp.files.layouts import Config, Layout, Plain, Reordered, Transposed, Turned
from numatp.files.model_file import ModelFile, TensorInfo
from numatp.files.safetensors import FLOATS, SLAB, WHOLE, read_bytes, read_floats, read_whole

HEAD = "lm_head.weight"  # of all architectures
LAYER = re.compile(r"model\.layers\.([0-9]{1,9})\.")
MAX_EXPERTS = 4096
MAX_ROWS = 1 << 24  # of all experts of a layer
# Keys whose numbers are floats in GGUF, however config.json writes them.
FLOATING = re.compile(r"epsilon|freq_base|lower_bound|softcapping|scale$|scaling\.(factor|yarn|low|high)")


# From the metadata: which of the folder's rows each row is, (rows,) or (experts, rows), and how many rows the folder has.
Order = Callable[[ModelFile], tuple[np.ndarray, int]]


@dataclass(frozen=True)
class Stored:
    """How a folder stores what GGUF has under one name.

    name: with {layer}, and with {expert} where every expert's matrix is a tensor of its own. values: makes of the folder's numbers
    those of a GGUF file, for vectors and small tables. order: of its rows, or of a vector's numbers; columns: of its columns.
    transposed: the name under which other folders have the matrices of all experts, (experts, columns, rows). together: the name
    under which still others have them, (experts, rows, columns), and the order of these rows. turned: from the metadata, runs of
    rows, their length, and how many of each are columns of a matrix: see Turned; `order` is of the rows that come of it. whole: a
    table of whole numbers.
    """

    name: str
    values: Callable[[np.ndarray], np.ndarray] | None = None
    order: "Order | None" = None
    transposed: str = ""
    together: "tuple[str, Order] | None" = None
    columns: "Order | None" = None
    turned: Callable[[ModelFile], tuple[int, int, int]] | None = None
    whole: bool = False

    def of_layer(self, layer: int) -> "Stored":
        name, transposed = (name.replace("{layer}", str(layer)) for name in (self.name, self.transposed))
        together = (self.together[0].replace("{layer}", str(layer)), self.together[1]) if self.together else None
        return replace(self, name=name, transposed=transposed, together=together)


@dataclass(frozen=True)
class HuggingFace:
    """What folders call the things of one architecture. GGUF's keys stand without their first word."""

    # Class in `architectures` of config.json -> what transformers takes where config.json is silent.
    classes: Mapping[str, Config]
    # GGUF's key -> the folder's key, or a function of config.json that gives the value; None: not there.
    config: Mapping[str, str | Callable[[Config], Any]]
    # GGUF's name of a tensor -> the folder's.
    tensors: Mapping[str, str | Stored]
    # GGUF's name -> what gives the float32 vector that config.json means, or None.
    computed: Mapping[str, "Callable[[HuggingFaceFile], np.ndarray | None]"] = field(default_factory=dict)
    # Keys of config.json that must have this value where they are there (an Each: a list of it).
    only: Mapping[str, Any] = field(default_factory=dict)
    # Patterns of tensors that nobody needs; these ones older versions of transformers stored.
    ignored: tuple[str, ...] = ("*.rotary_emb.inv_freq",)
    # Patterns of tensors of layers that predict further tokens.
    further: tuple[str, ...] = ()
    # Whether layers behind the model's own are such layers.
    further_layers: bool = False
    # GGUF's tensors that are there only where this key of config.json is true.
    switched: Mapping[str, str] = field(default_factory=dict)
    # Whether the embedding is the output matrix when config.json does not say.
    tied: bool = False
    # Whether each kind of layers has a rotation of its own; None: one way or the other.
    ropes: bool | None = False
    # Keys of `config` that no GGUF file has, and what a file without them means.
    unwritten: Mapping[str, Any] = field(default_factory=lambda: {"rope.scaling.yarn_truncate": True})
    # model_type of the text model in multimodal folders -> (its class, sizes that transformers takes where they are not said).
    texts: Mapping[str, tuple[str, Config]] = field(default_factory=dict)


@dataclass(frozen=True)
class Each:
    """A list, every entry of which must be this."""

    value: Any

    def __str__(self) -> str:
        return f"a list of {quote(self.value)}"


class CannotComputeError(ValueError):
    """A function of HuggingFace.config met what numatp does not compute: the message says it of config.json."""


def numbered_rows(file: ModelFile, *sizes: int) -> np.ndarray:
    """Numbers of rows, in an array of these sizes, for Stored.order. UserError for more rows than any tensor has."""
    if prod(sizes) > MAX_ROWS:
        file.fail(f"makes a tensor of {' x '.join(map(str, sizes))} rows; download the folder again")
    return np.arange(prod(sizes)).reshape(sizes)


def _same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    if (one.type, one.shape) != (other.type, other.shape):
        return False
    parts = range(0, one.num_bytes, SLAB)
    counts = [min(SLAB, one.num_bytes - first) for first in parts]
    return all(
        (read_bytes(one, first, count) == read_bytes(other, first, count)).all() for first, count in zip(parts, counts, strict=True)
    )


@dataclass(frozen=True)
class Assembled:
    """A weight that is not just one tensor as it is: `pieces` lie below each other."""

    name: str  # the folder's, of the first piece
    type: str  # GGUF type that its rows come in
    shape: tuple[int, ...]
    path: Path
    num_bytes: int
    pieces: tuple[Layout, ...] = ()  # none for vectors and tables
    order: np.ndarray | None = None
    values: Callable[[], np.ndarray] | None = None  # vectors and tables: float32 of this shape

    @property
    def note(self) -> str:
        """Of which quantised layout these are the floats, if no type holds its numbers."""
        return self.pieces[0].note if self.pieces else ""


class HuggingFaceFile(ModelFile):
    """A folder as the architecture file `architecture` sees it."""

    def __init__(self, folder: Folder, table: HuggingFace, architecture: str, name: str):
        """architecture: the folder's class; name: GGUF's for it."""
        self.path, self.size, self.notes = folder.config_path, folder.size, folder.notes
        self.config = {**table.classes[architecture], **folder.config, "architectures": [architecture]}
        self._table, self._architecture, self._folder = table, name, folder
        self._names: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo | Assembled] = {}
        for key, wanted in table.only.items():
            self._check_value(key, wanted)
        if self.config.get("rope_parameters") and table.ropes is not None and rope_differs(self.config) != table.ropes:
            which = "each kind of layers a rotation of its own" if not table.ropes else "one rotation for all layers"
            self.fail(f"gives {which} ('rope_parameters'), which this architecture does not have; use another model")
        self._method, self._settings = self._quantization()
        self._add_tensors(folder.tensors)

    def _check_value(self, key: str, wanted: Any) -> None:
        value = self.config.get(key)
        if isinstance(wanted, Each):
            good = not isinstance(value, list) or all(one == wanted.value for one in value)
        else:
            good = value == wanted
        if value is not None and not good:
            shown = str(wanted) if isinstance(wanted, Each) else quote(wanted)
            self.fail(f"{quote(key)} is {quote(value)}, and numatp computes {shown} only; use another model")

    # ------------------------------------------------------------ metadata

    def called(self, tensor: str) -> str:
        return self._names.get(tensor, tensor)

    def integers(self, key: str, default: Sequence[int] | None = None) -> Sequence[int]:
        value = self._get(key, default, "a list of whole numbers")
        good = isinstance(value, Sequence) and all(type(number) is int for number in value)
        return value if good else self._wrong(key, "a list of whole numbers")

    def numbers(self, key: str, default: Sequence[float] | None = None) -> Sequence[float]:
        value = self._get(key, default, "a list of numbers")
        good = isinstance(value, Sequence) and all(type(number) in (int, float) for number in value)
        return value if good else self._wrong(key, "a list of numbers")

    def is_list(self, key: str) -> bool:
        return isinstance(self._value(key)[1], list)

    def flags(self, key: str, default: Sequence[bool] | None = None) -> Sequence[bool]:
        value = self._get(key, default, "a list of true and false")
        good = isinstance(value, Sequence) and all(isinstance(flag, bool) for flag in value)
        return value if good else self._wrong(key, "a list of true and false")

    def encoded_metadata(self) -> dict[str, bytes]:
        """All but the vocabulary."""
        name = self._architecture
        found = {"general.architecture": encoded(name), "general.name": encoded(self.path.resolve().parent.name)}
        scaling = self._value(f"{name}.rope.scaling.type")[1]
        for key in self._table.config:
            value = self._value(f"{name}.{key}")[1]
            if value is None or (key.startswith("rope.scaling.") and scaling == "none"):
                continue
            if key in self._table.unwritten:
                if value != self._table.unwritten[key]:
                    self.fail(f"has {quote(key)} {quote(value)}, which no GGUF file says; use the folder itself")
                continue
            try:
                found[f"{name}.{key}"] = encoded(float(value) if FLOATING.search(key) else value)
            except (TypeError, ValueError, OverflowError):
                self._wrong(f"{name}.{key}", "a value that GGUF can hold")
        return found

    def _value(self, key: str) -> tuple[str, Any]:
        """(what config.json calls it, its value or None)."""
        first, _, rest = key.partition(".")
        if first == "general":
            return rest, self._architecture if rest == "architecture" else None
        source = self._table.config.get(rest)
        if source is None:
            return rest, None
        try:
            return (source, self.config.get(source)) if isinstance(source, str) else (rest, source(self.config))
        except CannotComputeError as error:
            self.fail(f"{error}, which numatp cannot compute; use another model")
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            self.fail(f"what gives {quote(rest)} does not fit together ({quote(str(error))}); download it again")

    def _get(self, key: str, default: Any, expected: str) -> Any:
        name, value = self._value(key)
        value = default if value is None else value
        if value is None:
            self.fail(f"lacks {quote(name)} ({expected}); download the folder again")
        return value

    def _wrong(self, key: str, expected: str, default: object = None) -> NoReturn:
        name, value = self._value(key)
        value = default if value is None else value
        self.fail(f"{quote(name)} should be {expected} and is {quote(value)}; download the folder again")

    # ------------------------------------------------------------ tensors

    def _quantization(self) -> tuple[Any, Config]:
        """(the layout's file or None, its settings)."""
        settings = self.config.get("quantization_config", self.config.get("compression_config"))
        if settings is None:
            return None, {}
        if isinstance(settings, dict) and settings.get("quant_method") is None:
            self.notes.append(f"{self.path}: 'quantization_config' names no method: the weights are read as floats")
            return None, {}
        method = settings.get("quant_method") if isinstance(settings, dict) else None
        layout = layouts.find(method) if isinstance(method, str) else None
        if layout is None:
            self.fail(f"is quantized by method {quote(method)}, and numatp knows {', '.join(layouts.names())}; use another model")
        layout.check(settings, self.fail)
        return layout, settings

    def _add_tensors(self, theirs: dict[str, TensorInfo]) -> None:
        used: set[str] = set()
        # No more layers than tensors: the loop below must not be longer than the file deserves.
        layers = self.count(f"{self._architecture}.block_count", most=max(len(theirs), 1))
        tied = self._is_tied(theirs)
        self._check_index(theirs, tied)
        for ours, named in self._table.tensors.items():
            if ours in self._table.switched and not self.config.get(self._table.switched[ours]):
                continue
            source = Stored(named) if isinstance(named, str) else named
            for layer in range(layers) if "{layer}" in ours else (0,):
                name, stored = ours.replace("{layer}", str(layer)), source.of_layer(layer)
                self._names[name] = stored.name.replace("{expert}", "0")
                parts = self._parts(stored.name, theirs) or self._parts(stored.transposed, theirs)
                if not parts and stored.together:
                    stored = replace(stored, name=stored.together[0], order=stored.together[1])
                    parts = self._parts(stored.name, theirs)
                if not parts:
                    continue
                used |= {info.name for one in parts.values() for info in one.values()}
                if not (ours == "output.weight" and tied):
                    self.tensors[name] = self._assemble(parts, stored)
        for name, compute in self._table.computed.items():
            values = compute(self)
            if values is not None:
                self.tensors[name] = Assembled(name, "F32", values.shape, self.path, values.nbytes, values=partial(np.copy, values))
        if "output.weight" in self._table.tensors and not tied and "output.weight" not in self.tensors:
            self.fail(f"tensor {quote(self.called('output.weight'))} is missing in the folder; download the weights again")
        for name in sorted(name for name, info in theirs.items() if info.name not in used and not self._is_ignored(name)):
            fail(theirs[name].path, f"tensor {quote(name)} is not part of this architecture as numatp knows it; use another model")
        further = sum(map(self._is_further, theirs))
        if further:
            self.notes.append(f"{self.path}: {further} tensors of layers that predict further tokens are left out")

    def _is_ignored(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._table.ignored) or self._is_further(name)

    def _is_further(self, name: str) -> bool:
        """Whether a tensor is part of what predicts further tokens."""
        layer = LAYER.match(name) if self._table.further_layers else None
        behind = layer is not None and int(layer[1]) >= self._num_layers
        return behind or any(fnmatchcase(name, pattern) for pattern in self._table.further)

    @cached_property
    def _num_layers(self) -> int:
        return self.count(f"{self._architecture}.block_count")

    def _is_tied(self, theirs: dict[str, TensorInfo]) -> bool:
        """Whether the embedding is the output matrix too."""
        tied = self.config.get("tie_word_embeddings", self._table.tied)
        if not isinstance(tied, bool):
            self.fail(f"'tie_word_embeddings' should be true or false and is {quote(tied)}; download the folder again")
        named = self._table.tensors["token_embd.weight"]
        head, embedding = theirs.get(HEAD), theirs.get(named if isinstance(named, str) else named.name)
        if not tied or head is None or embedding is None:
            return tied
        if head.name in self._folder.unlisted:
            self.notes.append(f"{self.path}: {head.name} is left out: the index does not name it, and the embedding does its work")
            return True
        if _same_bytes(head, embedding):
            return True
        # As transformers does from version 5 on; older ones took the embedding.
        self.notes.append(f"{self.path}: ties the output matrix to the embedding, yet {head.name} is another: that is used")
        return False

    def _check_index(self, theirs: dict[str, TensorInfo], tied: bool) -> None:
        """UserError where index and files disagree about a tensor that is needed."""
        spare = {HEAD} if tied else set()
        for name in sorted(self._folder.unlisted - spare):
            if not self._is_ignored(name):
                refuse_unlisted(theirs[name])
        for name in sorted(self._folder.lost.keys() - spare):
            if not self._is_ignored(name):
                refuse_lost(name, self._folder.lost[name])

    def _parts(self, name: str, theirs: dict[str, TensorInfo]) -> dict[str, dict[str, TensorInfo]]:
        """By name of each piece: its tensors by suffix, {"": tensor} for one that is stored as it is."""
        if "{expert}" not in name:
            one = self._piece(name, theirs)
            return {name: one} if one else {}
        key = f"{self._architecture}.expert_count"
        if self.integer(key, default=1) == 0:  # a model of an architecture that may do without
            return {}
        experts = self.count(key, default=1, most=MAX_EXPERTS)
        names = [name.replace("{expert}", str(expert)) for expert in range(experts)]
        if not self._piece(names[0], theirs):
            return {}
        found = {one: piece for one in names if (piece := self._piece(one, theirs))}
        lost = [one for one in names if one not in found]
        if lost:
            self.fail(f"tensor {quote(lost[0])} is missing in the folder; download the weights again")
        return found

    def _piece(self, name: str, theirs: dict[str, TensorInfo]) -> dict[str, TensorInfo]:
        if self._method and name.endswith("weight"):
            stem = name.removesuffix("weight")
            parts = {suffix: theirs[stem + suffix] for suffix in self._method.SUFFIXES if stem + suffix in theirs}
            if parts and self._method.is_quantized(parts):
                return parts
        return {"": theirs[name]} if name in theirs else {}

    def _assemble(self, parts: dict[str, dict[str, TensorInfo]], stored: Stored) -> TensorInfo | Assembled:
        (name, tensors), *others = parts.items()
        info = None if others else tensors.get("")
        if info is None:
            return self._stack(parts, stored)
        if stored.whole:
            return _whole(info)
        if info.type not in FLOATS:
            what = f"has type {info.type} and shape {info.shape}"
            fail(info.path, f"tensor {quote(name)} {what}, and should have {' or '.join(FLOATS)}; use another model")
        shape = info.shape if len(info.shape) < 2 else tuple(size for size in info.shape if size != 1)
        if not (stored.values or stored.order or stored.columns or stored.turned) and shape == info.shape:
            return info
        change = stored.values or (lambda values: values)
        if len(shape) == 1 and stored.order:
            order = self._order(info, name, stored.order, shape[0])
            return _changed(info, lambda values: change(values)[order], shape)
        if not stored.order and len(shape) < 3 and (stored.values or len(shape) < 2):
            return _changed(info, change, shape)
        return self._stack(parts, stored)

    def _order(self, info: TensorInfo, name: str, order: Order, length: int) -> np.ndarray:
        numbers, needed = order(self)
        if needed != length:
            fail(info.path, f"tensor {quote(name)} has {length} rows, its architecture needs {needed}; download it again")
        return numbers

    def _stack(self, parts: dict[str, dict[str, TensorInfo]], stored: Stored) -> Assembled:
        """A matrix in rows of a GGUF type: its pieces below each other, or its rows in another order."""
        name, *others = parts
        pieces: tuple[Layout, ...] = tuple(
            self._open_piece(one, tensors, one == stored.transposed) for one, tensors in parts.items()
        )
        first = pieces[0]
        for one, piece in zip(parts, pieces, strict=True):
            if (piece.shape, piece.type) != (first.shape, first.type):
                self.fail(
                    f"tensor {quote(one)} is {piece.type} of shape {piece.shape}, and {quote(name)} {first.type} of "
                    f"{first.shape}; numatp needs experts that are stored alike"
                )
        infos = [info for tensors in parts.values() for info in tensors.values()]
        whole: tuple[int, ...] = (len(pieces), *first.shape) if others else first.shape
        if isinstance(first, Plain) and not others:
            whole = tuple(size for size in first.info.shape if size != 1)
        order = None
        if stored.turned:
            (piece,) = pieces
            turned = Turned(piece, *stored.turned(self), partial(fail, infos[0].path))
            pieces, whole = (turned,), turned.shape
        if stored.order:
            order = self._order(infos[0], name, stored.order, prod(whole[:-1]))
            whole, order = (*order.shape, whole[-1]), order.ravel()
        if stored.columns:
            columns = self._order(infos[0], name, stored.columns, whole[-1])
            pieces = tuple(Reordered(piece, columns, partial(fail, infos[0].path)) for piece in pieces)
        return Assembled(name, first.type, whole, infos[0].path, sum(info.num_bytes for info in infos), pieces, order)

    def _open_piece(self, name: str, parts: dict[str, TensorInfo], transposed: bool) -> Layout:
        if "" not in parts:
            layout: Layout = self._method.open_matrix(name, parts, self._settings, self.fail)
            return layout
        info = parts[""]
        if info.type not in FLOATS or len(info.shape) < (3 if transposed else 2):
            what = f"has type {info.type} and shape {info.shape}"
            needed = "matrices of floats for all experts" if transposed else "a matrix of floats"
            fail(info.path, f"tensor {quote(name)} {what}, and should be {needed}; use another model")
        return Transposed(info) if transposed else Plain(info)


def _changed(info: TensorInfo, change: Callable[[np.ndarray], np.ndarray], shape: tuple[int, ...]) -> Assembled:
    """A vector or small table whose numbers GGUF has otherwise. shape: of the folder's numbers, without dimensions of 1."""
    changed = change(np.zeros(shape, np.float32)).shape
    return Assembled(info.name, "F32", changed, info.path, info.num_bytes, values=lambda: change(read_floats(info).reshape(shape)))


def _whole(info: TensorInfo) -> Assembled:
    """A table of whole numbers."""
    if info.type not in WHOLE or len(info.shape) != 2:
        what = f"has type {info.type} and shape {info.shape}, and should be a table of {' or '.join(WHOLE)}"
        fail(info.path, f"tensor {quote(info.name)} {what}; use another model")
    return Assembled(info.name, "I32", info.shape, info.path, info.num_bytes, values=lambda: read_whole(info).astype(np.int32))
