"""A Hugging Face folder: config.json, and where each tensor of its safetensors files lies, by the folder's own names."""

import os
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

from numatp.files import mistral
from numatp.files.gguf_header import fail, quote
from numatp.files.layouts import Config
from numatp.files.model_file import TensorInfo
from numatp.files.safetensors import open_file, parse_json, read_header

MAX_JSON = 1 << 26  # bytes; real indices have a few
INDEX = "model.safetensors.index.json"


class Folder:
    """config.json, and the tensors of all safetensors files by the folder's own names."""

    def __init__(self, path: Path):
        self.path = path
        self._own = mistral.is_own(path)
        self.config_path = path / (mistral.PARAMS if self._own else "config.json")
        self.config = read_json(self.config_path)
        if self._own:
            self.config = mistral.config_of(self.config_path, self.config)
        self.notes: list[str] = []
        text = self.config.get("text_config")
        # Qwen2-VL has its text model's keys beside those of other parts.
        kind = text.get("model_type") if isinstance(text, dict) else self.config.get("model_type")
        self.text_type = kind if isinstance(kind, str) else ""
        if isinstance(text, dict):  # the text model's part of a multimodal config
            self.config = {**self.config, **text, "architectures": self.config.get("architectures")}
        for key in ("rope_parameters", "rope_scaling"):
            if self.config.get(key) is None:  # which is as good as absent
                self.config.pop(key, None)
        _check_rope(self.config_path, self.config)
        self.architecture = self._architecture()
        self._read_tensors()
        if self._own:
            self._rename_tensors()

    def _architecture(self) -> str:
        classes = self.config.get("architectures")
        if not isinstance(classes, list) or not classes or not isinstance(classes[0], str):
            fail(self.config_path, f'"architectures" is {quote(classes)}, and should name a class; download the folder again')
        return classes[0]

    def _read_tensors(self) -> None:
        """tensors; unlisted: those that the index does not name; lost: those that only the index names, and the file of each."""
        single = self.path / f"{mistral.WEIGHTS if self._own else 'model'}.safetensors"
        index = single.with_name(f"{single.name}.index.json")
        self.unlisted: set[str] = set()
        self.lost: dict[str, Path] = {}
        if not index.exists():
            if not single.exists():
                fail(self.path, f"has neither {single.name} nor {index.name}; download the weights into it")
            self.tensors, self.size = read_header(single)
            return
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(map(_is_file_name, places.values())):
            fail(index, '"weight_map" should give every tensor the name of a file; download it again')
        self.tensors, self.size = {}, 0
        names = sorted(set(places.values()))
        for name in names:
            if not (self.path / name).exists():
                fail(
                    self.path / name,
                    f"is missing, and {quote(index.name)} names it; download it into the same folder, or both anew",
                )
        for name in names:
            found, num_bytes = read_header(self.path / name)
            self.size += num_bytes
            for tensor, info in found.items():
                if places.get(tensor, name) != name:
                    refuse_unlisted(info)
                self.tensors[tensor] = info
        self.unlisted = self.tensors.keys() - places.keys()
        self.lost = {tensor: self.path / places[tensor] for tensor in places.keys() - self.tensors.keys()}

    def _rename_tensors(self) -> None:
        """As a Hugging Face folder calls them, without those of images."""
        images = sum(not mistral.name_of(name) for name in self.tensors)
        self.tensors = {own: info for name, info in self.tensors.items() if (own := mistral.name_of(name))}
        self.lost = {own: path for name, path in self.lost.items() if (own := mistral.name_of(name))}
        self.unlisted = {own for name in self.unlisted if (own := mistral.name_of(name))}
        if images:
            self.notes.append(f"{self.config_path}: the text model alone is loaded; images are not understood")

    def keep_text(self) -> None:
        """Of a multimodal folder the tensors of the text model, by the names that they have in a folder of their own."""
        others = Counter[str]()
        for names in (self.tensors, self.lost):
            kept: dict[str, Any] = {}
            for name, value in names.items():
                own = text_name(name)
                if own in kept:
                    fail(self.path, f"has tensor {quote(own)} twice, also as {quote(name)}; download it again")
                if own:
                    kept[own] = value
                else:
                    others[name.removeprefix("model.").partition(".")[0]] += names is self.tensors
            names.clear()
            names.update(kept)
        self.unlisted = {own for own in map(text_name, self.unlisted) if own}
        left_out = f", {', '.join(sorted(others))} left out" if others else ""
        self.notes.append(f"{self.architecture}: the text model alone is loaded{left_out}; images and sounds are not understood")


TEXT_PARTS = ("model.embed_tokens.", "model.layers.", "model.norm.")
TEXT_PREFIXES = ("language_model.model.", "model.language_model.", "model.text_model.", "language_model.")


def text_name(name: str) -> str:
    """What a folder of the text model alone calls that tensor of a multimodal one; "" for tensors of other parts."""
    if name.endswith("lm_head.weight"):
        return "lm_head.weight"
    if name.startswith(TEXT_PARTS):
        return name
    prefix = next(filter(name.startswith, TEXT_PREFIXES), None)
    return f"model.{name.removeprefix(prefix)}" if prefix else ""


def refuse_unlisted(info: TensorInfo) -> NoReturn:
    fail(info.path, f"tensor {quote(info.name)} is not in {quote(_index_of(info.path))} as one of this file; download both again")


def refuse_lost(name: str, path: Path) -> NoReturn:
    fail(path, f"lacks tensor {quote(name)}, which {quote(_index_of(path))} names; download both again")


def _index_of(path: Path) -> str:
    """The name of the list in which the tensors of a file are."""
    return f"{mistral.WEIGHTS}.safetensors.index.json" if path.name.startswith(mistral.WEIGHTS) else INDEX


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


def _is_file_name(name: object) -> bool:
    return isinstance(name, str) and name == os.path.basename(name) and name.isprintable()


# ---------------------------------------------------------------- the rotation: one object now, several keys in older folders

OUTSIDE = ("rope_theta", "partial_rotary_factor")  # what older folders have beside rope_scaling


def rope_parameters(config: Config, layers: str | None = None) -> Config:
    """How layers rotate, with a rope_type, by the names that transformers 5 has. layers: of which kind ("full_attention"), where
    each has parameters of its own (rope_differs)."""
    newer = config.get("rope_parameters") or {}
    if rope_differs(config):
        return _completed(newer.get(layers) or {}, config)
    found = _completed(config.get("rope_scaling") or newer, config)
    if config.get("original_max_position_embeddings") is not None:
        found["original_max_position_embeddings"] = config["original_max_position_embeddings"]
    return found


def rope_differs(config: Config) -> bool:
    """Whether each kind of layers has a rotation of its own."""
    return any(isinstance(value, dict) for value in (config.get("rope_parameters") or {}).values())


def _completed(parameters: Config, config: Config) -> Config:
    """With what config.json says beside them, and the older word for rope_type."""
    outside = {key: config[key] for key in OUTSIDE if config.get(key) is not None}
    older = {"rope_type": parameters.get("type", "default")}
    return outside | older | {key: value for key, value in parameters.items() if key != "type"}


def _check_rope(path: Path, config: Config) -> None:
    for key in ("rope_parameters", "rope_scaling"):
        if config.get(key) is not None and not isinstance(config[key], dict):
            fail(path, f"{quote(key)} is {quote(config[key])}, and should be an object or null; download it again")
    newer, older = config.get("rope_parameters") or {}, config.get("rope_scaling") or {}
    if rope_differs(config):
        if not all(one is None or isinstance(one, dict) for one in newer.values()):
            fail(path, f"'rope_parameters' is {quote(newer)}, partly for each kind of layers; download it again")
        newer = newer.get("full_attention") or {}
    if newer and older:
        one, other = _completed(newer, config), _completed(older, config)
        for key in sorted(one.keys() | other.keys()):
            if one.get(key) != other.get(key):
                fail(path, f"'rope_parameters' and 'rope_scaling' differ in {quote(key)}; take out the one that is wrong")
