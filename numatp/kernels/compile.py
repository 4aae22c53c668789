"""What a kernel is: a Numba function (args, thread, threads) that C code calls by address, compiled once per machine.

Compiled kernels are kept in the cache folder under a hash of everything that went into them, because Numba's own key looks at
one function's bytecode, knows nothing of the constants and files behind it, and differs between two installs of the same files.
"""

import contextlib
import ctypes
import fcntl
import hashlib
import importlib.util
import pickle
import sys
import threading
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import llvmlite
import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core.caching import NullCache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.registry import cpu_target
from numba.core.serialize import dumps
from numba.core.sigutils import normalize_signature
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic, models, register_model

from numatp.errors import UserError
from numatp.files.cache import kernels_dir, make_folder
from numatp.kernels.simd import BYTE, DOUBLE, FLOAT, INT64, load_i64, pointer

FIELD_TYPES = {"pointer": pointer, "int": types.int64, "float": types.float32}
FIELD_DTYPES = {"pointer": np.uint64, "int": np.int64, "float": np.float64}  # each field fills 8 bytes
FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}  # kernels must not raise: nobody would catch it
PACKAGE = Path(__file__).parent.parent
SOURCES = (PACKAGE / "kernels", PACKAGE / "quants")  # all that machine code is made of
SETTINGS = ("OPT", "LOOP_VECTORIZE", "SLP_VECTORIZE", "DEBUGINFO_DEFAULT", "USING_SVML")  # of Numba, that change machine code
DIGEST_BYTES = hashlib.sha256().digest_size


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


@device
def rows_of(args, thread, threads):
    """The rows [first, last) that a thread makes, of as many as args.rows says: its share, or all for itself (args.private)."""
    rows = load_i64(args.rows, 0)
    first, last = share(rows, thread, threads)
    if args.private:
        first, last = 0, rows
    return first, last


@cache
def target() -> tuple[str, str, str]:
    """(triple, cpu name, features) that Numba compiles for, which may be less than this machine has."""
    return cpu_target.target_context.codegen().magic_tuple()


@cache
def kernel_cache() -> Path:
    """Folder for this target, these versions, settings and sources; where they were installed makes no difference.

    UserError where Numba was told to compile nothing.
    """
    config: Any = numba.config
    if config.DISABLE_JIT:
        raise UserError("NUMBA_DISABLE_JIT is set, and numatp's kernels exist as machine code only: unset it")
    settings = [str(getattr(config, name)) for name in SETTINGS]
    versions = [sys.version, numba.__version__, llvmlite.__version__, np.__version__]
    digest = hashlib.sha256(repr((target(), settings, versions)).encode())
    for source in sorted(source for folder in SOURCES for source in folder.rglob("*.py")):
        digest.update(source.name.encode() + source.read_bytes())
    return make_folder(kernels_dir()[0] / digest.hexdigest()[:24])


ONE_AT_A_TIME = threading.RLock()  # of a process's threads: Numba's tables are not for several


class KernelFile(NullCache):
    """Where Numba keeps what it made of one kernel: one file, the SHA-256 of the rest and then Numba's own record.

    A file that is cut short or damaged is as good as none: the kernel is compiled again and the file replaced.
    """

    def __init__(self, path: Path):
        self._path, self._result = path, None

    def read(self) -> bool:
        """Whether a sound file is there; Numba then takes what is in it."""
        cpu_target.target_context.refresh()
        with contextlib.suppress(Exception):  # whatever is wrong with it, compiling mends it
            stored = self._path.read_bytes()
            if hashlib.sha256(stored[DIGEST_BYTES:]).digest() == stored[:DIGEST_BYTES]:
                self._result = CompileResult._rebuild(cpu_target.target_context, *pickle.loads(stored[DIGEST_BYTES:]))
        return self._result is not None

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        return self._result

    def save_overload(self, sig: Any, cres: Any) -> None:
        """Other processes find the whole file or none. OSError if it cannot be written.

        Whoever writes holds the kernel's lock: what a process left that was killed here is written over.
        """
        assert not cres.library.has_dynamic_globals, f"{self._path} would hold addresses of this process"
        payload = dumps(cres._reduce())
        unfinished = self._path.with_suffix(".part")
        try:
            unfinished.write_bytes(hashlib.sha256(payload).digest() + payload)
            unfinished.replace(self._path)
        finally:
            unfinished.unlink(missing_ok=True)


class Kernel:
    """A kernel by name: its argument record and, once asked for, the address of its machine code."""

    compiled: ClassVar[list[str]] = []  # names that this process compiled instead of loading them

    def __init__(self, function: Callable[..., Any], fields: dict[str, str]):
        self.function, self.fields = function, fields
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        function.__qualname__ = self.name  # of the symbol too, which must differ between specialisations of one file
        self.dtype = np.dtype([(name, FIELD_DTYPES[kind]) for name, kind in fields.items()])
        self._cfunc: Any = None

    @property
    def cfunc(self) -> Any:
        """Numba's C callback; asking for it compiles the kernel if nobody has."""
        self.make_ready()
        return self._cfunc

    @property
    def signature(self) -> Any:
        return types.void(Args(tuple(self.fields.items())), types.int64, types.int64)

    def make_ready(self, wait: bool = True) -> bool:
        """Loads the machine code, or compiles it. While another process compiles it: waits, or does nothing and returns False."""
        if self._cfunc is not None:
            return True
        with ONE_AT_A_TIME:
            return self._cfunc is not None or self._make_ready(wait)

    def _make_ready(self, wait: bool) -> bool:
        assert any(Path(self.function.__code__.co_filename).is_relative_to(folder) for folder in SOURCES), self.name
        file = KernelFile(kernel_cache() / f"{self.name}.kernel")
        if file.read():
            self._take(file)
            return True
        with open(kernel_cache() / f"{self.name}.lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if not file.read():  # otherwise somebody compiled it while we waited
                Kernel.compiled.append(self.name)
            self._take(file)
        return True

    def _take(self, file: KernelFile) -> None:
        """What the file has read, or else what Numba now compiles and saves there."""
        arguments, result = normalize_signature(self.signature)
        callback: Any = CFunc(self.function, (arguments, result), locals={}, options=OPTIONS)
        callback._cache = file
        callback.compile()
        self._cfunc = callback

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


def make_all_ready(kernels: Iterable[Kernel]) -> None:
    """Loads or compiles them. Processes that want the same kernels share the work: each goes on to one that nobody is compiling."""
    missing = list(dict.fromkeys(kernels))
    while missing:
        later = [kernel for kernel in missing if not kernel.make_ready(wait=False)]
        if len(later) == len(missing):
            later.pop(0).make_ready()
        missing = later


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
