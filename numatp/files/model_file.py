"""What every kind of model file offers to the architecture files: metadata by GGUF's keys and tensors by GGUF's names."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from numatp.files.gguf_header import fail, quote

MAX_COUNT = (1 << 31) - 1  # of heads, tokens, values in a row: products of two of them fit in 63 bits


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: `shape` has rows first, so a matrix is (out, in); `offset` counts bytes from the start of the file `path`."""

    name: str
    type: str
    shape: tuple[int, ...]
    offset: int
    num_bytes: int
    path: Path
    factors: "TensorInfo | None" = None  # floats, of all rows or of each of several matrices: what the blocks hold is multiplied


class ModelFile(ABC):
    """The metadata of a model and where its tensors are.

    The getters raise UserError, naming file and key, when the key is of another kind, or absent without a default.
    """

    path: Path  # of the file that holds the metadata
    size: int  # bytes of all files
    notes: list[str]  # what of the model is left out or taken otherwise than it says, in sentences worth showing
    tensors: dict[str, Any]  # TensorInfo, or what has its name, type, shape, num_bytes and path

    def integer(self, key: str, default: int | None = None) -> int:
        value = self._get(key, default, "a whole number")
        return value if type(value) is int else self._wrong(key, "a whole number")

    def count(self, key: str, default: int | None = None, most: int = MAX_COUNT) -> int:
        """Of something that the model has: 1 to `most`."""
        value = self.integer(key, default)
        return value if 1 <= value <= most else self._wrong(key, f"a whole number from 1 to {most}", value)

    def count_of_layers(self, key: str, default: int | None = None) -> int:
        """A count that a file may say once or for each layer; UserError where layers differ."""
        if not self.is_list(key):
            return self.count(key, default)
        numbers = self.integers(key)
        value = numbers[0] if len(numbers) else 0
        if any(number != value for number in numbers):
            self.fail(f"{quote(key)} differs between layers, which numatp cannot compute; use another model")
        return value if 1 <= value <= MAX_COUNT else self._wrong(key, f"whole numbers from 1 to {MAX_COUNT}")

    def positive(self, key: str, default: float | None = None) -> float:
        value = self.number(key, default)
        return value if value > 0 else self._wrong(key, "a number above 0", value)

    def number(self, key: str, default: float | None = None) -> float:
        value = self._get(key, default, "a finite number")
        if type(value) in (int, float) and abs(value) <= sys.float_info.max:  # which no NaN is
            return float(value)
        self._wrong(key, "a finite number")

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default, "a text")
        if not isinstance(value, str):
            self._wrong(key, "a text")
        if any("\ud800" <= char <= "\udfff" for char in value):
            self._wrong(key, "a text in UTF-8")
        return value

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._get(key, default, "true or false")
        return value if isinstance(value, bool) else self._wrong(key, "true or false")

    @abstractmethod
    def is_list(self, key: str) -> bool:
        """Whether the key is there and has a list."""

    @abstractmethod
    def flags(self, key: str, default: Sequence[bool] | None = None) -> Sequence[bool]: ...

    @abstractmethod
    def integers(self, key: str, default: Sequence[int] | None = None) -> Sequence[int]: ...

    @abstractmethod
    def numbers(self, key: str, default: Sequence[float] | None = None) -> Sequence[float]:
        """Float32 or float64; not-a-number and infinities come as they are."""

    @abstractmethod
    def encoded_metadata(self) -> dict[str, bytes]:
        """What a GGUF file of this model says, key by key, as `encoded` of gguf_writer.py makes it."""

    def called(self, tensor: str) -> str:
        """What the file calls the tensor of that GGUF name."""
        return tensor

    def fail(self, fault: str) -> NoReturn:
        """Raise UserError about this file; `fault` ends with the remedy."""
        fail(self.path, fault)

    @abstractmethod
    def _get(self, key: str, default: Any, expected: str) -> Any: ...

    @abstractmethod
    def _wrong(self, key: str, expected: str, default: object = None) -> NoReturn: ...
