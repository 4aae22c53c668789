"""WHAT does a model compute? One file per architecture, found by the name that GGUF gives it; README.md says how to add one."""

import importlib
import importlib.util
import os
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType

from numatp.files.folder import Folder
from numatp.files.gguf import leave_out_further_layers, read_gguf
from numatp.files.gguf_header import fail, quote
from numatp.files.huggingface import HuggingFaceFile
from numatp.files.model_file import ModelFile
from numatp.weights.interleaved import take_rows_apart
from numatp.weights.kv_b import split_kv_b

NOT_ARCHITECTURES = {
    "deepseek4_names", "gemma4_names", "hybrid", "indexed", "kimi_delta", "known", "latent", "layers", "names", "prenorm", "rope",
    "routed", "shapes", "spec", "streams",
}  # fmt: skip
# A module's name has _ for -; these architectures have some of their own.
UNDERSCORED = {"ernie4_5_moe": "ernie4_5-moe", "hy_v3": "hy_v3"}
SAME = {"glm5next": "glm5-next"}  # other names that files have
NEAREST = 4  # names of supported architectures that a refusal shows


@cache
def architectures() -> dict[str, str]:
    """As GGUF has them: the name of each one's module."""
    modules = sorted(module.name for module in iter_modules(__path__) if module.name not in NOT_ARCHITECTURES)
    return {UNDERSCORED.get(module, module.replace("_", "-")): module for module in modules}


def open_model(path: str | os.PathLike[str]) -> tuple[ModelFile, ModuleType]:
    """(metadata and tensors, the module of its architecture) of a GGUF file or a Hugging Face folder.

    UserError for what is damaged, missing or of an unknown architecture.
    """
    if os.path.isdir(path):
        return _open_folder(Folder(Path(path)))
    file = read_gguf(path)
    model = find(file)
    leave_out_further_layers(file)
    split_kv_b(file)
    take_rows_apart(file)
    return file, model


def find(file: ModelFile) -> ModuleType:
    """The module of the architecture that the file names."""
    name = file.text("general.architecture")
    name = SAME.get(name, name)
    if name not in architectures():
        file.fail(f"architecture {quote(name)} is not supported; supported: {', '.join(architectures())}")
    return importlib.import_module(f"{__name__}.{architectures()[name]}")


def _open_folder(folder: Folder) -> tuple[ModelFile, ModuleType]:
    supported: list[str] = []
    for name, module_name in architectures().items():
        module = importlib.import_module(f"{__name__}.{module_name}")
        table = getattr(module, "HUGGING_FACE", None)
        if table and folder.architecture in table.classes:
            return HuggingFaceFile(folder, table, folder.architecture, name), module
        if table and folder.text_type in table.texts and folder.architecture.endswith("ForConditionalGeneration"):
            architecture, sizes = table.texts[folder.text_type]
            folder.keep_text()
            folder.config = {**sizes, **folder.config}
            return HuggingFaceFile(folder, table, architecture, name), module
        supported += table.classes if table else ()
    nearest = ", ".join(get_close_matches(folder.architecture, supported, n=NEAREST, cutoff=0))  # a line must stay one
    fail(
        folder.config_path,
        f"architecture {quote(folder.architecture)} is not supported; of {len(supported)} that are, the nearest names: {nearest}",
    )
