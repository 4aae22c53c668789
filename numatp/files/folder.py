"""A Hugging Face folder: config.json, and where each tensor of its safetensors files lies, by the folder's own names."""

import os
from pathlib import Path
from typing import Any

from numatp.files.gguf_header import fail, quote
from numatp.files.layouts import Config
from numatp.files.model_file import TensorInfo
from numatp.files.safetensors import open_file, parse_json, read_header

MAX_JSON = 1 << 26  # bytes; real indices have a few


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


def rope_scaling(config: Config) -> Config:
    scaling = config.get("rope_scaling")
    return scaling if isinstance(scaling, dict) else {}


def rope_type(config: Config) -> Any:
    """As GGUF's rope.scaling.type."""
    scaling = rope_scaling(config)
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    return "none" if kind == "default" else kind
