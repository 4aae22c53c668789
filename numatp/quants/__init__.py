"""HOW is a weight stored? One file per format, found by the lower-case name of its GGUF type.

In memory every matrix is made of tiles of 16 rows by all of this rank's columns. A format file holds:

    BLOCK_BYTES   bytes of BLOCK weights in the file
    BLOCK         weights of one block along a row in the file
    TILE_BYTES    bytes in memory of 16 rows x 32 columns, which lie together: a tile is one stream, read from start to end
    SUPER_BYTES   bytes in memory of what 16 rows of a super-block share (kernels/superblock.py), 0 without super-blocks
                  (these four of numbers and of each other only: `sizes` reads them without running the file; bytes in memory are
                  multiples of 8, because tiles follow each other)
    ACTIVATION    the form of the activation rows that dot_tile multiplies (kernels/activation.py): "q8" or "f32"
    ZERO          what dot_tile's integers hold for a weight of zero, taken back through the starts of "q8" activations
    unpack        numpy: the definition of the format, file bytes to float32; every kernel is judged against it
    pack          device function (source, row_bytes, first_unit, units, tile): 16 rows of the file, from their first_unit-th unit
                  on, to a tile
    dot_tile      device function (tile, x, first, pitch, units, total): total, a Rows of some count (kernels/rows.py), plus the
                  tile times as many activation rows from the first-th of the group at x
    element       device function (tile, units, row, column): one weight of a tile
    quantize      device function (x, columns, out): one row of whole blocks from float32 to file bytes (kernels/fit.py)

Columns are counted in units of 32 (UNIT), in which a matrix can be cut between ranks, whatever the block of the file.

Adding a quant format. Its name and block must be in TENSOR_TYPES of files/gguf.py, and the gguf package must read it, because the
tests compare with that. No other code but what the steps name needs to hear of the file. `make .venv/test` makes what the commands
run in (.venv/bin/pytest); NAME is the GGUF name. An edit here or in kernels/ has every kernel compiled anew that a test uses.

1. Copy the nearest format to <lower-case GGUF name>.py: q4_0 (a scale per block), q4_1 (and a minimum), iq4_nl (a table of values),
   mxfp4 (a table and another kind of scale), q4_k (super-blocks of 32s with minima), q6_k (super-blocks of 16s). Its docstring says
   what a weight is, where in the file's block everything lies, and where in the tile. Set the constants. A function that is just
   that of another format is taken from there: iq4_nl has `pack = q4_0.pack`.
       pytest tests/test_plan.py -k sizes_of_formats
2. Write `unpack` in plain numpy, multiplying in the order in which the gguf package does. In SCALES of
   tests/support/models/tiny.py say where the block's float16 scales lie if the gguf package reads the format and does not write it.
       pytest tests/test_kernels.py -k "NAME and unpack"
3. Write `pack` and `element`. The weights of few bits go into planes (kernels/planes.py), what belongs to a unit behind its
   planes, what super-blocks share before their units: packer of kernels/superblock.py makes `pack` of a function for one unit.
   Rows that a matrix does not have, at its end, are zero bytes, which must be finite weights. If tiles take over 4 % more than the
   file, that goes into MOST_MEMORY of the tests and into README.md.
       pytest tests/test_kernels.py -k "NAME and (embed or memory)"
4. Write `dot_tile` with the sums of kernels/rows.py: add_dot of codes in 0..128, add_dot_from of weights stored + ZERO in 0..128,
   add_dot_biased of weights stored + 128 in 0..255, ZERO being 128; no float before the products are summed. Each unit asks for
   memory further on (kernels/ahead.py). It must not call, raise or allocate. An instruction that LLVM does not find by itself goes
   into each file of kernels/isa. The second command runs the tests of all formats again on the weaker instruction sets, in minutes.
       pytest tests/test_kernels.py -k NAME
       pytest tests/test_kernels.py -k levels
5. Write `quantize` with the searches of kernels/fit.py. Add the format to
       FILE_TYPES of weights/convert.py: llama.cpp's number;
       INSTEAD there, if it has super-blocks: the type of matrices whose rows are no whole ones;
       ROUNDING of tests/test_quantizers.py: values that ascend, without a minimum the largest in magnitude first. Scales that are
       powers of two need not beat that rounding: such a format gets a test of its own there, as MXFP4 has;
       BITS_BELOW_HEAD of tests/test_quantize.py, if it has fewer bits than Q6_K;
       BITS there, unless its codes have 4 bits;
       SCALES of bench/synthetic.py, if its scales are float16: random models of it, to measure with.
       pytest tests/test_quantizers.py tests/test_quantize.py tests/test_synthetic.py -k NAME
6. Add it to the formats in README.md.
       pytest tests/test_readme.py -k lists
       make lint
"""

import ast
import importlib
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import numpy as np

from numatp.errors import UserError
from numatp.kernels.layout import super_bytes

SIZES = {"BLOCK", "BLOCK_BYTES", "TILE_BYTES", "SUPER_BYTES"}
UNIT = 32  # columns
TILE_ROWS = 16


def find(gguf_type: str, tensor: str) -> ModuleType:
    """The format's module, e.g. numatp.quants.q4_1; UserError naming the tensor if there is none."""
    name = f"{__name__}.{gguf_type.lower()}"
    if importlib.util.find_spec(name) is None:
        supported = ", ".join(names())
        raise UserError(f"tensor '{tensor}' has type {gguf_type}, which numatp cannot compute with; supported: {supported}")
    return importlib.import_module(name)


def sizes(gguf_type: str, tensor: str) -> ModuleType:
    """As `find`, but with the format's constants alone: its file is read, not run, because its kernels would load Numba."""
    return _constants(gguf_type.lower()) or find(gguf_type, tensor)


@cache
def _constants(name: str) -> ModuleType | None:
    source, module = Path(__file__).with_name(f"{name}.py"), ModuleType(f"{__name__}.{name}")
    if not source.is_file():
        return None
    for statement in ast.parse(source.read_text()).body:
        if isinstance(statement, ast.Assign) and {n.id for n in ast.walk(statement.targets[0]) if isinstance(n, ast.Name)} & SIZES:
            exec(compile(ast.Module([statement], []), str(source), "exec"), module.__dict__)
    return module


def names() -> list[str]:
    """GGUF names of all formats."""
    from pkgutil import iter_modules

    return sorted(module.name.upper() for module in iter_modules(__path__))


def quantize(format: ModuleType, x: np.ndarray) -> np.ndarray:
    """Bytes as in a file, (rows, row_bytes), of float32 (rows, columns), columns being whole blocks. Runs without the GIL."""
    from numatp.kernels.compile import specialize

    x = np.ascontiguousarray(x, np.float32)
    rows, columns = x.shape
    assert columns % format.BLOCK == 0, (columns, format.BLOCK)
    out = np.empty((rows, columns // format.BLOCK * format.BLOCK_BYTES), np.uint8)
    specialize("quantizer", "quant", format.__name__).quantize.run(
        x=x.ctypes.data, rows=rows, columns=columns, out=out.ctypes.data, row_bytes=out.shape[1]
    )
    return out


def tile_bytes(format: ModuleType, columns: int, first: int = 0) -> int:
    """Bytes of one tile of 16 rows x `columns`, from the first-th on."""
    units = columns // UNIT
    supers = super_bytes(first // UNIT, units, format.SUPER_BYTES) if format.SUPER_BYTES else 0
    assert format.TILE_BYTES % 8 == format.SUPER_BYTES % 8 == 0, format.__name__
    return units * format.TILE_BYTES + supers
