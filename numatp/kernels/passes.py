"""What Numba does with a kernel's function before LLVM: its usual passes, without those for Python that kernels do not have.

Left out are closures, comprehensions, array expressions, overloads to be inlined, "with", literally() and literal_unroll(): each
looks through every function, and together they took a tenth of a kernel's time in the compiler.
"""

from typing import Any

from numba.core.compiler import Compiler
from numba.core.compiler_machinery import PassManager
from numba.core.typed_passes import IRLegalization, NativeLowering, NoPythonBackend, NopythonTypeInference, PreLowerStripPhis
from numba.core.untyped_passes import (
    DeadBranchPrune,
    FixupArgs,
    IRProcessing,
    ReconstructSSA,
    RewriteSemanticConstants,
    TranslateByteCode,
)

PASSES = (
    TranslateByteCode, FixupArgs, IRProcessing, RewriteSemanticConstants, DeadBranchPrune, ReconstructSSA, NopythonTypeInference,
    PreLowerStripPhis, IRLegalization, NativeLowering, NoPythonBackend,
)  # fmt: skip


class Passes(Compiler):
    """For njit's and CFunc's pipeline_class."""

    def define_pipelines(self) -> list[Any]:
        manager = PassManager("kernels")
        for one in PASSES:
            manager.add_pass(one, one.__name__)
        manager.finalize()
        return [manager]
