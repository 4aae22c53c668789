"""A model in a Hugging Face folder, seen by the names that GGUF gives to its metadata and tensors.

An architecture file says in a table, HUGGING_FACE, what the folder calls them (see numatp/models/__init__.py).
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from numatp.files import layouts
from numatp.files.gguf_header import fail, quote
from numatp.files.gguf_writer import encoded
from numatp.files.layouts import Config, Layout, Plain
from numatp.files.model_file import ModelFile, TensorInfo
from numatp.files.safetensors import FLOATS, open_file, parse_json, read_floats, read_header

MAX_JSON = 1 << 26  # bytes; real indices have a few
MAX_EXPERTS = 4096
MAX_ROWS = 1 << 24  # of all experts of a layer
# Keys whose numbers are floats in GGUF, however config.json writes them.
FLOATING = re.compile(r"epsilon|freq_base|softcapping|scale$|scaling\.(factor|yarn|low|high)")


@dataclass(frozen=True)
class Stored:
    """How a folder stores what GGUF has under one name.

    name: with {layer}, and with {expert} where every expert's matrix is a tensor of its own. values: makes of the folder's numbers
    those of a GGUF file, for vectors and small tables. order: from the metadata, which of the folder's rows each row is, (rows,) or
    (experts, rows), and how many rows the folder has.
    """

    name: str
    values: Callable[[np.ndarray], np.ndarray] | None = None
    order: Callable[[ModelFile], tuple[np.ndarray, int]] | None = None


def plus_one(name: str) -> Stored:
    """A norm that multiplies by 1 + weight."""
    return Stored(name, values=lambda weight: weight + np.float32(1))


@dataclass(frozen=True)
class HuggingFace:
    """What folders call the things of one architecture.

    classes: of `architectures` in config.json. config: GGUF's key without its first word -> the folder's key, or a function of
    config.json that gives the value, None where there is none. only: keys that must have this value where they are there.
    tensors: GGUF's name -> the folder's. computed: GGUF's name -> what gives the float32 vector that config.json means, or None.
    ignored: patterns of tensors that nobody needs. tied: whether the embedding is the output matrix when config.json does not say.
    """

    classes: tuple[str, ...]
    config: Mapping[str, str | Callable[[Config], Any]]
    tensors: Mapping[str, str | Stored]
    computed: Mapping[str, "Callable[[HuggingFaceFile], np.ndarray | None]"] = field(default_factory=dict)
    only: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    tied: bool = False


def numbered_rows(file: ModelFile, *sizes: int) -> np.ndarray:
    """Numbers of rows, in an array of these sizes, for Stored.order. UserError for more rows than any tensor has."""
    if prod(sizes) > MAX_ROWS:
        file.fail(f"makes a tensor of {' x '.join(map(str, sizes))} rows; download the folder again")
    return np.arange(prod(sizes)).reshape(sizes)


def rope_scaling(config: Config) -> Config:
    scaling = config.get("rope_scaling")
    return scaling if isinstance(scaling, dict) else {}


def rope_type(config: Config) -> Any:
    """As GGUF's rope.scaling.type."""
    scaling = rope_scaling(config)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return "none" if kind == "default" else kind


# What nearly all architectures have under these names.
CONFIG: dict[str, str | Callable[[Config], Any]] = {
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
    "rope.scaling.type": rope_type,
    "rope.scaling.factor": lambda config: rope_scaling(config).get("factor"),
    "rope.scaling.original_context_length": lambda config: rope_scaling(config).get("original_max_position_embeddings"),
    "rope.scaling.yarn_beta_fast": lambda config: rope_scaling(config).get("beta_fast"),
    "rope.scaling.yarn_beta_slow": lambda config: rope_scaling(config).get("beta_slow"),
    "rope.scaling.yarn_attn_factor": lambda config: rope_scaling(config).get("attention_factor"),
}
ENDS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
ATTENTION = {
    f"blk.{{layer}}.{ours}.weight": f"model.layers.{{layer}}.{theirs}.weight"
    for ours, theirs in (
        ("attn_norm", "input_layernorm"),
        ("attn_q", "self_attn.q_proj"),
        ("attn_k", "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
    )
}
QKV_BIAS = {f"blk.{{layer}}.attn_{name}.bias": f"model.layers.{{layer}}.self_attn.{name}_proj.bias" for name in "qkv"}
FFN = {f"blk.{{layer}}.ffn_{name}.weight": f"model.layers.{{layer}}.mlp.{name}_proj.weight" for name in ("gate", "up", "down")}
EXPERTS = {
    f"blk.{{layer}}.ffn_{name}_exps.weight": f"model.layers.{{layer}}.mlp.experts.{{expert}}.{name}_proj.weight"
    for name in ("gate", "up", "down")
} | {"blk.{layer}.ffn_gate_inp.weight": "model.layers.{layer}.mlp.gate.weight"}


MIXTURE: dict[str, str | Callable[[Config], Any]] = {
    "expert_count": lambda config: config.get("num_experts", config.get("num_local_experts")),
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
    "expert_weights_norm": "norm_topk_prob",
}
SHARED_EXPERT = {
    f"blk.{{layer}}.ffn_{name}_shexp.weight": f"model.layers.{{layer}}.mlp.shared_expert.{name}_proj.weight"
    for name in ("gate", "up", "down")
} | {"blk.{layer}.ffn_gate_inp_shexp.weight": "model.layers.{layer}.mlp.shared_expert_gate.weight"}


def layer_types(kind: str, period: str) -> Callable[[Config], Any]:
    """A flag per layer: whether it is of that kind; or, in older folders, what they call the period after which one is not."""

    def read(config: Config) -> Any:
        kinds = config.get("layer_types")
        return config.get(period) if kinds is None else [one == kind for one in kinds]

    return read


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


class Folder:
    """config.json, and the tensors of all safetensors files by the folder's own names."""

    def __init__(self, path: Path):
        self.path = path
        self.config_path = path / "config.json"
        self.config = _flat(self.config_path, read_json(self.config_path))
        self.tensors, self.size = _read_tensors(path)
        self.architecture = self._architecture()

    def _architecture(self) -> str:
        classes = self.config.get("architectures")
        if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
            fail(self.config_path, f'"architectures" is {quote(classes)}, and should name a class; download the folder again')
        return classes[0]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a folder."""
    return parse_json(path, read_bytes_of(path))


def read_bytes_of(path: Path) -> bytes:
    """A file of a folder that is not large."""
    fd = open_file(path)
    with open(fd, "rb") as file:
        try:
            raw = file.read(MAX_JSON + 1)
        except OSError as error:
            fail(path, f"cannot read: {error.strerror}; check the disk, or copy the file again")
    if len(raw) > MAX_JSON:
        fail(path, f"is larger than {MAX_JSON >> 20} MiB; download it again")
    return raw


def _flat(path: Path, config: Config) -> Config:
    """The text model's part of a multimodal config, and rope_parameters as the older keys that it stands for."""
    text = config.get("text_config")
    if isinstance(text, dict):
        config = {**config, **text, "architectures": config.get("architectures")}
    rope = config.get("rope_parameters")
    if isinstance(rope, dict) and not any(isinstance(value, dict) for value in rope.values()):
        moved = {key: rope[key] for key in ("rope_theta", "partial_rotary_factor") if key in rope}
        config = {"rope_scaling": rope, **moved, **config}
    scaling = config.get("rope_scaling")
    if scaling is not None and not isinstance(scaling, dict):
        fail(path, f"'rope_scaling' is {quote(scaling)}, and should be an object or null; download it again")
    return config if rope_type(config) != "none" else {**config, "rope_scaling": None}


def _read_tensors(path: Path) -> tuple[dict[str, TensorInfo], int]:
    index, single = path / "model.safetensors.index.json", path / "model.safetensors"
    if not index.exists():
        if not single.exists():
            fail(path, "has neither model.safetensors nor model.safetensors.index.json; download the weights into it")
        return read_header(single)
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(map(_is_file_name, places.values())):
        fail(index, '"weight_map" should give every tensor the name of a file; download it again')
    tensors: dict[str, TensorInfo] = {}
    size = 0
    for name in sorted(set(places.values())):
        if not (path / name).exists():
            fail(path / name, f"is missing, and {quote(index.name)} names it; download it into the same folder")
        found, num_bytes = read_header(path / name)
        size += num_bytes
        for tensor, info in found.items():
            if places.get(tensor) != name:
                fail(info.path, f"tensor {quote(tensor)} is not in {quote(index.name)} as one of this file; download both again")
            tensors[tensor] = info
    lost = places.keys() - tensors.keys()
    if lost:
        fail(path / places[min(lost)], f"lacks tensor {quote(min(lost))}, which {quote(index.name)} names; download both again")
    return tensors, size


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name == os.path.basename(name) and name.isprintable()


class HuggingFaceFile(ModelFile):
    """A folder as the architecture file `architecture` sees it."""

    def __init__(self, folder: Folder, table: HuggingFace, architecture: str):
        self.path, self.size, self.config = folder.config_path, folder.size, folder.config
        self._table, self._architecture, self._folder = table, architecture, folder
        self._names: dict[str, str] = {}
        self.tensors: dict[str, TensorInfo | Assembled] = {}
        for key, wanted in table.only.items():
            if self.config.get(key) is not None and self.config[key] != wanted:
                self.fail(f"{quote(key)} is {quote(self.config[key])}, and numatp computes {quote(wanted)} only; use another model")
        self._method, self._settings = self._quantization()
        self._add_tensors(folder.tensors)

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
            try:
                found[f"{name}.{key}"] = encoded(float(value) if FLOATING.search(key) else value)
            except (TypeError, ValueError):
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
        tied = self.config.get("tie_word_embeddings", self._table.tied)
        if not isinstance(tied, bool):
            self.fail(f"'tie_word_embeddings' should be true or false and is {quote(tied)}; download the folder again")
        for ours, stored in self._table.tensors.items():
            stored = Stored(stored) if isinstance(stored, str) else stored
            for layer in range(layers) if "{layer}" in ours else (0,):
                name = ours.replace("{layer}", str(layer))
                theirs_name = stored.name.replace("{layer}", str(layer))
                self._names[name] = theirs_name.replace("{expert}", "0")
                parts = self._parts(theirs_name, theirs)
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
        for name in sorted(theirs.keys() - used):
            if not any(fnmatchcase(name, pattern) for pattern in self._table.ignored):
                fail(
                    theirs[name].path,
                    f"tensor {quote(name)} is not part of this architecture as numatp knows it; use another model",
                )

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
        (name, first), *others = parts.items()  # the first piece stands for all
        if not others and "" in first:
            info = first[""]
            if info.type not in FLOATS:
                what = f"has type {info.type} and shape {info.shape}"
                fail(info.path, f"tensor {quote(name)} {what}, and should have {' or '.join(FLOATS)}; use another model")
            shape = info.shape if len(info.shape) < 2 else tuple(size for size in info.shape if size != 1)
            if not stored.values and not stored.order and shape == info.shape and info.type in FLOATS:
                return info
            if not stored.order and len(shape) < 3 and (stored.values or len(shape) < 2):
                change = stored.values or (lambda values: values)
                changed = change(np.zeros(shape, np.float32)).shape
                return Assembled(
                    name, "F32", changed, info.path, info.num_bytes, values=lambda: change(read_floats(info).reshape(shape))
                )
        pieces = tuple(self._open_piece(one, tensors) for one, tensors in parts.items())
        for one, piece in zip(parts, pieces, strict=True):
            if (piece.shape, piece.type) != (pieces[0].shape, pieces[0].type):
                self.fail(
                    f"tensor {quote(one)} is {piece.type} of shape {piece.shape}, and {quote(name)} {pieces[0].type} of "
                    f"{pieces[0].shape}; numatp needs experts that are stored alike"
                )
        infos = [info for tensors in parts.values() for info in tensors.values()]
        whole: tuple[int, ...] = (len(pieces), *pieces[0].shape) if others else pieces[0].shape
        if not others and "" in first:
            whole = tuple(size for size in first[""].shape if size != 1)
        order = None
        if stored.order:
            order, rows = stored.order(self)
            if rows != whole[0]:
                fail(infos[0].path, f"tensor {quote(name)} has {whole[0]} rows, its architecture needs {rows}; download it again")
            whole, order = (*order.shape, *whole[1:]), order.ravel()
        return Assembled(name, pieces[0].type, whole, infos[0].path, sum(info.num_bytes for info in infos), pieces, order)

    def _open_piece(self, name: str, parts: dict[str, TensorInfo]) -> Layout:
        if "" not in parts:
            layout: Layout = self._method.open_matrix(name, parts, self._settings, self.fail)
            return layout
        info = parts[""]
        if info.type not in FLOATS or len(info.shape) < 2:
            what = f"has type {info.type} and shape {info.shape}"
            fail(info.path, f"tensor {quote(name)} {what}, and should be a matrix of floats; use another model")
        return Plain(info)
