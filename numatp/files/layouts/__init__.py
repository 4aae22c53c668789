"""How Hugging Face folders store a weight matrix. One file per layout, found by the `quant_method` of config.json.

A layout turns rows of its own into rows of a GGUF type, which numatp computes with. Each file holds

SUFFIXES    the tensors of a weight `NAME.weight`: NAME.qweight, NAME.scales, ...; the first tells that the weight has this layout
check(settings, fail)    UserError by fail(fault) for a `quantization_config` that numatp does not know
open_matrix(name, parts, settings, fail) -> Layout    parts: TensorInfo by suffix; UserError for what does not fit together
"""

import importlib
from collections.abc import Callable
from pkgutil import iter_modules
from types import ModuleType
from typing import Protocol

import numpy as np

from numatp.files.model_file import TensorInfo
from numatp.files.safetensors import DTYPES, ITEM_BYTES, read_rows

Rows = Callable[[slice], np.ndarray]


class Layout(Protocol):
    shape: tuple[int, int]  # rows, columns
    type: str  # GGUF type of the rows that it gives
    note: str  # what was lost on the way to that type, or ""

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        """Gives slices of `rows` (their numbers) cut to `columns`, whole units of 32: uint8 (rows, bytes of blocks of `type`)."""
        ...


class Plain:
    """A matrix as it is, of a type that is one of GGUF's too; leading dimensions are taken as more rows."""

    note = ""

    def __init__(self, info: TensorInfo):
        self.info, self.type = info, info.type
        self.shape = (info.num_bytes // ITEM_BYTES[info.type] // max(info.shape[-1], 1), info.shape[-1])

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        def read(some: slice) -> np.ndarray:
            values = read_rows(self.info, rows[some])[:, columns.start : columns.stop]
            return np.ascontiguousarray(values).view(np.uint8)

        assert self.info.type in DTYPES
        return read


def names() -> list[str]:
    return sorted(module.name.replace("_", "-") for module in iter_modules(__path__))


def find(method: str) -> ModuleType | None:
    return importlib.import_module(f"{__name__}.{method.replace('-', '_')}") if method in names() else None
