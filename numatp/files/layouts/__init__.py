"""How Hugging Face folders store a weight matrix. One file per layout, found by the `quant_method` of config.json.

A layout turns rows of its own into rows of a GGUF type, which numatp computes with. Each file holds

SUFFIXES    what the tensors of a weight NAME.weight may be called: NAME.qweight, NAME.scales, ...
is_quantized(parts)    whether the tensors found by these names are a weight of this layout; parts: TensorInfo by suffix
check(settings, fail)    UserError by fail(fault) for a `quantization_config` that numatp does not know
open_matrix(name, parts, settings, fail) -> Layout    UserError for what does not fit together
"""

import importlib
import threading
from collections.abc import Callable
from pkgutil import iter_modules
from types import ModuleType
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np

from numatp.files.gguf_header import fail as fail_at
from numatp.files.gguf_header import quote
from numatp.files.model_file import TensorInfo
from numatp.files.safetensors import FLOATS, ITEM_BYTES, read_box, read_bytes, read_rows
from numatp.quants.table import TYPES

Rows = Callable[[slice], np.ndarray]
Config = dict[str, Any]
Parts = dict[str, TensorInfo]
Fail = Callable[[str], NoReturn]


class Layout(Protocol):
    shape: tuple[int, int]  # rows, columns
    type: str  # GGUF type of the rows that it gives
    note: str  # what was lost on the way to that type, or ""; some have a factor too (WithFactor)

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        """Gives slices of `rows` (their numbers) cut to `columns`, whole units of 32: uint8 (rows, bytes of blocks of `type`)."""
        ...


def factor_of(layout: Layout) -> float:
    """What all weights of a layout are multiplied with beside what its rows hold."""
    return layout.factor if isinstance(layout, WithFactor) else 1.0


@runtime_checkable
class WithFactor(Protocol):
    factor: float


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

        return read


class Transposed:
    """Matrices of floats of all experts, each stored by columns: (experts, columns, rows). Gives their rows below each other."""

    note = ""

    def __init__(self, info: TensorInfo):
        experts, columns, self._height = info.shape
        self.info, self.type, self.shape = info, info.type, (experts * self._height, columns)

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        matrices: dict[int, np.ndarray] = {}
        lock = threading.Lock()

        def matrix(expert: int) -> np.ndarray:
            """(rows, columns). Those of two experts are held: threads ask for parts that follow each other."""
            with lock:
                if expert not in matrices:
                    for other in list(matrices)[:-1]:
                        del matrices[other]
                    first = expert * self.shape[1]
                    box = read_box(self.info, range(first + columns.start, first + columns.stop), range(self._height))
                    matrices[expert] = np.ascontiguousarray(box.T)
                return matrices[expert]

        def read(some: slice) -> np.ndarray:
            experts, numbers = np.divmod(rows[some], self._height)
            ends = np.flatnonzero(np.diff(experts)) + 1
            parts = zip(np.split(experts, ends), np.split(numbers, ends), strict=True)
            return np.concatenate([matrix(int(own[0]))[places] for own, places in parts if len(own)]).view(np.uint8)

        return read


class Reordered:
    """A layout's rows with their columns in another order, which keeps the blocks of its type whole."""

    def __init__(self, layout: Layout, order: np.ndarray, fail: Fail):
        """order: which of the layout's columns each column is."""
        self._layout, self.shape, self.type, self.note = layout, layout.shape, layout.type, layout.note
        self.factor = factor_of(layout)
        self._block, row = TYPES[layout.type].block, order.reshape(-1, TYPES[layout.type].block)
        if (row != row[:, :1] + np.arange(self._block)).any() or (row[:, 0] % self._block).any():
            fail(f"has columns in an order that cuts the blocks of {layout.type}, which numatp cannot compute; use another model")
        self._blocks = row[:, 0] // self._block

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        whole = self._layout.cut(rows, range(self.shape[1]))
        chosen = self._blocks[columns.start // self._block : columns.stop // self._block]

        def read(some: slice) -> np.ndarray:
            raw = whole(some)
            return raw.reshape(len(raw), len(self._blocks), -1)[:, chosen].reshape(len(raw), -1)

        return read


class Turned:
    """Of a layout's rows runs, of each run the first ones as columns of a matrix: gives these matrices' rows below each other."""

    def __init__(self, layout: Layout, runs: int, length: int, columns: int, fail: Fail):
        """Of `runs` runs of `length` rows each the first `columns`."""
        if layout.type not in FLOATS:
            fail(f"is {layout.type}, and numatp can turn floats only; use another model")
        self._layout, self._length, self._height = layout, length, layout.shape[1]
        self.shape, self.type, self.note = (runs * self._height, columns), layout.type, layout.note

    def cut(self, rows: np.ndarray, columns: range) -> Rows:
        item = np.dtype(f"u{ITEM_BYTES[self.type]}")

        def matrix(run: int) -> np.ndarray:
            first = run * self._length
            read = self._layout.cut(np.arange(first + columns.start, first + columns.stop), range(self._height))
            return read(slice(None)).view(item).T

        def read(some: slice) -> np.ndarray:
            runs, numbers = np.divmod(rows[some], self._height)
            own = [matrix(run)[numbers[runs == run]] for run in np.unique(runs)]
            return np.ascontiguousarray(np.concatenate(own)).view(np.uint8)

        return read


def names() -> list[str]:
    return sorted(module.name.replace("_", "-") for module in iter_modules(__path__))


def find(method: str) -> ModuleType | None:
    return importlib.import_module(f"{__name__}.{method.replace('-', '_')}") if method in names() else None


# ---------------------------------------------------------------- what the layouts share


def expect(fail: Fail, key: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        known = ", ".join(map(quote, allowed))
        fail(f"its quantization has {key} {quote(value)}, and numatp knows {known}; use another model")


def need(parts: Parts, suffixes: tuple[str, ...], name: str, fail: Fail) -> None:
    for suffix in suffixes:
        if suffix not in parts:
            fail(f"tensor {quote(name.removesuffix('weight') + suffix)} is missing in the folder; download the weights again")


def need_shape(info: TensorInfo, type_name: str, shape: tuple[int, ...]) -> None:
    if (info.type, info.shape) != (type_name, shape):
        what = f"is {info.type} of shape {info.shape}, and should be {type_name} of {shape}"
        fail_at(info.path, f"tensor {quote(info.name)} {what}; download it again")


def floating(info: TensorInfo) -> None:
    if info.type not in FLOATS:
        fail_at(info.path, f"tensor {quote(info.name)} is {info.type}, and should be {' or '.join(FLOATS)}; download it again")


def groups_by_column(info: TensorInfo | None, columns: int, group: int, fail: Fail) -> tuple[np.ndarray, bool]:
    """(the group whose scale each column has, whether that is not what its place says: activation order)."""
    places = np.arange(columns) // max(group, 1)
    if info is None:
        return places, False
    need_shape(info, "I32", (columns,))
    found = read_bytes(info, 0, info.num_bytes).view(np.int32)
    if columns and not (found.min() >= 0 and found.max() <= places[-1]):
        fail(f"tensor {quote(info.name)} names groups outside 0 to {places[-1]}; download it again")
    return found, bool((found != places).any())


def type_of(method: str, bits: int, symmetric: bool, ordered: bool) -> tuple[str, str]:
    """(the GGUF type of 4-bit or 8-bit codes in groups, what is lost on the way to it)."""
    if ordered:
        return "F32", f"{method} with activation order"
    if bits == 8:
        return ("Q8_0", "") if symmetric else ("F32", f"{method} of 8 bits with zeros")
    return ("Q4_0" if symmetric else "Q4_1"), ""
