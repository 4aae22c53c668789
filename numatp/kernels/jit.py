"""The door to Numba and llvmlite, which are a compiler and nothing else: whoever runs kernels loads neither.

In a process that compiles (build.py) the names here are theirs. Elsewhere each is an Absent, which takes everything that the files
of kernels do with it while they are loaded.
"""

import sys
from typing import Any

COMPILES = "numatp.kernels.build" in sys.modules

if COMPILES:
    import numba
    from llvmlite import ir
    from numba import float32, int16, int32, int64, njit, types
    from numba.core import cgutils
    from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

    from numatp.kernels.passes import Passes

    __all__ = [
        "Passes", "cgutils", "float32", "int16", "int32", "int64", "intrinsic", "ir", "lower_builtin", "models", "njit", "numba",
        "register_model", "type_callable", "types",
    ]  # fmt: skip


class Nothing:
    """The base of classes that are derived from an Absent."""

    def __init__(self, *_: Any, **__: Any):
        pass


class Absent:
    """A value, function, type or decorator of the compiler's; what is made with it is absent too."""

    def __call__(self, *_: Any, **__: Any) -> "Absent":
        return self

    def __getattr__(self, name: str) -> "Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent()

    def __mro_entries__(self, _: Any) -> tuple[type, ...]:
        return (Nothing,)


def __getattr__(name: str) -> Any:
    if COMPILES or name.startswith("__"):
        raise AttributeError(f"{__name__} has no {name}")
    return Absent()
