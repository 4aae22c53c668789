"""What a kernel is: a Numba function (args, thread, threads) that C code calls by address, compiled once per machine.

Compiled kernels are kept in the cache folder under a hash of everything that went into them, because Numba's own key looks at
one function's bytecode and knows nothing of the constants and files behind it.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic, models, register_model

from numatp.files.cache import kernels_dir, make_folder
from numatp.kernels.simd import BYTE, DOUBLE, FLOAT, INT64, pointer

FIELD_TYPES = {"pointer": pointer, "int": types.int64, "float": types.float32}
FIELD_DTYPES = {"pointer": np.uint64, "int": np.int64, "float": np.float64}  # each field fills 8 bytes
FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}  # kernels must not raise: nobody would catch it


class Args(types.Type):
    """Address of a kernel's argument record; `args.name` loads the field of that name."""

    def __init__(self, fields: tuple[tuple[str, str], ...]):
        self.fields = fields
        super().__init__(name=f"Args({', '.join(f'{name}: {kind}' for name, kind in fields)})")


@register_model(Args)
class ArgsModel(models.PrimitiveModel):
    def __init__(self, manager, numba_type):
        super().__init__(manager, numba_type, BYTE.as_pointer())


@infer_getattr
class ArgsFields(AttributeTemplate):
    key = Args

    def generic_resolve(self, args, name):
        kind = dict(args.fields).get(name)
        return FIELD_TYPES[kind] if kind else None


@lower_getattr_generic(Args)
def load_field(context, builder, args_type, value, name):
    index = [field for field, _ in args_type.fields].index(name)
    kind = args_type.fields[index][1]
    stored = {"pointer": BYTE.as_pointer(), "int": INT64, "float": DOUBLE}[kind]
    table = builder.bitcast(value, stored.as_pointer())
    loaded = builder.load(builder.gep(table, [ir.Constant(INT64, index)]))
    return builder.fptrunc(loaded, FLOAT) if kind == "float" else loaded


def device(function: Callable[..., Any]) -> Any:
    """A function that kernels use; always inlined."""
    return numba.njit(forceinline=True, **OPTIONS)(function)


@device
def share(count, thread, threads):
    """[first, last) of `count` things for one of `threads`: contiguous, sizes differ by at most one."""
    return count * thread // threads, count * (thread + 1) // threads


@cache
def target() -> tuple[str, str, str]:
    """(triple, cpu name, features) that Numba compiles for, which may be less than this machine has."""
    return cpu_target.target_context.codegen().magic_tuple()


def has_feature(name: str) -> bool:
    return f"+{name}" in target()[2].split(",")


@cache
def kernel_cache() -> Path:
    """Folder for this target, these versions and these sources."""
    digest = hashlib.sha256(repr((target(), sys.version, numba.__version__, llvmlite.__version__, np.__version__)).encode())
    package = Path(__file__).parent.parent
    for source in sorted([*(package / "kernels").rglob("*.py"), *(package / "quants").glob("*.py")]):
        digest.update(source.name.encode() + source.read_bytes())
    return make_folder(kernels_dir()[0] / digest.hexdigest()[:24])


@contextlib.contextmanager
def numba_cache_in(folder: Path) -> Iterator[None]:
    """Numba's cache folder is one global: the user's own setting comes back after us."""
    config: Any = numba.config
    previous, config.CACHE_DIR = config.CACHE_DIR, str(folder)
    try:
        yield
    finally:
        config.CACHE_DIR = previous


class Kernel:
    """A kernel by name: its argument record and, once asked for, the address of its machine code."""

    compiled: ClassVar[list[str]] = []  # names that this process compiled instead of loading them

    def __init__(self, function: Callable[..., Any], fields: dict[str, str]):
        self.function, self.fields = function, fields
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        function.__qualname__ = self.name  # part of Numba's file name, which must differ between specialisations of one file
        self.dtype = np.dtype([(name, FIELD_DTYPES[kind]) for name, kind in fields.items()])
        self._cfunc: Any = None

    @property
    def cfunc(self) -> Any:
        if self._cfunc is None:
            ready = kernel_cache() / f"{self.name}.ready"
            # Numba's cache index is not locked: whoever finds no kernel compiles it alone, the others wait and load it.
            with contextlib.ExitStack() as stack:
                if not ready.exists():
                    lock = stack.enter_context(open(kernel_cache() / "lock", "w"))
                    fcntl.flock(lock, fcntl.LOCK_EX)
                self._cfunc = self._compile()
                if not ready.exists():
                    ready.touch()
        return self._cfunc

    @property
    def signature(self) -> Any:
        return types.void(Args(tuple(self.fields.items())), types.int64, types.int64)

    def _compile(self) -> Any:
        with numba_cache_in(kernel_cache()):
            compiled = numba.cfunc(self.signature, cache=True, **OPTIONS)(self.function)
        if compiled.cache_hits == 0:
            Kernel.compiled.append(self.name)
        return compiled

    @property
    def address(self) -> int:
        return self.cfunc.address

    def record(self, **values: float) -> np.ndarray:
        """The argument record with every field set, shape (1,)."""
        assert values.keys() == self.fields.keys(), (self.name, set(values) ^ set(self.fields))
        record = np.zeros(1, self.dtype)
        for name, value in values.items():
            record[name] = value
        return record

    def run(self, **values: float) -> None:
        """All of the work on the calling thread, which gives up the GIL for it."""
        record = self.record(**values)
        FUNCTION(self.address)(record.ctypes.data, 0, 1)


def kernel(**fields: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorates a function (args, thread, threads); fields are name="pointer" | "int" | "float"."""
    return lambda function: Kernel(function, fields)


@cache
def specialize(template: str, binding: str, module: str) -> ModuleType:
    """The file kernels/<template>.py with its global `binding` set to the module of that name, e.g. one per quant format.

    Numba can cache a function that uses a global, and cannot cache a closure over compiled functions.
    """
    name = f"numatp.kernels.{template}_{module.rpartition('.')[2]}"
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{template}.py")
    assert spec and spec.loader
    specialized = importlib.util.module_from_spec(spec)
    setattr(specialized, binding, importlib.import_module(module))
    sys.modules[name] = specialized
    spec.loader.exec_module(specialized)
    return specialized
