"""Compiles kernels with Numba, in a process of its own (compile_apart): whoever runs them loads neither Numba nor LLVM.

Once this module is imported the files of kernels are those of a compiler (jit.py).
"""

import fcntl
import importlib
import json
import sys
from collections.abc import Iterable
from typing import Any

from numba.core.ccallback import CFunc
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen
from numba.core.compiler_lock import global_compiler_lock
from numba.core.registry import cpu_target
from numba.core.sigutils import normalize_signature
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_getattr_generic

from numatp.errors import NumatpError
from numatp.kernels.compile import OPTIONS, Kernel, MachineCode, read, specialize, write
from numatp.kernels.jit import ir, models, register_model, types
from numatp.kernels.simd import BYTE, DOUBLE, FLOAT, INT64, pointer
from numatp.machine.limits import describe
from numatp.machine.parent import end_with

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
    becomes of that is optimised and made machine code in the kernel alone.
    """

    def _optimize_functions(self, ll_module: Any) -> None:
        """As Numba's, but the passes are made once instead of once per function."""
        ll_module.data_layout = self._codegen._data_layout
        passes, builder = self._codegen._function_pass_manager()
        for function in ll_module.functions:
            passes.run(function, builder)

    def _optimize_final_module(self) -> None:
        """The first and cheap half of what Numba's own does: without it products of some formats are a tenth slower."""
        passes, builder = self._codegen._module_pass_manager(loop_vectorize=False, slp_vectorize=False, opt=0, cost="cheap")
        passes.run(self._final_module, builder)

    def _finalize_final_module(self) -> None:
        self._finalized = True

    def machine_code(self) -> bytes:
        """An object file."""
        self._ensure_finalized()
        passes, builder = self._codegen._module_pass_manager()  # the other half
        passes.run(self._final_module, builder)
        self._verify_declare_only_symbols()
        self._finalize_dynamic_globals()  # counts them
        code: bytes = self._codegen._tm.emit_object(self._final_module)
        return code


class Codegen(JITCPUCodegen):
    _library_class = Library

    def set_env(self, env_name: str, env: Any) -> None:
        """Python calls no part of a kernel."""


cpu_target.target_context._internal_codegen = Codegen("numatp")


@global_compiler_lock
def compiled(kernel: Kernel) -> MachineCode:
    """Numba's work."""
    callback: Any = CFunc(kernel.function, normalize_signature(signature(kernel.fields)), locals={}, options=OPTIONS)
    made = callback._compile_uncached()
    code = made.library.machine_code()
    assert not made.library.has_dynamic_globals, f"{made.fndesc.llvm_func_name} would hold addresses of this process"
    return MachineCode(made.fndesc.llvm_cfunc_wrapper_name, code, made.library._final_module.as_bitcode())


def build(kernel: Kernel, wait: bool) -> bool:
    """Compiles the kernel unless it is there. While another process compiles it: waits, or does nothing and returns False."""
    with open(kernel.path.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        if not read(kernel.path):  # otherwise somebody compiled it while we waited
            write(kernel.path, compiled(kernel))
            Kernel.compiled.append(kernel.name)
    return True


def build_all(kernels: Iterable[Kernel]) -> None:
    """Each process goes on to a kernel that nobody is compiling."""
    missing = [*kernels]
    while missing:
        later = [kernel for kernel in missing if not build(kernel, wait=False)]
        if len(later) == len(missing):
            build(later.pop(0), wait=True)
        missing = later


def main() -> None:
    """The process. Its arguments are the one that it ends with, and JSON: [module, name, arguments of specialize() or null, name of
    the file] of each kernel. Prints the names of those that it compiled itself: processes that want the same share the work.
    """
    end_with(int(sys.argv[1]))
    kernels: list[Kernel] = []
    for module, name, arguments, file in json.loads(sys.argv[2]):
        kernel = getattr(specialize(*arguments) if arguments else importlib.import_module(module), name)
        # The digest of the files before this process loaded them, and now: what it loaded is what they say.
        if kernel.path.name != file:
            sys.exit(f"the files of {kernel.name} were changed meanwhile: start again")
        kernels.append(kernel)
    try:
        build_all(kernels)
    except (NumatpError, MemoryError, OSError, RuntimeError) as error:
        sys.exit(str(error) if isinstance(error, NumatpError) else describe(error) or repr(error))
    json.dump(Kernel.compiled, sys.stdout)
