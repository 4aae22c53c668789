"""HOW is a weight stored? A format is a row of table.py and a file named as its GGUF type in lower case; see README.md."""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

from numatp.errors import UserError
from numatp.quants.table import FORMATS, Format

if TYPE_CHECKING:
    import numpy as np  # loaded only where it is used: the table is read before the process is bound


def format_of(gguf_type: str, tensor: str) -> Format:
    """Its row of the table; UserError naming the tensor if numatp cannot compute with the type."""
    if gguf_type not in FORMATS:
        supported = ", ".join(names())
        raise UserError(f"tensor '{tensor}' has type {gguf_type}, which numatp cannot compute with; supported: {supported}")
    return FORMATS[gguf_type]


def kernels_of(name: str) -> ModuleType:
    """The file of a format, e.g. numatp.quants.q4_1, which loads numpy."""
    return importlib.import_module(FORMATS[name].module)


def names() -> list[str]:
    """GGUF names of all formats."""
    return sorted(FORMATS)


def writable() -> list[str]:
    """GGUF names of the formats that numatp also writes."""
    return sorted(name for name, row in FORMATS.items() if row.file_type is not None)


def unpack(name: str, raw: "np.ndarray") -> "np.ndarray":
    """float32 (rows, columns) of bytes as in a file, (rows, row_bytes); numbers that are not finite come without a warning."""
    import numpy as np

    with np.errstate(all="ignore"):
        values: np.ndarray = kernels_of(name).unpack(raw)
    return values


def quantize(name: str, x: "np.ndarray") -> "np.ndarray":
    """Bytes as in a file, (rows, row_bytes), of float32 (rows, columns), columns being whole blocks. Runs without the GIL."""
    import numpy as np

    from numatp.kernels.compile import specialize

    format, x = FORMATS[name], np.ascontiguousarray(x, np.float32)
    rows, columns = x.shape
    assert columns % format.columns == 0, (columns, format.columns)
    out = np.empty((rows, format.bytes_of(columns)), np.uint8)
    specialize("quantizer", "quant", format.module).quantize.run(
        x=x.ctypes.data, rows=rows, columns=columns, out=out.ctypes.data, row_bytes=out.shape[1]
    )
    return out
