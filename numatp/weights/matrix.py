"""What of a model's tensors lies in this rank's memory."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from numatp.quants.table import TILE_ROWS, UNIT, Format


@dataclass(frozen=True)
class Matrix:
    """This rank's part of a weight matrix, in tiles of 16 rows at `address`."""

    name: str
    format: Format
    address: int
    rows: int
    columns: int
    stacked: int = 1  # so many matrices of equal height, one below the other
    first_column: int = 0  # of the whole matrix
    head: bool = False  # makes logits
    cut: bool = False  # other ranks may have other rows of it
    segments: tuple["Matrix", ...] = ()  # its columns, where they lie in memory in parts; in the order of Split's segments

    @property
    def tiles(self) -> int:
        return -(-self.rows // TILE_ROWS)

    @property
    def units(self) -> int:
        return self.columns // UNIT

    @property
    def tile_bytes(self) -> int:
        return self.format.bytes_of_tile(self.columns, self.first_column)

    @property
    def num_bytes(self) -> int:
        return self.tiles * self.tile_bytes


def of_segments(name: str, parts: "Sequence[Matrix]") -> Matrix:
    """Parts side by side as one matrix, to be multiplied with part by part."""
    return replace(parts[0], name=name, columns=sum(part.columns for part in parts), segments=tuple(parts))


@dataclass(frozen=True)
class Vector:
    """A whole vector as float32 at `address`."""

    name: str
    address: int
    length: int

    @property
    def num_bytes(self) -> int:
        return (self.length * 4 + 63) // 64 * 64


def neighbours(matrices: Iterable[Matrix]) -> list[list[Matrix]]:
    """Matrices that follow each other in memory, have one format and full tiles, together: one op instead of several."""
    groups: list[list[Matrix]] = []
    for matrix in matrices:
        last = groups[-1][-1] if groups else None
        if (
            last
            and last.format == matrix.format
            and (last.columns, last.first_column) == (matrix.columns, matrix.first_column)
            and last.rows % TILE_ROWS == 0
            and last.address + last.num_bytes == matrix.address
        ):
            groups[-1].append(matrix)
        else:
            groups.append([matrix])
    return groups


def joined(group: Sequence[Matrix]) -> Matrix:
    """Neighbours as one matrix."""
    if len(group) == 1:
        return group[0]
    return replace(group[0], name=" + ".join(matrix.name for matrix in group), rows=sum(matrix.rows for matrix in group))


def side_by_side(vectors: Iterable[Vector]) -> Vector:
    """Vectors that follow each other in memory without gaps, as one."""
    first, *others = vectors
    for vector in others:
        assert first.address + first.length * 4 == vector.address or not vector.length, (first.name, vector.name)
        first = replace(first, name=f"{first.name} + {vector.name}", length=first.length + vector.length)
    return first
