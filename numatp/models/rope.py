"""How fast rotary embedding turns each pair of a head's values: the base's frequencies, and what longer contexts make of them."""

from dataclasses import dataclass, replace
from math import ceil, floor, log, pi
from typing import Literal

import numpy as np

from numatp.files.gguf_header import quote
from numatp.files.model_file import ModelFile, TensorInfo
from numatp.files.safetensors import read_floats

BASE = 10000.0  # where a file names none
KINDS = ("none", "linear", "yarn")


@dataclass(frozen=True, eq=False)
class Rope:
    frequencies: np.ndarray  # float64 (pairs,): radians per token; the values of a head after its pairs are not turned
    scale: float = 1.0  # of the turned values
    score_scale: float = 1.0  # of the scores, besides


def plain(base: float, rotated: int) -> np.ndarray:
    """Frequencies of the first `rotated` values of a head (https://arxiv.org/abs/2104.09864)."""
    return base ** (-np.arange(0, rotated, 2) / rotated)


def read_rope(
    file: ModelFile, head_size: int, truncate: bool = True, multiplies: Literal["", "scores", "turned"] = "", base: str = ""
) -> Rope:
    """By the file's metadata `rope.*`. truncate: YaRN's range ends at whole pairs, where the file does not say. multiplies: what
    YaRN's "log multiplier" is for in this architecture: it scales the scores and not the turned values, or these less. base: the
    key of the base, if it is another.

    UserError for a scaling that numatp does not know, and for more rotated values than a head has.
    """
    name = file.text("general.architecture")
    rotated = file.count(f"{name}.rope.dimension_count", default=head_size)
    if rotated > head_size or rotated % 2:
        file.fail(f"rotates {rotated} of a head's {head_size} values; convert the model again")
    start = read_base(file, base or f"{name}.rope.freq_base")
    prefix = f"{name}.rope.scaling"
    kind, frequencies = file.text(f"{prefix}.type", default="linear"), plain(start, rotated)
    if kind not in KINDS:
        # Long texts have other frequencies from their first token on, and keys in a cache keep those that they were stored with.
        why = ", by which long texts turn otherwise from their beginning" if kind == "longrope" else ""
        file.fail(f"metadata '{prefix}.type' is {quote(kind)}{why}; numatp knows {', '.join(KINDS)}: use another model")
    scale = file.positive(f"{prefix}.attn_factor", default=1.0)
    if kind == "none":
        return Rope(frequencies, scale)
    # Early files have the older key.
    factor = file.positive(f"{prefix}.factor", default=file.positive(f"{name}.rope.scale_linear", default=1.0))
    if factor < 1:
        file.fail(f"scales its rotary embedding by {factor:g}, which should be 1 or more; convert the model again")
    if kind == "linear":
        return Rope(frequencies / factor, scale)
    trained = file.count(f"{prefix}.original_context_length", default=file.count(f"{name}.context_length"))
    multiplier = file.number(f"{prefix}.yarn_log_multiplier", default=0.0) if multiplies else 0.0
    for key, expected in (("yarn_ext_factor", 1.0), ("yarn_log_multiplier", multiplier)):
        if file.number(f"{prefix}.{key}", default=expected) != expected:
            file.fail(f"metadata '{prefix}.{key}' is not {expected:g}, which numatp cannot compute; use another model")
    fast, slow = (file.positive(f"{prefix}.yarn_beta_{key}", default) for key, default in (("fast", 32.0), ("slow", 1.0)))
    if not 1e-6 <= slow < fast <= 1e6:
        file.fail(f"claims bounds of YaRN of {fast:g} and {slow:g} turns; convert the model again")
    grown = 0.1 * log(factor) + 1
    if multiplier:
        grown = 1.0 if multiplies == "scores" else grown / (0.1 * multiplier * log(factor) + 1)
    scale *= file.positive(f"{prefix}.yarn_attn_factor", default=grown)
    truncate = file.flag(f"{prefix}.yarn_truncate", default=truncate)
    frequencies = yarn(frequencies, start, factor, trained, fast, slow, truncate)
    return Rope(frequencies, scale, (1 + multiplier * log(factor)) ** 2 if multiplies == "scores" else 1.0)


def read_base(file: ModelFile, key: str, default: float = BASE) -> float:
    base = file.positive(key, default=default)
    if base <= 1:
        file.fail(f"metadata '{key}' is {base:g}, and should be above 1; convert the model again")
    return base


def read_factors(file: ModelFile) -> bool:
    """Whether the file has a tensor that the frequencies are divided by. UserError for one that they cannot be divided by."""
    found = "rope_freqs.weight" in file.tensors
    if found:
        check_factors(file, "rope_freqs.weight")
    return found


def check_factors(file: ModelFile, name: str) -> None:
    """UserError unless the tensor of that name holds numbers that frequencies can be divided by."""
    # Of whatever shape: shapes are checked with those of all other tensors.
    info = file.tensors[name]
    if not isinstance(info, TensorInfo):  # not computed here, as those of folders are
        return
    factors = read_floats(replace(info, shape=(-1,)))
    if not (np.isfinite(factors) & (factors > 0)).all():
        file.fail(f"tensor {quote(file.called(name))} divides the rotation by what is not above 0; download the model again")


def yarn(
    frequencies: np.ndarray, base: float, factor: float, trained: int, fast: float, slow: float, truncate: bool = True
) -> np.ndarray:
    """Pairs that turn more than `fast` times in `trained` tokens keep their frequency, those that turn less than `slow` times have
    it divided by `factor`, those between get something between (https://arxiv.org/abs/2309.00071, section 3.2).
    """
    rotated = 2 * len(frequencies)
    first, last = (rotated * log(trained / (turns * 2 * pi)) / (2 * log(base)) for turns in (fast, slow))
    if truncate:
        first, last = floor(first), ceil(last)
    first, last = max(first, 0), min(last, rotated - 1)
    ramp = np.clip((np.arange(len(frequencies)) - first) / max(last - first, 0.001), 0, 1)
    return frequencies * (ramp / factor + 1 - ramp)


def llama3_factors(frequencies: np.ndarray, factor: float, low: float, high: float, trained: int) -> np.ndarray:
    """What Llama 3.1's scaling divides each frequency by: 1 for wavelengths below trained / high tokens, `factor` for those above
    trained / low, something between for the others. GGUF files hold the result as rope_freqs.weight.
    """
    turns = trained * frequencies / (2 * pi)
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return 1 / ((1 - smooth) / factor + smooth)
