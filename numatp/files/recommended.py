"""How a model's authors say that it is best sampled: generation_config.json of a folder, `general.sampling.*` of a GGUF file."""

import math
import os
from pathlib import Path

from numatp.files.folder import read_json
from numatp.files.gguf import read_gguf
from numatp.files.gguf_header import fail, quote
from numatp.files.gguf_writer import encoded

# Our name of a number: (GGUF's after "general.sampling.", the folder's).
NAMES = {
    "temperature": ("temp", "temperature"), "top_k": ("top_k", "top_k"), "top_p": ("top_p", "top_p"), "min_p": ("min_p", "min_p"),
    "repeat_penalty": ("penalty_repeat", "repetition_penalty"),
}  # fmt: skip


def recommended_sampling(path: str | os.PathLike[str]) -> dict[str, float]:
    """Those of NAMES that the model has. UserError for one that is no number."""
    if os.path.isdir(path):
        source = Path(path, "generation_config.json")
        said = read_json(source) if source.exists() else {}
        found = {ours: said.get(theirs) for ours, (_, theirs) in NAMES.items()}
    else:
        file = read_gguf(path)
        source, said = file.path, file.metadata.entries
        found = {ours: said.get(f"general.sampling.{theirs}") for ours, (theirs, _) in NAMES.items()}
    for name, value in found.items():
        whole = type(value) is int or (type(value) is float and value.is_integer())
        if value is not None and not (whole if name == "top_k" else type(value) in (int, float) and math.isfinite(value)):
            fail(source, f"recommends {quote(value)} as {name}, which is no such number; correct it, or download it again")
    numbers = {name: value for name, value in found.items() if value is not None}
    return {name: max(int(value), 0) if name == "top_k" else float(value) for name, value in numbers.items()}  # -1 is all, too


def encoded_sampling(folder: Path) -> dict[str, bytes]:
    """What a GGUF file of the folder says of it, key by key."""
    return {f"general.sampling.{NAMES[name][0]}": encoded(value) for name, value in recommended_sampling(folder).items()}
