"""Compiles kernels with Numba, in a process of its own (compile_apart): whoever runs them loads neither Numba nor LLVM.

Once this module is imported the files of kernels are those of a compiler (jit.py).
"""

import fcntl
import gc
import importlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.sigutils import normalize_signature
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic

from numatp.errors import NumatpError
from numatp.files.cache import drop_unused
from numatp.kernels.compile import OPTIONS, Kernel, MachineCode, kernel_cache, read, specialize, write
from numatp.kernels.jit import Passes, ir, models, register_model, types
from numatp.kernels.simd import BYTE, DOUBLE, FLOAT, INT64, pointer
from numatp.machine.limits import describe
from numatp.machine.parent import end_with

# Objects after which Python looks for some: a compiler makes millions and drops few, which takes a tenth of its time.
GARBAGE = 100_000
FIELD_TYPES = {"pointer": pointer, "int": types.int64, "float": types.float32}


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


def signature(fields: dict[str, str]) -> Any:
    return types.void(Args(tuple(fields.items())), types.int64, types.int64)


class Library(JITCodeLibrary):
    """A function's LLVM module, linked with those of all functions that it calls.

    Numba's own optimises each of them fully and makes machine code of it. Here nobody calls them: they are inlined, and what
    becomes of that is optimised and made machine code in the kernel alone. What is called() and not inlined is linked there too,
    once: each of its callers would have passes go through it anew.
    """

    def __init__(self, codegen: Any, name: str):
        super().__init__(codegen, name)
        self.is_called = False
        self._called: dict[Library, None] = {}  # what this function and its parts call, in order

    def add_linking_library(self, library: Any) -> None:
        self._called |= library._called
        if library.is_called:
            self._called[library] = None
        else:
            super().add_linking_library(library)

    def _optimize_functions(self, ll_module: Any) -> None:
        """As Numba's, but the passes are made once instead of once per function."""
        ll_module.data_layout = self._codegen._data_layout
        passes, builder = self._codegen._function_pass_manager()
        for function in ll_module.functions:
            if not function.is_declaration and b"alwaysinline" not in b" ".join(function.attributes):
                function.add_function_attribute("noinline")  # LLVM would copy what is called() after all
                self.is_called = True
            passes.run(function, builder)

    def _optimize_final_module(self) -> None:
        """The first and cheap half of what Numba's own does: without it products of some formats are a tenth slower."""
        passes, builder = self._codegen._module_pass_manager(loop_vectorize=False, slp_vectorize=False, opt=0, cost="cheap")
        passes.run(self._final_module, builder)

    def _finalize_final_module(self) -> None:
        self._finalized = True

    @classmethod
    def machine_code(cls, kernels: Sequence[tuple["Library", str]]) -> tuple[bytes, bytes]:
        """An object file with the functions of those names in kernels' libraries, and its bitcode."""
        for library, _ in kernels:
            library._ensure_finalized()
        (first, _), *others = kernels
        module = first._final_module
        for library, _ in others:
            module.link_in(library._final_module)
        # Callers before what they call: only what is asked for is linked.
        for called in reversed(dict.fromkeys(called for library, _ in kernels for called in library._called)):
            module.link_in(called._get_module_for_linking(), preserve=True)
        entries = {entry for _, entry in kernels}
        for function in module.functions:
            if function.name not in entries and not function.is_declaration:
                function.linkage = "internal"  # LLVM sees all calls then, and that none of them raises
        passes, builder = first._codegen._module_pass_manager()  # the other half
        passes.run(module, builder)
        first._verify_declare_only_symbols()
        first._finalize_dynamic_globals()  # counts them
        code: bytes = first._codegen._tm.emit_object(module)
        assert not first.has_dynamic_globals, f"{entries} would hold addresses of this process"
        return code, module.as_bitcode()


class Codegen(JITCPUCodegen):
    _library_class = Library

    def set_env(self, env_name: str, env: Any) -> None:
        """Python calls no part of a kernel."""


cpu_target.target_context._internal_codegen = Codegen("numatp")


@global_compiler_lock
def compiled(kernels: Sequence[Kernel]) -> list[MachineCode]:
    """Numba's work. Kernels of one module become one object file, in which what they call is there once."""
    made = []
    for kernel in kernels:
        callback: Any = CFunc(
            kernel.function, normalize_signature(signature(kernel.fields)), locals={}, options=OPTIONS, pipeline_class=Passes
        )  # fmt: skip
        result = callback._compile_uncached()
        made.append((result.library, result.fndesc.llvm_cfunc_wrapper_name))
    code, bitcode = Library.machine_code(made)
    return [MachineCode(entry, code, bitcode) for _, entry in made]


def build(kernels: Sequence[Kernel], wait: bool) -> bool:
    """Compiles kernels of one module unless they are there. While another process does so: waits, or returns False at once."""
    with open(kernels[0].lock, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        missing = [kernel for kernel in kernels if not read(kernel.path)]  # the others were compiled while we waited
        if missing:
            for kernel, made in zip(missing, compiled(missing), strict=True):
                write(kernel.path, made)
                Kernel.compiled.append(kernel.name)
    return True


def build_all(kernels: Iterable[Kernel]) -> None:
    """Each process goes on to a module whose kernels nobody is compiling."""
    modules: dict[Path, list[Kernel]] = {}
    for kernel in kernels:
        modules.setdefault(kernel.lock, []).append(kernel)
    missing = [*modules.values()]
    while missing:
        later = [module for module in missing if not build(module, wait=False)]
        if len(later) == len(missing):
            build(later.pop(0), wait=True)
        missing = later


def main() -> None:
    """The process. Its arguments are the one that it ends with, and JSON: [module, name, arguments of specialize() or null, name of
    the file] of each kernel. Prints the names of those that it compiled itself: processes that want the same share the work.
    """
    end_with(int(sys.argv[1]))
    os.sched_setaffinity(0, os.sched_getaffinity(int(sys.argv[1])))  # not those of the thread that asked, which may be pinned
    gc.set_threshold(GARBAGE)
    kernels: list[Kernel] = []
    for module, name, arguments, file in json.loads(sys.argv[2]):
        kernel = getattr(specialize(*arguments) if arguments else importlib.import_module(module), name)
        # The digest of the files before this process loaded them, and now: what it loaded is what they say.
        if kernel.path.name != file:
            sys.exit(f"the files of {kernel.name} were changed meanwhile: start again")
        kernels.append(kernel)
    try:
        build_all(kernels)
        drop_unused(kernel_cache().parent)
    except (NumatpError, MemoryError, OSError, RuntimeError) as error:
        sys.exit(str(error) if isinstance(error, NumatpError) else describe(error) or repr(error))
    json.dump(Kernel.compiled, sys.stdout)
