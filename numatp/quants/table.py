"""One row per type that GGUF has; those that numatp computes with, FORMATS, have a file in this folder beside their row.

Plain data: what reads a header, counts bytes or makes a plan needs no kernels, and so no Numba.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

UNIT = 32  # columns of a matrix that lie together in memory; ranks cut between units
TILE_ROWS = 16
SUPER_UNITS = 8  # units of a super-block (kernels/superblock.py)
HEADER_BYTES = 32  # of a tile, before its first super-block


@dataclass(frozen=True)
class Format:
    """A type of GGUF's, and how numatp stores it. Bytes in memory are multiples of 8, because tiles follow each other."""

    id: int  # in a file's table of tensors
    name: str
    block: int  # weights along a row that are stored together in the file
    block_bytes: int  # of them in the file
    tile_bytes: int = 0  # in memory, of 16 rows x 32 columns without what super-blocks share; 0: numatp has no kernels for the type
    head_bytes: int = 0  # in memory, of a tile before its first unit, if there are no super-blocks
    row_bytes: int = 0  # in the file, of a row before its first block
    super_bytes: int = 0  # in memory, of what 16 rows of a super-block share; 0: there are no super-blocks
    file_type: int | None = None  # what general.file_type says of a file that is written in it; None: the format is only read
    narrow: str | None = None  # what llama.cpp takes instead for rows that are no whole blocks
    # Byte of a block at which a float16 scale or minimum lies: how large it is beside the first one if the values' mean is 0, or
    # half a step from it, whatever the codes.
    scales: Mapping[int, float] = field(default_factory=dict)

    @property
    def module(self) -> str:
        """Where its kernels are."""
        return f"numatp.quants.{self.name.lower()}"

    @property
    def columns(self) -> int:
        """A matrix of the format has a multiple of so many."""
        return max(self.block, UNIT)

    @property
    def bits(self) -> float:
        """Of a weight in the file."""
        return 8 * self.block_bytes / self.block

    def bytes_of(self, columns: int, rows: int = 1) -> int:
        """In a file, of rows of so many columns, which are whole blocks."""
        return rows * (self.row_bytes + columns // self.block * self.block_bytes)

    def bytes_of_tile(self, columns: int, first: int = 0) -> int:
        """In memory, of 16 rows x `columns` of a matrix from its first-th column on."""
        units = columns // UNIT
        if not self.super_bytes:
            return self.head_bytes + units * self.tile_bytes
        touched = (first // UNIT % SUPER_UNITS + units + SUPER_UNITS - 1) // SUPER_UNITS
        return HEADER_BYTES + touched * self.super_bytes + units * self.tile_bytes


ROWS = (
    Format(0, "F32", 1, 4, tile_bytes=16 * 128, file_type=0),
    Format(1, "F16", 1, 2, tile_bytes=16 * 64, file_type=1),
    Format(2, "Q4_0", 32, 18, tile_bytes=16 * 18, file_type=2, scales={0: 1}),
    Format(3, "Q4_1", 32, 20, tile_bytes=16 * 20, file_type=3, scales={0: 1, 2: -7.5}),
    Format(6, "Q5_0", 32, 22, tile_bytes=16 * 22, file_type=8, scales={0: 1}),
    Format(7, "Q5_1", 32, 24, tile_bytes=16 * 24, file_type=9, scales={0: 1, 2: -15.5}),
    Format(8, "Q8_0", 32, 34, tile_bytes=16 * 34, file_type=7, scales={0: 1}),
    Format(9, "Q8_1", 32, 40),
    Format(10, "Q2_K", 256, 84, tile_bytes=16 * 10, super_bytes=64, file_type=10, narrow="IQ4_NL", scales={80: 1, 82: 1.5}),
    Format(11, "Q3_K", 256, 110, tile_bytes=16 * 12 + 24, super_bytes=32, file_type=11, narrow="IQ4_NL", scales={108: 1}),
    Format(12, "Q4_K", 256, 144, tile_bytes=16 * 18, super_bytes=64, file_type=14, narrow="Q5_0", scales={0: 1, 2: 7.5}),
    Format(13, "Q5_K", 256, 176, tile_bytes=16 * 22, super_bytes=64, file_type=16, narrow="Q5_1", scales={0: 1, 2: 15.5}),
    Format(14, "Q6_K", 256, 210, tile_bytes=16 * 26, super_bytes=32, file_type=18, narrow="Q8_0", scales={208: 1}),
    Format(15, "Q8_K", 256, 292),
    Format(16, "IQ2_XXS", 256, 66, tile_bytes=16 * 8, super_bytes=32, scales={0: 1}),
    Format(17, "IQ2_XS", 256, 74, tile_bytes=16 * 9, super_bytes=32, scales={0: 1}),
    Format(18, "IQ3_XXS", 256, 98, tile_bytes=16 * 12, super_bytes=32, scales={0: 1}),
    Format(19, "IQ1_S", 256, 50, tile_bytes=16 * 6, super_bytes=32, scales={0: 1}),
    Format(20, "IQ4_NL", 32, 18, tile_bytes=16 * 18, file_type=25, scales={0: 1}),
    Format(21, "IQ3_S", 256, 110, tile_bytes=16 * 13 + 8, super_bytes=32, scales={0: 1}),
    Format(22, "IQ2_S", 256, 82, tile_bytes=16 * 10, super_bytes=32, scales={0: 1}),
    Format(23, "IQ4_XS", 256, 136, tile_bytes=16 * 17, super_bytes=32, file_type=30, narrow="IQ4_NL", scales={0: 1}),
    Format(24, "I8", 1, 1),
    Format(25, "I16", 1, 2),
    Format(26, "I32", 1, 4),
    Format(27, "I64", 1, 8),
    Format(28, "F64", 1, 8),
    Format(29, "IQ1_M", 256, 56, tile_bytes=16 * 6 + 8, super_bytes=64),
    Format(30, "BF16", 1, 2, tile_bytes=16 * 64, file_type=32),
    Format(34, "TQ1_0", 256, 54, tile_bytes=16 * 6 + 8, super_bytes=32, scales={52: 1}),
    Format(35, "TQ2_0", 256, 66, tile_bytes=16 * 8, super_bytes=32, scales={64: 1}),
    Format(39, "MXFP4", 32, 17, tile_bytes=16 * 17, file_type=38),
    Format(40, "NVFP4", 64, 36, tile_bytes=16 * 18, head_bytes=64),
    Format(41, "Q1_0", 128, 18),
    Format(42, "Q2_0", 64, 18),
    # From here on ik_llama.cpp's own.
    Format(133, "Q6_0", 32, 26, tile_bytes=16 * 26, scales={0: 1}),
    Format(137, "IQ2_K", 256, 76, tile_bytes=16 * 9, super_bytes=64, scales={0: 1}),
    Format(138, "IQ3_K", 256, 110, tile_bytes=16 * 13, super_bytes=96, scales={0: 1}),
    Format(139, "IQ4_K", 256, 144, tile_bytes=16 * 17 + 8, super_bytes=64, scales={0: 1}),
    Format(140, "IQ5_K", 256, 176, tile_bytes=16 * 21 + 8, super_bytes=64, scales={0: 1}),
    Format(141, "IQ6_K", 256, 212, tile_bytes=16 * 26, super_bytes=64, scales={0: 1}),
    Format(144, "IQ4_KS", 256, 136, tile_bytes=16 * 17, head_bytes=16 * 4, row_bytes=4),
    Format(145, "IQ2_KS", 256, 70, tile_bytes=16 * 9, head_bytes=16 * 2, row_bytes=2),
    Format(146, "IQ4_KSS", 256, 128, tile_bytes=16 * 16, head_bytes=16 * 4, row_bytes=4),
    Format(152, "IQ5_KS", 256, 168, tile_bytes=16 * 21, head_bytes=16 * 4, row_bytes=4),
    Format(156, "IQ3_KS", 256, 102, tile_bytes=16 * 13, head_bytes=16 * 2, row_bytes=2),
    Format(157, "IQ2_KL", 256, 86, tile_bytes=16 * 11, head_bytes=16 * 2, row_bytes=2),
    Format(219, "IQ1_S_R4", 32, 6, row_bytes=2),  # of these, four rows lie in a block (numatp/weights/interleaved.py)
    Format(337, "IQ2_K_R4", 256, 76),
    Format(338, "IQ3_K_R4", 256, 110),
    Format(339, "IQ4_K_R4", 256, 144),
    Format(340, "IQ5_K_R4", 256, 176),
    Format(344, "IQ4_KS_R4", 256, 136, row_bytes=4),
    Format(352, "IQ5_KS_R4", 256, 168, row_bytes=4),
)  # ids 4, 5, 31-33 and 36-38 were withdrawn by ggml

TYPES = {row.name: row for row in ROWS}
FORMATS = {row.name: row for row in ROWS if row.tile_bytes}
