"""Which matrix of a file gets which type, as llama.cpp's llama-quantize chooses it (its src/llama-quant.cpp)."""

from dataclasses import dataclass

from numatp.quants.table import FORMATS


@dataclass(frozen=True)
class Mix:
    """Most matrices are of one type, and those of a better one that help most."""

    base: str
    better: str
    file_type: int  # what general.file_type says


MIXES = {"Q4_K_M": Mix("Q4_K", "Q6_K", 15), "Q5_K_M": Mix("Q5_K", "Q6_K", 17)}
OUTPUT = "Q6_K"  # of the matrix that makes the logits, where the others have fewer bits


def base_of(wanted: str) -> str:
    """The type of most matrices in a file of a format or mix."""
    return MIXES[wanted].base if wanted in MIXES else wanted


def file_type_of(wanted: str) -> int:
    """Of a format that numatp writes, or of a mix."""
    number = MIXES[wanted].file_type if wanted in MIXES else FORMATS[wanted].file_type
    assert number is not None, wanted
    return number


def output_type(base: str) -> str:
    """Of the matrix that makes the logits, where most are of the type `base`."""
    return OUTPUT if FORMATS[base].bits < FORMATS[OUTPUT].bits else base


def gets_better(index: int, count: int) -> bool:
    """Whether the index-th of `count` values (attn_v) or down projections is one of those that help most: of the first and last
    eighth and of each third between them.
    """
    eighth = count // 8
    return index < eighth or index >= 7 * count // 8 or (index - eighth) % 3 == 2


def fitting(name: str, columns: int) -> str | None:
    """The type, or what is taken in its place for rows of so many columns; None if only plain numbers fit."""
    for candidate in (name, FORMATS[name].narrow, "F16"):
        if candidate and columns % FORMATS[candidate].columns == 0:
            return candidate
    return None
