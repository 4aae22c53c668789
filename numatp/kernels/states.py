"""Sizes of what layers keep of a sequence besides keys and values, and of hyper-connections. No Numba here: who only counts bytes
need not load it.
"""

PIECE = 8  # tokens of a sequence that the delta rule takes together; divides CACHE_BLOCK, so that checkpoints are of whole pieces
MOST_LINEAR_HEAD = 128  # values of a head of linear attention
STREAMS = 4  # rows that a token's residual has where layers are hyper-connected (kernels/streams.py)
MIXES = STREAMS * (2 + STREAMS)  # weights with which a block reads them and adds to them
INDEX_HEADS = 4  # of an indexer, that are scored together where a key stands for several tokens
ENTRY_TILE = 16  # keys of entries that are scored together: those of a block of the cache (kernels/compressed.py)


def conv_rows(width: int) -> int:
    """Inputs of a convolution that its state keeps: those before a token, and as many as a piece has where all but its last are
    taken back. A token's is at its position, modulo this.
    """
    return width - 1 + PIECE - 1


def conv_bytes(channels: int, width: int) -> int:
    """Bytes of the convolution's part of a gated delta layer's state."""
    return conv_rows(width) * channels * 4


def pool_bytes(size: int, every: int) -> int:
    """Bytes of what an indexer that has one key for `every` tokens keeps of the last ones (kernels/pools.py): their keys and gates,
    as a convolution over as many keeps its inputs, so that they are taken back like those.
    """
    return conv_bytes(2 * size, every)


def delta_bytes(key_heads: int, value_heads: int, head_size: int, by_channel: bool = False) -> tuple[int, int, int, int]:
    """Bytes of the parts of a gated delta layer's state (kernels/delta.py), which follow each other: of each value head a matrix;
    then of the tokens of a piece that is not full yet what each changes, their keys, and their decays, by_channel of each channel
    of a key.
    """
    values = value_heads * head_size
    decays = values if by_channel else value_heads
    return values * head_size * 4, PIECE * values * 4, PIECE * key_heads * head_size * 4, PIECE * decays * 4


def state_bytes(key_heads: int, value_heads: int, head_size: int, width: int, by_channel: bool = False) -> int:
    """Bytes of the whole state of one sequence in a gated delta layer."""
    channels = (2 * key_heads + value_heads) * head_size
    return conv_bytes(channels, width) + sum(delta_bytes(key_heads, value_heads, head_size, by_channel))


def pooled_bytes(size: int, overlapping: bool) -> int:
    """Bytes of the entries under way of a layer that compresses (kernels/compressed.py), of so many channels: of each channel the
    highest gate, the sum of weights and of weighted values; overlapping: of the next entry, too.
    """
    return 3 * size * 4 * (2 if overlapping else 1)
