"""What a kernel is: a function (args, thread, threads) that Numba compiles once per machine and C code calls by its address.

Compiled kernels are kept in the cache folder under a hash of everything that went into them (sources.py), because Numba's own
key looks at one function's bytecode, knows nothing of the constants and files behind it, and differs between two installs of the
same files.
"""

import contextlib
import ctypes
import hashlib
import importlib.util
import json
import os
import pickle
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import numpy as np

from numatp.errors import MachineError
from numatp.files.cache import kernels_dir, make_folder
from numatp.kernels import jit, object_file, sources
from numatp.kernels.simd import load_i64
from numatp.machine import isa

FIELD_DTYPES = {"pointer": np.uint64, "int": np.int64, "float": np.float64}  # each field fills 8 bytes
FUNCTION = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
OPTIONS: dict[str, Any] = {"error_model": "numpy", "boundscheck": False}  # kernels must not raise: nobody would catch it
# Of a kernel: neither Python nor C calls it.
PART = OPTIONS | {"no_cpython_wrapper": True, "no_cfunc_wrapper": True, "pipeline_class": jit.Passes}
INLINED = PART | {"forceinline": True}
CALLED = PART | {"forceinline": False}  # said, because a part takes its caller's options
DIGEST_BYTES = hashlib.sha256().digest_size
MOST_COMPILERS = 4  # processes that compile for a rank, of 200 MB each
WORTH_A_COMPILER = 4  # kernels that are worth a process's start


def device(function: Callable[..., Any]) -> Any:
    """A function that kernels use; always inlined."""
    return jit.njit(**INLINED)(function)


def called(function: Callable[..., Any]) -> Any:
    """A function that kernels call. It is so large that LLVM would take seconds for each copy, and one is as fast."""
    return jit.njit(**CALLED)(function)


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
def kernel_cache() -> Path:
    """Folder for this level of instructions and these versions of the compiler."""
    level = isa.level()
    digest = hashlib.sha256(repr((level.numba_cpu, level.numba_features, platform.machine())).encode())
    for library in ("numba", "llvmlite"):
        found = importlib.util.find_spec(library)
        assert found and found.origin, library
        digest.update(Path(found.origin).with_name("_version.py").read_bytes())
    return make_folder(kernels_dir()[0] / digest.hexdigest()[:24])


def identity() -> str:
    """The same for two processes only if all their kernels are."""
    return f"{kernel_cache().name}-{sources.whole()}"


class MachineCode(NamedTuple):
    """What the compiler made of a kernel."""

    entry: str  # the symbol of the function that C calls
    code: bytes  # an object file
    bitcode: bytes  # what LLVM made it of, for who wants to look at it


def read(path: Path) -> MachineCode | None:
    """A kernel's file: the SHA-256 of the rest, and then its MachineCode. One that is cut short or damaged is as good as none."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    if hashlib.sha256(stored[DIGEST_BYTES:]).digest() != stored[:DIGEST_BYTES]:
        return None
    return MachineCode(*pickle.loads(stored[DIGEST_BYTES:]))


def write(path: Path, made: MachineCode) -> None:
    """Other processes find the whole file or none. OSError if it cannot be written.

    Whoever writes holds the kernel's lock: what a process left that was killed here is written over.
    """
    payload = pickle.dumps(tuple(made))
    unfinished = path.with_suffix(".part")
    try:
        unfinished.write_bytes(hashlib.sha256(payload).digest() + payload)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


LOADING = threading.RLock()  # threads that want the same kernels wait for the one that makes them


class Kernel:
    """A kernel by name: its argument record and, once asked for, the address of its machine code."""

    compiled: ClassVar[list[str]] = []  # names that were compiled for this process instead of found

    def __init__(self, function: Callable[..., Any], fields: dict[str, str]):
        assert function.__module__.split(".")[1] in sources.FOLDERS, function.__module__
        self.function, self.fields = function, fields
        self.name = f"{function.__module__.rpartition('.')[2]}.{function.__name__}"
        function.__qualname__ = self.name  # of the symbol too, which must differ between specialisations of one file
        self.dtype = np.dtype([(name, FIELD_DTYPES[kind]) for name, kind in fields.items()])
        self._address: int | None = None

    @property
    def path(self) -> Path:
        return kernel_cache() / f"{self.name}-{self._digest()}.kernel"

    @property
    def lock(self) -> Path:
        """Held by the process that compiles kernels of this one's module, which have parts in common."""
        return kernel_cache() / f"{self.function.__module__.rpartition('.')[2]}-{self._digest()}.lock"

    def _digest(self) -> str:
        """Of all files that its machine code may depend on."""
        modules = ["numatp.kernels.build", f"numatp.kernels.isa.{isa.level().name}"]
        if made := _specialized.get(self.function.__module__):
            modules += [f"numatp.kernels.{made[0]}", made[2]]
        else:
            modules.append(self.function.__module__)
        return sources.digest(sources.closure(modules))

    @property
    def address(self) -> int:
        """Of the machine code, which is compiled if nobody has."""
        if self._address is None:
            make_all_ready([self])
        assert self._address is not None
        return self._address

    def find(self) -> bool:
        """Loads the machine code. False if it was not compiled yet."""
        with LOADING:
            if self._address is None and (made := read(self.path)):
                self._address = object_file.load(made.code, made.entry)
                with contextlib.suppress(OSError):  # the cache may be somebody else's
                    os.utime(self.path)  # files/cache.py: it is in use
            return self._address is not None

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
    """Loads them, after a process of its own has compiled what was missing. MachineError if that cannot be done."""
    with LOADING:
        missing = [kernel for kernel in dict.fromkeys(kernels) if not kernel.find()]
        if missing:
            compile_apart(missing)
        for kernel in missing:
            if not kernel.find():
                raise MachineError(f"{kernel.path}: what was compiled cannot be read back")


def compile_apart(kernels: Sequence[Kernel]) -> None:
    """Compiles kernels into the cache folder, in processes that end with this one and share the work as those of other ranks do.

    Nothing of the user's Numba is their concern.
    """
    wanted = [
        (kernel.function.__module__, kernel.function.__name__, _specialized.get(kernel.function.__module__), kernel.path.name)
        for kernel in kernels
    ]
    command = [sys.executable, "-P", "-c", "from numatp.kernels.build import main; main()", str(os.getpid()), json.dumps(wanted)]
    compilers: list[subprocess.Popen[str]] = []
    try:
        cores = len(os.sched_getaffinity(os.getpid()))  # of the process: the thread that asks may be pinned to one
        for _ in range(max(1, min(MOST_COMPILERS, cores, len(kernels) // WORTH_A_COMPILER))):
            pipes: dict[str, Any] = {
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
            }
            compilers.append(subprocess.Popen(command, env=compiler_environ(), cwd=kernel_cache(), **pipes))
        for compiler in compilers:
            said, errors = compiler.communicate()
            if compiler.returncode:
                raise MachineError(f"kernels cannot be compiled: {(errors.splitlines() or [f'status {compiler.returncode}'])[-1]}")
            Kernel.compiled += json.loads(said)
    finally:
        for compiler in compilers:
            with compiler:
                compiler.kill()


def compiler_environ() -> dict[str, str]:
    """The environment of a process that compiles for this one's level, and finds modules where this one does."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    level, path = isa.level(), os.pathsep.join(os.path.abspath(place) for place in sys.path)
    target = {"NUMBA_CPU_NAME": level.numba_cpu, "NUMBA_CPU_FEATURES": level.numba_features}
    return environ | target | {"NUMATP_ISA": level.name, "PYTHONPATH": path}


def kernel(**fields: str) -> Callable[[Callable[..., Any]], Kernel]:
    """Decorates a function (args, thread, threads); fields are name="pointer" | "int" | "float"."""
    return lambda function: Kernel(function, fields)


_specialized: dict[str, tuple[str, str, str]] = {}  # by name of the module: how it was made


@cache
def specialize(template: str, binding: str, module: str) -> ModuleType:
    """The file kernels/<template>.py with its global `binding` set to the module of that name, e.g. one per quant format.

    Numba can cache a function that uses a global, and cannot cache a closure over compiled functions.
    """
    name = f"numatp.kernels.{template}_{module.rpartition('.')[2]}"
    _specialized[name] = (template, binding, module)
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f"{template}.py")
    assert spec and spec.loader
    specialized = importlib.util.module_from_spec(spec)
    setattr(specialized, binding, importlib.import_module(module))
    sys.modules[name] = specialized
    spec.loader.exec_module(specialized)
    return specialized
