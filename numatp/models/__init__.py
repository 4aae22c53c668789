"""One file per architecture, found by the name that GGUF gives it (`general.architecture`, with _ for -). Each holds

read_spec(file) -> Spec    sizes from the metadata
rules(spec) -> [Rule]      its tensors, and by their shapes how they are cut
forward(p, spec, split, weights, caches)    the forward pass in the words of program/ops.py

Adding an architecture
----------------------
1. Copy the file of the nearest one (qwen2.py is the plainest) to NAME.py. models/spec.py reads what all files have in common, so
   read_spec says only what is different; a number that forward needs and Spec lacks goes into a Spec of the file's own.
2. rules lists every tensor that a layer has, in the order in which forward reads them: what one matmul multiplies, and what one
   add_bias adds, must lie side by side. Shapes are words of Sizes (weights/splits.py); a word that Split has too is cut between
   ranks there. A tensor in the file that no rule names, or the reverse, is an error when a model is loaded.
3. forward is recorded once per rank and program, not run per token: it may not look at numbers that a token changes. Whatever is
   summed over ranks goes through one of the words that exchange (add_product and its kin), at best two per layer.
4. If a word is missing, add it to program/ops.py and its kernel to the file of its kind in kernels/. The op says which buffers it
   reads and writes and how its threads divide them; ANYHOW is always right and costs a barrier. Test the kernel against numpy in
   tests/test_kernels.py.
5. Add a tiny model of it to MODELS in tests/data/make_golden.py and run that with the name: transformers computes the logits,
   llama.cpp's converter writes the file. Give each feature a way to be taken out in FEATURES of tests/golden.py. Then
   `pytest tests/test_golden.py tests/test_models.py -k NAME` tests logits on 1, 2, 3 and 5 ranks, every feature, and refusals.
6. Name it in README.md's table.
"""

import importlib
import importlib.util
from pkgutil import iter_modules
from types import ModuleType

from numatp.files.gguf import GGUFFile
from numatp.files.gguf_header import quote

NOT_ARCHITECTURES = {"rope", "spec"}


def names() -> list[str]:
    """As GGUF has them; a module's name has _ for -."""
    return sorted(module.name.replace("_", "-") for module in iter_modules(__path__) if module.name not in NOT_ARCHITECTURES)


def find(file: GGUFFile) -> ModuleType:
    """The module of the file's architecture."""
    name = file.text("general.architecture")
    if name not in names():
        file.fail(f"architecture {quote(name)} is not supported; supported: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
