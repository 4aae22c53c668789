"""One file per architecture, found by the name that GGUF gives it (`general.architecture`). Each holds

read_spec(file) -> Spec    sizes from the metadata
rules(spec) -> [Rule]      its tensors, and by their shapes how they are cut
forward(p, spec, split, weights, caches)    the forward pass in the words of program/ops.py

Importing one loads no Numba: plans read sizes and rules before its target is known.
"""

import importlib
import importlib.util
from pkgutil import iter_modules
from types import ModuleType

from numatp.files.gguf import GGUFFile
from numatp.files.gguf_header import quote

NOT_ARCHITECTURES = {"shapes", "spec"}


def names() -> list[str]:
    return sorted({module.name for module in iter_modules(__path__)} - NOT_ARCHITECTURES)


def find(file: GGUFFile) -> ModuleType:
    """The module of the file's architecture."""
    name = file.text("general.architecture")
    if name not in names():
        file.fail(f"architecture {quote(name)} is not supported; supported: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")
