"""Sizes of what kernels keep in memory. No Numba here, so that what only counts bytes need not load it."""

CACHE_BLOCK = 64  # tokens of a block of keys and values
KEY_TILE = 16  # tokens of a vector of scores
MAX_HEAD_SIZE = 576  # of the keys that are latent rows and what is rotated of them, in DeepSeek-V3
QUERY_PITCH = (
    2 * MAX_HEAD_SIZE + 32
) * 4  # bytes from query to query in scratch; no power of two, or few cache sets would be crowded
SCORES_PITCH = CACHE_BLOCK * 4  # bytes from query to query of their scores of one block
CACHE_TYPES = ("f16", "q8_0")  # kernels/caches
PANEL_UNIT_BYTES = 16 * 32 * 2  # of a panel of weights (kernels/bf16.py)
PANEL_UNITS, PANELS = 32, 32  # what is multiplied from one thread's memory (kernels/panels.py)
PANELS_BYTES = PANELS * PANEL_UNITS * PANEL_UNIT_BYTES
HANDED_BYTES = 128  # of a thread, for the sums that it hands on (kernels/dealt.py); threads must not share lines
PART_UNITS = 2  # of 32 columns: the part of a thin matrix that is summed for itself (kernels/thin.py)
NO_WINDOW = 1 << 30  # tokens; must fit int32


def cache_bytes(cache_type: str, size: int) -> int:
    """Bytes of the keys, or the values, of one KV head in a block."""
    if cache_type == "f16":
        return CACHE_BLOCK * size * 2
    return CACHE_BLOCK // KEY_TILE * ((size // 32 * (KEY_TILE * 34) + 63) // 64 * 64)


def cache_refusal(cache_type: str, size: int) -> str:
    """Why heads of this size cannot be kept so, "" if they can."""
    if cache_type == "q8_0" and size % 32:
        return f"a q8_0 cache keeps heads in blocks of 32, and this model's have {size}: use f16"
    return ""


def slice_columns(width: int, wire: int, wires: int) -> int:
    """Of the wire-th slice of a row of sums, as sum_slice (kernels/exchange.py) cuts it."""
    return (width // 16 * (wire + 1) // wires - width // 16 * wire // wires) * 16


MOST_TOP = 20  # most probable tokens whose log-probabilities may be asked for, as OpenAI has it
TOP_BYTES = MOST_TOP * (4 + 4)  # of a row's most probable tokens (kernels/score.py)
