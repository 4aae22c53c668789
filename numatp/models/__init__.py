"""One file per architecture, found by the name that GGUF gives it (`general.architecture`, with _ for -). Each holds

read_spec(file) -> Spec    sizes from the metadata
rules(spec) -> [Rule]      its tensors, and by their shapes how they are cut
forward(p, spec, split, weights, caches)    the forward pass in the words of program/ops.py
HUGGING_FACE    what a Hugging Face folder calls all that (files/huggingface.py), if numatp reads such folders of it

All but the last speak of metadata and tensors as GGUF does, whatever the source: read_spec asks for "llama.embedding_length" and
gets `hidden_size` of config.json, rules name "blk.0.attn_q.weight" and get "model.layers.0.self_attn.q_proj.weight". HUGGING_FACE
is the table from one to the other. What nearly all folders share has a name (CONFIG, ENDS, ATTENTION, FFN, EXPERTS); entries are

    config    "hidden_size", or a function of the whole config.json for what GGUF says in another way (rope_type); None: not there.
    tensors   "model.layers.{layer}.mlp.down_proj.weight"; with {expert} the tensors of all experts become one, below each other
              plus_one(name)                      a norm that GGUF holds with 1 added
              Stored(name, values=function)       other changes of numbers, of vectors and tables: -exp(A_log)
              Stored(name, order=function)        rows in another order, or some of them (numbered_rows): in_proj_qkvz
    computed  vectors that GGUF has and folders only describe: function of the file, or None: "rope_freqs.weight" in llama
    only      keys of config.json that must have one value, because we compute nothing else: {"hidden_act": "silu"}
    ignored   patterns of tensors that are not needed: "*.rotary_emb.inv_freq"

Dimensions of 1 fall away (a convolution's (channels, 1, width) is (channels, width)). Quantised weights need no entry: of
NAME.weight files/layouts finds the layout's tensors (NAME.qweight, NAME.scales, ...). A tensor that nothing names is an error.

Importing one loads no Numba: plans read sizes and rules before its target is known.

Adding an architecture
----------------------
1. Copy the file of the nearest one (qwen2.py is the plainest) to NAME.py. models/spec.py reads what all files have in common, so
   read_spec says only what is different; a number that forward needs and Spec lacks goes into a Spec of the file's own.
2. rules lists every tensor that a layer has, in the order in which forward reads them: what one matmul multiplies, and what one
   add_bias adds, must lie side by side. Shapes are words of Sizes (weights/splits.py); a word that Split has too is cut between
   ranks there. A tensor in the file that no rule names, or the reverse, is an error when a model is loaded.
3. forward is recorded once per rank and program, not run per token: it may not look at numbers that a token changes. Whatever is
   summed over ranks goes through one of the words that exchange (add_product and its kin), at best two per layer. Import
   program/ops.py for types only, see above.
4. If a word is missing, add it to program/ops.py and its kernel to the file of its kind in kernels/. The op says which buffers it
   reads and writes and how its threads divide them; ANYHOW is always right and costs a barrier. Test the kernel against numpy in
   tests/test_kernels.py.
5. Add a tiny model of it to MODELS in tests/data/make_golden.py and run `make_golden.py CONVERTER NAME`: transformers computes the
   logits, llama.cpp's converter writes the file. Give each feature a way to be taken out in FEATURES of tests/golden.py. Then
   `pytest tests/test_golden.py tests/test_models.py -k NAME` tests logits on 1, 2, 3 and 5 ranks, every feature, and refusals.
6. For its Hugging Face folders write HUGGING_FACE; say in `only` what numatp does not compute. What the folder looks like, and that
   it gives the same logits, is tested in tests/test_golden.py by golden/NAME.json, which make_golden.py has written; that
   `numatp quantize` makes of it what llama.cpp's converter made, in tests/test_quantize.py. Where names or numbers of the folder
   are not those of the GGUF file, write them down in tests/golden_folders.py, so that a slip in the table is seen.
7. Name it in README.md's table.
"""

import importlib
import importlib.util
import os
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from numatp.files.gguf import read_gguf
from numatp.files.gguf_header import fail, quote
from numatp.files.huggingface import Folder, HuggingFaceFile
from numatp.files.model_file import ModelFile

NOT_ARCHITECTURES = {"rope", "shapes", "spec"}


def names() -> list[str]:
    """As GGUF has them; a module's name has _ for -."""
    return sorted(module.name.replace("_", "-") for module in iter_modules(__path__) if module.name not in NOT_ARCHITECTURES)


def open_model(path: str | os.PathLike[str]) -> tuple[ModelFile, ModuleType]:
    """(metadata and tensors, the module of its architecture) of a GGUF file or a Hugging Face folder.

    UserError for what is damaged, missing or of an unknown architecture.
    """
    if os.path.isdir(path):
        return _open_folder(Folder(Path(path)))
    file = read_gguf(path)
    return file, find(file)


def find(file: ModelFile) -> ModuleType:
    """The module of the architecture that the file names."""
    name = file.text("general.architecture")
    if name not in names():
        file.fail(f"architecture {quote(name)} is not supported; supported: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name.replace('-', '_')}")


def _open_folder(folder: Folder) -> tuple[ModelFile, ModuleType]:
    supported: list[str] = []
    for name in names():
        module = importlib.import_module(f"{__name__}.{name.replace('-', '_')}")
        table = getattr(module, "HUGGING_FACE", None)
        if table and folder.architecture in table.classes:
            return HuggingFaceFile(folder, table, name), module
        supported += table.classes if table else ()
    known = ", ".join(sorted(supported))
    fail(folder.config_path, f"architecture {quote(folder.architecture)} is not supported; supported: {known}")
