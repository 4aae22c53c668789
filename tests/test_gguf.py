"""The GGUF reader against the gguf package, and against files made to harm it."""

import os
import random
import struct
import subprocess
import sys
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import pytest
from support.engines import engine_logits
from support.models import tiny

from numatp import quants
from numatp.errors import UserError
from numatp.files import gguf as ours
from numatp.files import gguf_header
from numatp.files.gguf import read_gguf
from numatp.quants.mixes import MIXES, file_type_of
from numatp.weights.load import factors_of

U8, I32, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 5, 4, 6, 7, 8, 9, 10


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + items


def tensor(name: str | bytes, dims: list[int], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def whole(entries: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), data: int = 0, version: int = 3) -> bytes:
    """A file with `data` zero bytes behind the header."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries + tensors)
    return head + bytes(-len(head) % 32 + data)


def number(key: str, value: int) -> bytes:
    return entry(key, U32, struct.pack("<I", value))


GOOD = whole(
    (number("n", 7), entry("words", ARRAY, array(STRING, 2, string("a") + string("bc"))), entry("t", STRING, string("x"))),
    (tensor("one", [32, 2], 3), tensor("two", [5], 0, 64)),
    84,
)


def refusal(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_gguf(path)
    line = str(caught.value)
    assert line.startswith(f"{path}: ") and line.isprintable()  # one line, no control characters
    return line.removeprefix(f"{path}: ")


def test_the_real_model_as_the_gguf_package_reads_it(model_path):
    file, reader = read_gguf(model_path), gguf.GGUFReader(model_path)
    assert file.size == os.path.getsize(model_path)
    fields = {key: field for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert list(file.metadata) == list(fields)
    for key, field in fields.items():
        value = file.metadata[key]
        assert (value if isinstance(value, int | float | str) else list(value)) == field.contents(), key
    assert list(file.tensors) == [t.name for t in reader.tensors]
    for info, theirs in zip(file.tensors.values(), reader.tensors, strict=True):
        shape = tuple(int(n) for n in reversed(theirs.shape))
        expected = (theirs.tensor_type.name, shape, int(theirs.data_offset), int(theirs.n_bytes))
        assert (info.type, info.shape, info.offset, info.num_bytes) == expected, info.name


@pytest.mark.parametrize("chunk", [1 << 20, 7])  # bytes read at a time: all at once, and a little at every step
def test_a_file_of_every_kind(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(gguf_header, "CHUNK", chunk)
    path = tmp_path / "kinds.gguf"
    writer = gguf.GGUFWriter(path, "test")
    writer.add_custom_alignment(64)
    numbers = {
        "uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1, "int32": -(2**31),
        "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 0.1, "bool": True, "string": "héllo \x00 日本",
    }  # fmt: skip
    for kind, value in numbers.items():
        getattr(writer, f"add_{kind}")(kind, value)
    lists = {
        "ints": [1, -2, 3], "floats": [0.5, -1.5], "bools": [True, False, True], "words": ["", "a", "Ġé", "x" * 50],
        "nested": [[1, 2], [3]], "nested words": [["a", ""], ["b"]],
    }  # fmt: skip
    for key, value in lists.items():
        writer.add_array(key, value)
    rng = np.random.default_rng(0)
    for kind in ("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q6_K", "TQ2_0", "MXFP4"):
        q = gguf.GGMLQuantizationType[kind]
        num_bytes = gguf.quant_shape_to_byte_shape((3, 5, 512), q)
        writer.add_tensor(f"t.{kind}", rng.integers(0, 255, num_bytes, np.uint8), raw_dtype=q)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    file = read_gguf(path)
    assert {key: file.metadata[key] for key in numbers} == numbers
    for key, value in lists.items():
        found = file.metadata[key]
        assert [list(x) if key.startswith("nested") else x for x in found] == value
    assert type(file.metadata["bools"][0]) is bool
    for theirs in gguf.GGUFReader(path).tensors:
        info = file.tensors[theirs.name]
        assert (info.shape, info.offset, info.num_bytes) == ((3, 5, 512), theirs.data_offset, theirs.n_bytes)
        assert info.offset % 64 == 0
        assert path.read_bytes()[info.offset :][: info.num_bytes] == theirs.data.tobytes()


def test_the_table_of_types_is_that_of_the_gguf_package():
    for kind, (per_block, num_bytes) in gguf.GGML_QUANT_SIZES.items():
        row = ours.TENSOR_TYPES[kind.value]
        assert (row.name, row.block, row.block_bytes) == (kind.name, per_block, num_bytes)


def test_file_types_are_those_of_the_gguf_package():
    """It names them after llama.cpp's mixes, of which numatp writes the smallest of a format by that format's name."""
    theirs = gguf.LlamaFileType.__members__
    special = {"F32": "ALL_F32", "MXFP4": "MOSTLY_MXFP4_MOE"}
    for name in (*quants.writable(), *MIXES):
        called = [special.get(name, f"MOSTLY_{name}"), f"MOSTLY_{name}_S"]
        assert file_type_of(name) == next(theirs[one] for one in called if one in theirs), name


def test_version_2_and_files_without_tensors(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(whole((number("n", 7),), version=2))
    assert read_gguf(path).integer("n") == 7 and not read_gguf(path).tensors


def test_tokens_keep_bytes_that_are_not_utf8(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(whole((entry("words", ARRAY, array(STRING, 2, string(b"\xff\xc3") + string("é"))),)))
    words = read_gguf(path).strings("words")
    assert [word.encode(errors="surrogateescape") for word in words] == [b"\xff\xc3", "é".encode()]


def test_getters(tmp_path):
    path = tmp_path / "x.gguf"
    pairs = (
        number("n", 7), entry("f", F32, struct.pack("<f", 1.5)), entry("nan", F32, struct.pack("<f", float("nan"))),
        entry("t", STRING, string("x\ny")), entry("bad", STRING, string(b"\xff")), entry("yes", BOOL, b"\1"),
        entry("words", ARRAY, array(STRING, 1, string("w"))), entry("list", ARRAY, array(I32, 2, struct.pack("<2i", 3, -4))),
    )  # fmt: skip
    path.write_bytes(whole(pairs))
    file = read_gguf(path)
    assert (file.integer("n"), file.number("n"), file.number("f"), file.text("t"), file.flag("yes")) == (7, 7.0, 1.5, "x\ny", True)
    assert (list(file.strings("words")), list(file.integers("list"))) == (["w"], [3, -4])
    assert (file.integer("-", 0), file.number("-", 0.5), file.text("-", ""), file.flag("-", False)) == (0, 0.5, "", False)
    assert (file.strings("-", []), file.integers("-", [1])) == ([], [1])
    refused = {
        ("integer", "-"): "the metadata lacks '-' (a whole number)",
        ("integer", "yes"): "metadata 'yes' should be a whole number and is True",
        ("integer", "f"): "metadata 'f' should be a whole number and is 1.5",
        ("number", "nan"): "metadata 'nan' should be a finite number and is nan",
        ("number", "yes"): "metadata 'yes' should be a finite number and is True",
        ("text", "n"): "metadata 'n' should be a text and is 7",
        ("text", "bad"): "metadata 'bad' should be a text in UTF-8 and is '\\udcff'",
        ("flag", "n"): "metadata 'n' should be true or false and is 7",
        ("strings", "t"): "metadata 't' should be a list of texts and is 'x\\ny'",
        ("strings", "list"): "metadata 'list' should be a list of texts and is an array of 2 i32",
        ("integers", "words"): "metadata 'words' should be a list of whole numbers and is an array of 1 string",
    }
    for (getter, key), line in refused.items():
        with pytest.raises(UserError) as caught:
            getattr(file, getter)(key)
        assert str(caught.value).startswith(f"{path}: {line}; convert the model again")


HUGE = (2**63 - 1, 2**63, 2**64 - 1, 2**60)
AGAIN = "; download it again"
BROKEN = {
    "empty": (b"", "the file is empty" + AGAIN),
    "text": (b"hello world, not a model", "not a GGUF file; give a model in GGUF format"),
    "three bytes": (b"GGU", "not a GGUF file; give a model in GGUF format"),
    "magic alone": (b"GGUF", "truncated or damaged: the version needs bytes up to 8, the file has 4" + AGAIN),
    "counts cut": (b"GGUF\3\0\0\0\1", "truncated or damaged: the tensor count needs bytes up to 16, the file has 9" + AGAIN),
    "version 1": (whole(version=1), "GGUF version 1, and numatp reads 2 and 3; convert the model again with a current converter"),
    "version 0": (whole(version=0), "GGUF version 0, and numatp reads 2 and 3; convert the model again with a current converter"),
    "version 9": (whole(version=9), "GGUF version 9, and numatp reads 2 and 3; convert the model again with a current converter"),
    "big-endian": (
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "a big-endian GGUF file; get the little-endian one, or convert it"),
    "too many": (
        b"GGUF" + struct.pack("<IQQ", 3, 2**63, 5), f"damaged: it claims {2**63} tensors and 5 metadata entries" + AGAIN),
    "fewer entries": (
        b"GGUF" + struct.pack("<IQQ", 3, 0, 5),
        "truncated or damaged: the name of metadata entry 0 needs bytes up to 32, the file has 24" + AGAIN),
    "key not UTF-8": (
        whole((entry(b"a\xff\n", U8, b"1"),)), "damaged: the name of metadata entry 0, b'a\\xff\\n', is not UTF-8" + AGAIN),
    "key twice": (whole((number("n", 1), number("n", 1))), "damaged: metadata 'n' is there twice" + AGAIN),
    "unknown kind": (whole((entry("k\x1b[1m", 13, b"1"),)), "damaged: metadata 'k\\x1b[1m' is of unknown kind 13" + AGAIN),
    "unknown item kind": (
        whole((entry("k", ARRAY, array(99, 1, b"")),)), "damaged: metadata 'k' is an array of unknown kind 99" + AGAIN),
    "nested too deep": (
        whole((entry("k", ARRAY, array(ARRAY, 1, b"") * 900),)), "damaged: metadata 'k' nests arrays more than 4 deep" + AGAIN),
    "string in an array": (
        whole((entry("k", ARRAY, array(STRING, 2, string("a") + struct.pack("<Q", 2**64 - 1))),)),
        f"truncated or damaged: metadata 'k' needs bytes up to {2**64 - 1 + 66}, the file has 96" + AGAIN),
    "string in the middle": (
        whole((entry("k", ARRAY, array(STRING, 2, struct.pack("<QQ", 2**63, 0))),)),
        f"truncated or damaged: metadata 'k' needs bytes up to {2**63 + 65}, the file has 96" + AGAIN),
    "split of a wrong kind": (
        whole((entry("split.count", STRING, string("3")),)),
        "metadata 'split.count' should be a whole number and is '3'; convert the model again"),
    "alignment 0": (whole((number("general.alignment", 0),)), "damaged: alignment 0 is not a power of two" + AGAIN),
    "alignment 48": (whole((number("general.alignment", 48),)), "damaged: alignment 48 is not a power of two" + AGAIN),
    "alignment below 0": (
        whole((entry("general.alignment", I32, struct.pack("<i", -32)),)), "damaged: alignment -32 is not a power of two" + AGAIN),
    "name not UTF-8": (
        whole((), (tensor(b"\xfe", [1]),), 4), "damaged: the name of tensor 0, b'\\xfe', is not UTF-8" + AGAIN),
    "tensor twice": (
        whole((), (tensor("w", [8]), tensor("w", [8], 0, 32)), 64), "damaged: tensor 'w' is there twice" + AGAIN),
    "no dimensions": (whole((), (tensor("w", []),), 32), "damaged: tensor 'w' has 0 dimensions, not 1 to 4" + AGAIN),
    "many dimensions": (
        whole((), (string("w") + struct.pack("<I", 2**32 - 1),), 999),
        f"damaged: tensor 'w' has {2**32 - 1} dimensions, not 1 to 4" + AGAIN),
    "dimension 0": (
        whole((), (tensor("w", [32, 0]),), 32), "damaged: tensor 'w' has dimensions [32, 0], not whole F32 blocks of 1" + AGAIN),
    "half a block": (
        whole((), (tensor("w", [48, 2], 3),), 99),
        "damaged: tensor 'w' has dimensions [48, 2], not whole Q4_1 blocks of 32" + AGAIN),
    "withdrawn type": (
        whole((), (tensor("w", [32], 31),), 32),
        "tensor 'w' has type id 31, which numatp does not know; use a file in another quantisation"),
    "type of the future": (
        whole((), (tensor("w", [32], 2**32 - 1),), 32),
        f"tensor 'w' has type id {2**32 - 1}, which numatp does not know; use a file in another quantisation"),
    "ik_llama.cpp's type": (
        whole((), (tensor("w", [256], 155),), 32),
        "tensor 'w' is IQ4_KT (type id 155), which ik_llama.cpp alone knows; use a file for llama.cpp"),
    "ik_llama.cpp's rows": (
        whole((), (tensor("w", [256], 399),), 32),
        "tensor 'w' is of several rows at once (type id 399), which ik_llama.cpp alone knows; use a file for llama.cpp"),
    "misaligned": (
        whole((), (tensor("w", [4], 0, 4),), 32), "damaged: tensor 'w' starts at byte 68, not at a multiple of 32" + AGAIN),
    "overlap": (
        whole((), (tensor("b", [8], 0, 32), tensor("a", [16])), 64), "damaged: tensors 'a' and 'b' overlap" + AGAIN),
    "same place": (
        whole((), (tensor("a", [8]), tensor("b", [8])), 64), "damaged: tensors 'a' and 'b' overlap" + AGAIN),
    "data cut": (
        whole((), (tensor("w", [8, 4]),), 127), "truncated or damaged: tensor 'w' needs bytes up to 224, the file has 223" + AGAIN),
    "far away": (
        whole((), (tensor("w", [8], 0, 2**63),), 32),
        f"truncated or damaged: tensor 'w' needs bytes up to {2**63 + 96}, the file has 96" + AGAIN),
    "size over 64 bits": (
        whole((), (tensor("w", [2**62, 2**62, 2**62]),), 32),
        f"truncated or damaged: tensor 'w' needs bytes up to {2**188 + 96}, the file has 128" + AGAIN),
    "long name": (
        whole((), (tensor("w" * 500, [], 0),)), "damaged: tensor '" + "w" * 76 + "... has 0 dimensions, not 1 to 4" + AGAIN),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files(tmp_path, name):
    content, line = BROKEN[name]
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    assert refusal(path) == line


def test_cut_anywhere(tmp_path):
    path = tmp_path / "cut.gguf"
    path.write_bytes(GOOD)
    assert [info.num_bytes for info in read_gguf(path).tensors.values()] == [40, 20]
    for length in range(4, len(GOOD)):
        path.write_bytes(GOOD[:length])
        assert refusal(path).startswith("truncated or damaged: "), length


def part(number: int, parts: int, entries: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), data: int = 0) -> bytes:
    """The number-th file of a split model, counted from 1."""
    says = {"no": number - 1, "count": parts, "tensors.count": 3}
    return whole(tuple(entry(f"split.{key}", 2, struct.pack("<H", value)) for key, value in says.items()) + entries, tensors, data)


PARTS = (
    part(1, 3, (number("n", 7),), (tensor("a", [8]),), 32),
    part(2, 3, (), (tensor("b", [8]), tensor("c", [8, 2], 0, 32)), 96),
    part(3, 3),
)


@pytest.fixture
def split_model(tmp_path):
    paths = [tmp_path / f"big-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for path, content in zip(paths, PARTS, strict=True):
        path.write_bytes(content)
    return paths


def test_a_split_model_is_read_as_one(split_model):
    file = read_gguf(split_model[0])
    assert file.integer("n") == 7 and file.path == split_model[0] and file.size == sum(map(len, PARTS))
    found = {name: (info.path, info.offset + info.num_bytes) for name, info in file.tensors.items()}
    ends = {"a": (split_model[0], len(PARTS[0])), "b": (split_model[1], len(PARTS[1]) - 64), "c": (split_model[1], len(PARTS[1]))}
    assert found == ends


def test_a_split_model_by_the_gguf_package(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    arrays = {f"t{index}": np.full((2, 32), index, np.float32) for index in range(5)}
    for name, data in arrays.items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(tmp_path / "m-00001-of-00003.gguf")
    assert file.text("general.architecture") == "llama"
    for name, info in file.tensors.items():
        assert info.path.read_bytes()[info.offset :][: info.num_bytes] == arrays.pop(name).tobytes()
    assert not arrays


def test_a_split_model_computes_as_the_whole_one(tmp_path, monkeypatch):
    tiny.write(tmp_path / "tiny.gguf", "Q8_0")
    monkeypatch.setattr(tiny.gguf, "GGUFWriter", partial(gguf.GGUFWriter, split_max_tensors=7))
    tiny.write(tmp_path / "tiny.gguf", "Q8_0")
    parts = sorted(tmp_path.glob("tiny-*.gguf"))
    assert len(parts) == 3
    whole_logits = engine_logits(tmp_path / "tiny.gguf", tmp_path, ranks=1)
    assert np.array_equal(engine_logits(parts[0], tmp_path, ranks=1), whole_logits)


BROKEN_PARTS = {  # index and content (None: absent) of the broken part, index and line of the part that is complained about
    "missing": (1, None, 0, "its part 'big-00002-of-00003.gguf' is missing; download it into the same folder"),
    "other order": (1, PARTS[2], 1, "says that it is part 3 of 3, not 2 of 3; download it again"),
    "other count": (2, part(3, 4), 2, "says that it is part 3 of 4, not 3 of 3; download it again"),
    "not a part": (2, GOOD, 2, "says that it is part 1 of 1, not 3 of 3; download it again"),
    "same tensor": (
        2, part(3, 3, (), (tensor("a", [8]),), 32), 2, "tensor 'a' is in another part too; download all parts again"),
    "another tensor": (
        2, part(3, 3, (), (tensor("d", [8]),), 32), 0, "its parts have 4 tensors instead of 3; download them again"),
    "empty": (1, b"", 1, "the file is empty" + AGAIN),
    "cut": (1, PARTS[1][:-1], 1, f"truncated or damaged: tensor 'c' needs bytes up to {len(PARTS[1])}, the file has "
            f"{len(PARTS[1]) - 1}" + AGAIN),
    "no such part": (0, part(4, 3), 0, "damaged: it says that it is part 4 of 3" + AGAIN),
    "another name": (0, part(1, 4), 0, "is part 1 of a model split into 4; rename it to NAME-00001-of-00004.gguf"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN_PARTS)
def test_broken_split_models(split_model, name):
    index, content, named, line = BROKEN_PARTS[name]
    split_model[index].unlink()
    if content is not None:
        split_model[index].write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_gguf(split_model[0])
    assert str(caught.value) == f"{split_model[named]}: {line}"


def test_a_later_part_and_a_part_under_another_name(split_model, tmp_path):
    assert refusal(split_model[1]) == "is part 2 of a split model; give the first part, 'big-00001-of-00003.gguf'"
    renamed = split_model[0].rename(tmp_path / "mine.gguf")
    assert refusal(renamed) == "is part 1 of a model split into 3; rename it to NAME-00001-of-00003.gguf"


def test_things_that_are_not_files(tmp_path, monkeypatch):
    assert refusal(tmp_path) == "is a folder; give the path of a GGUF file"
    assert refusal(tmp_path / "absent") == "cannot open: No such file or directory; check the path and its permissions"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "is not a regular file; give the path of a GGUF file"
    with pytest.raises(UserError, match="cannot open: embedded null byte"):
        read_gguf("a\0b")
    with pytest.raises(UserError, match=r"^'line\\nbreak': cannot open"):
        read_gguf("line\nbreak")

    def denied(*arguments):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)  # root may open everything
    assert refusal(tmp_path / "x") == "cannot open: Permission denied; check the path and its permissions"


def test_a_file_that_shrinks_or_fails_while_read(tmp_path, monkeypatch):
    path = tmp_path / "x.gguf"
    path.write_bytes(GOOD)

    monkeypatch.setattr(os, "pread", lambda fd, count, offset: GOOD[: 50 - offset] if offset < 50 else b"")
    assert refusal(path) == "truncated or damaged: the name of metadata entry 1 needs bytes up to 54, the file has 50" + AGAIN

    def failing(*arguments):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "pread", failing)
    assert refusal(path) == "cannot read: Input/output error; check the disk, or copy the file again"


CHILD = """
import resource, sys
from numatp import quants
from numatp.errors import UserError
from numatp.files.gguf import read_gguf
from numatp.quants.mixes import MIXES, file_type_of
from numatp.weights.load import factors_of
resource.setrlimit(resource.RLIMIT_AS, (150 << 20, 150 << 20))
for path in sys.argv[1:]:
    try:
        read_gguf(path)
    except UserError as error:
        print(error)
"""


def test_huge_lengths_cost_neither_memory_nor_time(tmp_path):
    """In a child with little memory: a length is believed only as far as the file goes."""
    bodies = []
    for length in HUGE:
        q = struct.pack("<Q", length)
        bodies += [
            b"GGUF" + struct.pack("<IQ", 3, 0) + q,
            b"GGUF\3\0\0\0" + q + bytes(8),
            whole((q,)),
            whole((entry("k", STRING, q),)),
            whole((), (q,)),
            *(whole((entry("k", ARRAY, struct.pack("<I", kind) + q),)) for kind in range(13)),
        ]
    # With a terabyte behind them (of holes), the same lengths would be inside the file.
    sparse = [
        whole((entry("k", STRING, struct.pack("<Q", 2**39)),)),
        *(whole((entry("k", ARRAY, struct.pack("<IQ", kind, 2**35)),)) for kind in (U8, STRING, ARRAY, U64)),
    ]
    paths = [tmp_path / f"{index}.gguf" for index in range(len(bodies) + len(sparse))]
    for path, body in zip(paths, bodies + sparse, strict=True):
        path.write_bytes(body)
    for path in paths[len(bodies) :]:
        os.truncate(path, 2**40)
    run = subprocess.run([sys.executable, "-c", CHILD, *map(str, paths)], capture_output=True, text=True, timeout=60, check=False)
    assert run.stderr == ""
    lines = run.stdout.splitlines()
    assert len(lines) == len(paths)
    assert all(line.startswith(f"{path}: ") for line, path in zip(lines, paths, strict=True))
    assert all("header larger than 256 MiB" in line for line in lines[len(bodies) :])


def test_random_damage(tmp_path):
    """Whatever the bytes: a header, or a UserError."""
    rng, path = random.Random(1), tmp_path / "mutant.gguf"
    outcomes = {True: 0, False: 0}
    for _ in range(2000):
        mutant = bytearray(GOOD)
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(mutant))
            match rng.randrange(4):
                case 0:
                    mutant[place] = rng.randrange(256)
                case 1:
                    mutant[place : place + 8] = struct.pack("<Q", rng.choice([*HUGE, rng.randrange(100), 2 ** rng.randrange(64)]))
                case 2:
                    del mutant[place : place + rng.randint(1, 16)]
                case 3:
                    mutant[place:place] = rng.randbytes(rng.randint(1, 16))
        path.write_bytes(mutant)
        try:
            file = read_gguf(path)
            for key in file.metadata:
                assert file.metadata[key] is not None
            assert all(info.offset + info.num_bytes <= len(mutant) for info in file.tensors.values())
            outcomes[True] += 1
        except UserError as error:
            assert str(error).isprintable()
            outcomes[False] += 1
    assert min(outcomes.values()) > 100  # both ways were tried


@pytest.mark.parametrize(("count", "type", "fault"), [(4, "F32", ""), (1, "F32", ""), (3, "F32", "(3,)"), (4, "F16", "is F16")])
def test_factors_of_experts(tmp_path, count, type, fault):
    """NVFP4 files have one for each expert, or one in all."""
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up_exps.weight", np.zeros((4, 32, 36), np.uint8), raw_dtype=gguf.GGMLQuantizationType.NVFP4)
    writer.add_tensor("blk.0.ffn_up_exps.scale", np.arange(1, count + 1).astype({"F32": np.float32, "F16": np.float16}[type]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    if fault:
        with pytest.raises(UserError, match=r"ffn_up_exps.scale' is .* for each expert; convert") as refused:
            read_gguf(path)
        assert fault in str(refused.value)
        return
    file = read_gguf(path)
    assert list(file.tensors) == ["blk.0.ffn_up_exps.weight"]
    factors = factors_of(file.tensors["blk.0.ffn_up_exps.weight"], [range(16, 48), range(112, 128)])
    assert factors.tolist() == ([1] * 16 + [2] * 16 + [4] * 16 if count == 4 else [1] * 48)
