"""Which rows and columns of a file's tensors are this rank's.

A model lists its tensors as rules: what each is, and its shape in words of Sizes. A word that the Split cuts is cut in that
dimension, all else is whole.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from math import prod
from typing import Literal

from numatp import quants
from numatp.errors import UserError
from numatp.files.gguf_header import quote
from numatp.files.huggingface import Assembled
from numatp.files.model_file import ModelFile, TensorInfo
from numatp.files.safetensors import FLOATS, WHOLE
from numatp.quants.table import TILE_ROWS, UNIT, Format
from numatp.weights.matrix import Matrix, Vector
from numatp.weights.splits import Sizes, Split

# What --quantize makes of matrices of floats: the type for rows of whole super-blocks of 256, and for others.
QUANTIZED = {"none": None, "q8": ("Q8_0", "Q8_0"), "q4": ("Q4_K", "Q4_0")}

# What converters may store as one tensor, the parts below each other; of stacked matrices, the parts of each.
FUSED = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_up_exps")}

Kind = Literal["matrix", "router", "embedding", "head", "vector", "table"]
MATRICES = ("matrix", "router", "embedding", "head")  # in tiles, for products; the others are floats


@dataclass(frozen=True)
class Rule:
    """A tensor that a model needs, or a part of one.

    A dimension is

        width                  a word of Sizes, or a number
        heads*head_size        a product: cut by heads, each of as many rows as the words behind say
        group*heads*head_size  the same, again and again: of each repetition those of this rank's heads
        a*b + c*d              parts below each other that are cut one by one

    Kinds: a matrix; a router, a matrix that is never quantised on load, because it is small and nothing mends what it gets wrong;
    an embedding, a matrix whose rows are looked up; a head, the matrix that makes logits (it may be the embedding too); a vector;
    a table, which kernels read as floats, row after row or column after column.
    """

    name: str
    kind: Kind
    shape: tuple[str, ...]
    part: tuple[int, int] = (0, 1)  # (i, n): of each thing that the first word counts the i-th of n equal parts
    stack: str = ""  # "experts", "heads": the first word, where it counts whole matrices that lie below each other
    by: Literal["rows", "columns"] = "rows"  # how a table lies in memory
    repetition: int | None = None  # of columns that repeat: the one that this is a matrix of
    layer: int | None = None  # that it is a part of; None: of the model
    below: str = ""  # of a table of whole numbers: the word that counts the things which they are numbers of

    @classmethod
    def vector(cls, name: str, word: str) -> "Rule":
        return cls(name, "vector", (word,))

    @classmethod
    def matrix(cls, name: str, rows: str, columns: str, part: tuple[int, int] = (0, 1)) -> "Rule":
        return cls(name, "matrix", (rows, columns), part)

    @classmethod
    def router(cls, name: str, rows: str, columns: str) -> "Rule":
        return cls(name, "router", (rows, columns))

    @classmethod
    def stacked(cls, name: str, stack: str, rows: str, columns: str) -> "Rule":
        """Matrices (rows, columns), as many as the word `stack` counts."""
        return cls(name, "matrix", (stack, rows, columns), stack=stack)

    @classmethod
    def table(cls, name: str, rows: str, columns: str, by: Literal["rows", "columns"] = "rows") -> "Rule":
        return cls(name, "table", (rows, columns), by=by)

    @classmethod
    def choices(cls, name: str, rows: str, columns: str, below: str) -> "Rule":
        """A table of whole numbers, each of one of the things that the word `below` counts; kernels read them as floats."""
        return cls(name, "table", (rows, columns), below=below)

    @classmethod
    def repeated(cls, name: str, rows: str, columns: str, count: int) -> "tuple[Rule, ...]":
        """A matrix whose columns repeat `count` times: a matrix for each repetition, as a rank's columns are no single range."""
        return tuple(cls(name, "matrix", (rows, columns), repetition=i) for i in range(count))

    def in_words(self, **others: str) -> "Rule":
        """The same with other words for some sizes of its shape: of layers that have sizes of their own."""
        shape = tuple("*".join(others.get(word, word) for word in words.split("*")) for words in self.shape)
        return replace(self, shape=shape)

    @property
    def key(self) -> str:
        """What the model calls the weight."""
        number = self.repetition if self.part[1] == 1 else self.part[0]
        return self.name if number is None else f"{self.name}[{number}]"

    @property
    def in_tiles(self) -> bool:
        return self.kind in MATRICES


@dataclass(frozen=True)
class Slice:
    """What of one tensor this rank loads, and where it goes."""

    rule: Rule
    info: TensorInfo | Assembled
    format: Format  # in memory
    rows: list[range]  # one below the other
    columns: range
    stacked: int  # matrices below each other
    offset: int  # bytes before it in the rank's memory for weights
    cut: bool = False  # other ranks may have other rows
    segment: int | None = None  # of those that this rank has of the matrix's columns, if they lie apart
    below: int = 0  # of whole numbers: what they are less than

    @property
    def name(self) -> str:
        return self.rule.key if self.segment is None else f"{self.rule.key} segment {self.segment}"

    def at(self, arena: int) -> Matrix | Vector:
        """As it lies in memory for weights that begins at `arena`."""
        rows = sum(map(len, self.rows))
        if not self.rule.in_tiles:
            return Vector(self.name, arena + self.offset, rows * len(self.columns))
        return Matrix(
            self.name, self.format, arena + self.offset, rows, len(self.columns), self.stacked, self.columns.start,
            head=self.rule.kind == "head", cut=self.cut,
        )  # fmt: skip

    @cached_property
    def num_bytes(self) -> int:
        return self.at(0).num_bytes

    @property
    def converted(self) -> bool:
        """Whether the rows in the file are not yet in the blocks of the format."""
        return isinstance(self.info, Assembled) or self.info.type != self.format.name


def _extent(words: str, sizes: Sizes, split: Split | None, part: tuple[int, int] = (0, 1)) -> list[range]:
    """The ranges of one dimension: its cut parts, or all of it without a cut."""
    ranges, start = [], 0
    for term in words.split(" + "):
        names = term.split("*")
        lengths = [int(word) if word.isdigit() else sizes[word] for word in names]
        at = next((i for i, word in enumerate(names) if split is not None and word in split), 0)  # of the word that is cut
        length, inner, whole = lengths[at], prod(lengths[at + 1 :]), range(lengths[at])
        own = split.get(names[at], whole) if split is not None else whole
        i, parts = part
        size = inner // parts
        for _ in range(prod(lengths[:at])):
            if parts == 1:
                ranges.append(range(start + own.start * inner, start + own.stop * inner))
            else:
                ranges += [range(begin, begin + size) for begin in (start + (thing * parts + i) * size for thing in own)]
            start += length * inner
    return ranges


class Extents:
    """_extent() of one cut, computed once for each dimension: those of all layers are alike."""

    def __init__(self, sizes: Sizes, split: Split | None):
        self.sizes = sizes
        self._split = split
        self._found: dict[tuple[str, tuple[int, int]], list[range]] = {}

    def of(self, words: str, part: tuple[int, int] = (0, 1)) -> list[range]:
        asked = words, part
        if asked not in self._found:
            self._found[asked] = _extent(words, self.sizes, self._split, part)
        return self._found[asked]

    def shape(self, rule: Rule) -> tuple[int, ...]:
        return tuple(sum(map(len, self.of(words))) for words in rule.shape)


def whole_shape(rule: Rule, sizes: Sizes) -> tuple[int, ...]:
    """What the tensor has in the file."""
    return Extents(sizes, None).shape(rule)


@dataclass(frozen=True)
class Place:
    """Where the file has a tensor: alone, or in one with others above and below it."""

    stored: str  # the tensor that the file has, by GGUF's name
    before: int = 0  # rows (of each stacked matrix), or values of a vector
    whole: int | None = None  # rows of all together


def _places(file: ModelFile, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Place]:
    """By name, for what rules want and the file has. shapes: by name, of all that they want."""
    places = {name: Place(name) for name in shapes if name in file.tensors}
    for stored in file.tensors.keys() - shapes.keys():
        prefix, _, last = stored.rpartition(".")  # "blk.0.attn_qkv" and "weight"
        block, _, fused = prefix.rpartition(".")
        parts = [f"{block}.{part}.{last}" for part in FUSED.get(fused, ())]
        if parts and all(part in shapes and part not in places for part in parts):
            heights = [shapes[part][-2:][0] for part in parts]
            for part, before in zip(parts, accumulate(heights, initial=0), strict=False):
                places[part] = Place(stored, before, sum(heights))
    return places


def _computed_in(info: TensorInfo | Assembled, rule: Rule, quantize: str) -> str:
    """The GGUF type that a tensor becomes in memory."""
    if rule.below and info.type in WHOLE:
        return "F32"
    if not rule.in_tiles or rule.kind == "router" or info.type not in FLOATS:
        return info.type
    note = info.note if isinstance(info, Assembled) else ""
    if (note and quantize == "none") or (rule.kind in ("embedding", "head") and quantize == "q4"):
        quantize = "q8"
    types = QUANTIZED[quantize]
    return (types[0] if info.shape[-1] % 256 == 0 else types[1]) if types else info.type


def cut(
    file: ModelFile, rules: list[Rule], sizes: Sizes, split: Split, quantize: str = "none", segments: Sequence[Split] = (),
    held: Callable[[Rule], bool] = lambda rule: True,
) -> tuple[list[Slice], int]:  # fmt: skip
    """Every tensor's slice, and the bytes of all of them. quantize: one of QUANTIZED.

    segments: of this rank's columns where a matrix is cut along them: a slice for each; without them one for all. held: whether
    this host has anything of a tensor.

    UserError for a tensor that is missing, has another shape or a type that numatp has no format for, or that the model
    does not use.
    """
    whole, own = Extents(sizes, None), Extents(sizes, split)
    parts = [Extents(sizes, segment) for segment in segments]
    shapes = {rule.name: whole.shape(rule) for rule in rules}
    places = _places(file, shapes)
    unused = file.tensors.keys() - {place.stored for place in places.values()}
    if unused:
        called = file.called(min(unused))
        file.fail(f"tensor {quote(called)} is not part of this architecture as numatp knows it; use another model")
    slices, offset = [], 0
    for rule in rules:
        place = places.get(rule.name)
        if place is None:
            file.fail(f"tensor {quote(file.called(rule.name))} is missing; download the model again")
        if not held(rule):
            continue
        info = file.tensors[place.stored]
        of_columns = parts if rule.in_tiles and _is_cut(rule.shape[-1], sizes) else []
        for segment, columns in enumerate(of_columns or [own]):
            piece = _slice(info, place, rule, shapes[rule.name], own, columns, quantize, offset)
            slices.append(replace(piece, segment=segment) if of_columns else piece)
            offset += slices[-1].num_bytes
    return slices, offset


def _is_cut(words: str, sizes: Sizes) -> bool:
    """Whether ranks have parts of a dimension."""
    return any(word in sizes.cuts for word in words.replace(" + ", "*").split("*"))


def _slice(
    info: TensorInfo | Assembled, place: Place, rule: Rule, shape: tuple[int, ...], own: Extents, of_columns: Extents,
    quantize: str, offset: int,
) -> Slice:  # fmt: skip
    """shape: the tensor's by the rule. own: of this rank; of_columns: of a part of it, for the columns of matrices."""
    expected = list(shape)
    axis = max(len(expected) - 2, 0)  # of the rows, or of a vector's values
    expected[axis] = place.whole or expected[axis]
    # Writers may drop leading dimensions of 1, and have matrices below each other as one.
    together = [prod(expected[:-1]), expected[-1]] if rule.stack else expected
    if [size for size in info.shape if size > 1] not in ([size for size in wanted if size > 1] for wanted in (expected, together)):
        raise UserError(f"{info.path}: tensor '{info.name}' has shape {info.shape}, its architecture needs {tuple(expected)}")
    format = quants.format_of(_computed_in(info, rule, quantize), info.name)
    cuts = of_columns.of(rule.shape[-1])
    (columns,) = cuts if rule.repetition is None else cuts[rule.repetition :][:1]
    rows = own.of(rule.shape[-2], rule.part) if len(rule.shape) > 1 else [range(1)]
    stacked = 1
    if len(rule.shape) == 1:
        columns = _moved(columns, place.before)
    elif rule.stack:
        (things,), (each,), height = own.of(rule.shape[0]), rows, expected[1]
        stacked = max(len(things), 1)  # one without rows on a rank that has no heads
        if len(each) == height:
            rows = [range(things.start * height, things.stop * height)]
        else:
            rows = [_moved(each, i * height + place.before) for i in things]
    else:
        rows = [_moved(each, place.before) for each in rows]
    if rule.in_tiles:
        if any(edge % UNIT for edge in (expected[-1], columns.start, columns.stop)):
            raise UserError(f"{info.path}: tensor '{info.name}': its rows cannot be cut at {columns} in {info.type}")
        if any(len(some) % TILE_ROWS for some in rows[:-1]) or (stacked > 1 and sum(map(len, rows)) // stacked % TILE_ROWS):
            raise UserError(f"{info.path}: tensor '{info.name}': its parts have no multiple of {TILE_ROWS} rows")
    return Slice(
        rule, info, format, rows, columns, stacked, offset, len(rule.shape) > 1 and _is_cut(rule.shape[-2], own.sizes),
        below=own.sizes[rule.below] if rule.below else 0,
    )  # fmt: skip


def _moved(some: range, by: int) -> range:
    return range(some.start + by, some.stop + by)


def notes(slices: list[Slice]) -> list[str]:
    """What is quantised on the way, in sentences worth showing."""
    counts: Counter[tuple[str, str]] = Counter()
    for piece in slices:
        if piece.rule.in_tiles and piece.info.type != piece.format.name:
            note = piece.info.note if isinstance(piece.info, Assembled) else ""
            counts[note or piece.info.type, piece.format.name] += 1
    return [f"{count} matrices of {source} are quantized to {kept} on load" for (source, kept), count in counts.items()]
