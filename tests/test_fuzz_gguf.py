"""Hypothesis against the GGUF reader and what reads its values: whatever the bytes, a sound result or a UserError of one line.

In CI a short run of the same cases every time; by hand NUMATP_FUZZ_CASES=100000 pytest --hypothesis-seed=1 tests/test_fuzz_gguf.py
"""

import itertools
import math
import os
import signal
import struct
import tracemalloc
from collections.abc import Sequence
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from numatp.errors import UserError
from numatp.files.gguf import TENSOR_TYPES, read_gguf
from numatp.files.gguf_header import SCALARS
from numatp.models import llama
from numatp.text.tokenizer import Tokenizer
from numatp.weights.rules import cut
from numatp.weights.splits import split

CASES = int(os.environ.get("NUMATP_FUZZ_CASES", 0))
HANGS = 20  # seconds of work, others' not counted, after which a case counts as hanging
# A dictionary entry takes 13 bytes in a file, and with its objects some 300 in Python; reading goes on by at most 1 MiB at a time.
PER_BYTE, AT_LEAST = 32, 3 << 20
STRING, ARRAY = 8, 9


def cases(usual):
    slow = [HealthCheck.too_slow]
    return settings(deadline=None, database=None, derandomize=not CASES, max_examples=CASES or usual, suppress_health_check=slow)


# Lengths and counts that overflow something, and such as are only a little wrong.
NUMBERS = st.one_of(
    st.sampled_from([0, 1, 2, 3, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**62, 2**63 - 1, 2**63, 2**64 - 8, 2**64 - 1]),
    st.integers(0, 300),
    st.integers(0, 2**64 - 1),
)
NAMES = st.one_of(st.binary(max_size=12), st.sampled_from([b"split.count", b"general.alignment", b"a", b"\xff\n\x1b[1m"]))


class File:
    """A GGUF file while it is being written; `numbers` says where its counts, lengths, kinds and offsets are, and how long."""

    def __init__(self):
        self.data, self.numbers = bytearray(b"GGUF"), []

    def number(self, value, size):
        self.numbers.append((len(self.data), size))
        self.data += value.to_bytes(size, "little")

    def string(self, raw):
        self.number(len(raw), 8)
        self.data += raw

    def value(self, kind, value):
        if kind == STRING:
            self.string(value)
        elif kind == ARRAY:
            inner, items = value
            self.number(inner, 4)
            self.number(len(items), 8)
            for item in items:
                self.value(inner, item)
        else:
            self.data += SCALARS[kind].pack(value)


def scalar(kind):
    code = SCALARS[kind].format[1:]
    if code == "?":
        return st.booleans()
    if code in "fd":
        return st.floats(width=32 if code == "f" else 64)
    bits = 8 * SCALARS[kind].size
    return st.integers(0, 2**bits - 1) if code.isupper() else st.integers(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def value_of(kind, depth=0):
    if kind == STRING:
        return st.binary(max_size=20)
    if kind == ARRAY:
        inner = st.sampled_from([*SCALARS, STRING] + [ARRAY] * (depth < 3))
        return inner.flatmap(lambda kind: st.tuples(st.just(kind), st.lists(value_of(kind, depth + 1), max_size=4)))
    return scalar(kind)


VALUES = st.sampled_from([*SCALARS, STRING, ARRAY, ARRAY]).flatmap(lambda kind: st.tuples(st.just(kind), value_of(kind)))
# Hypothesis also tries the constants of the code, and some keys mean something to the reader.
KEYS = st.text(max_size=12).filter(lambda key: not key.startswith(("split.", "general.")))
ENTRIES = st.dictionaries(KEYS.map(str.encode), VALUES, max_size=6)
TENSORS = st.dictionaries(
    st.text(max_size=12).map(str.encode),
    st.tuples(st.sampled_from(list(TENSOR_TYPES)), st.integers(1, 3), st.lists(st.integers(1, 4), max_size=3), st.integers(0, 2)),
    max_size=5,
)


@st.composite
def sound(draw):
    """A valid file, its entries, and its tensors' places."""
    file, entries, tensors = File(), draw(ENTRIES), draw(TENSORS)
    alignment = draw(st.sampled_from([None, 8, 32, 64]))
    if alignment:
        entries[b"general.alignment"] = 4, alignment
    file.number(draw(st.sampled_from([2, 3])), 4)
    file.number(len(tensors), 8)
    file.number(len(entries), 8)
    for key, (kind, value) in entries.items():
        file.string(key)
        file.number(kind, 4)
        file.value(kind, value)
    end, places = 0, {}
    for name, (kind, blocks, others, gap) in tensors.items():
        row = TENSOR_TYPES[kind]
        dims, num_bytes = [blocks * row.block, *others], (row.row_bytes + blocks * row.block_bytes) * math.prod(others)
        start = (-(-end // (alignment or 32)) + gap) * (alignment or 32)
        file.string(name)
        file.number(len(dims), 4)
        for dim in dims:
            file.number(dim, 8)
        file.number(kind, 4)
        file.number(start, 8)
        places[name.decode()] = start, num_bytes, tuple(reversed(dims))
        end = start + num_bytes
    data_start = -(-len(file.data) // (alignment or 32)) * (alignment or 32)
    file.data += bytes(data_start - len(file.data) + end)
    return file, entries, {name: (data_start + start, *rest) for name, (start, *rest) in places.items()}


def strike(draw, data, numbers):
    """One stroke of bad luck or bad will."""
    place = draw(st.integers(0, max(len(data) - 1, 0)))
    match draw(st.integers(0, 7)):
        case 0 if data:
            data[place] ^= 1 << draw(st.integers(0, 7))
        case 1:
            del data[place:]
        case 2 | 3:
            at, size = draw(st.sampled_from(numbers))
            data[at : at + size] = (draw(NUMBERS) % 256**size).to_bytes(size, "little")
        case 7:  # an offset, a kind or a length that is right elsewhere
            (at, size), (other, wide) = draw(st.sampled_from(numbers)), draw(st.sampled_from(numbers[::-1]))
            data[at : at + size] = (data[other : other + wide] + bytes(8))[:size]
        case 4:  # the same again: names twice, tensors upon each other
            data[place:place] = data[place : place + draw(st.integers(1, 40))]
        case 5:
            del data[place : place + draw(st.integers(1, 16))]
        case 6:
            name = draw(NAMES)
            data[place : place + draw(st.integers(0, 12))] = struct.pack("<Q", len(name)) + name


@st.composite
def damaged(draw):
    """A valid file after one to four strokes."""
    file = draw(sound())[0]
    for _ in range(draw(st.integers(1, 4))):
        strike(draw, file.data, file.numbers)
    return bytes(file.data)


@st.composite
def damaged_parts(draw):
    """A model of three parts, one of which was struck."""
    parts = []
    for part in range(3):
        split = {"split.no": (2, part), "split.count": (2, 3), "split.tensors.count": (5, 3)}
        parts.append(build(split, {f"t{part}": (8,)}))
    hit = draw(st.sampled_from(parts))
    for _ in range(draw(st.integers(0, 2))):
        strike(draw, hit.data, hit.numbers)
    return [bytes(part.data) for part in parts]


@contextmanager
def bounded(num_bytes):
    """Neither a hang nor an allocation that a file of `num_bytes` does not explain."""

    def hang(*_):
        raise AssertionError(f"still busy after {HANGS} s")

    before = signal.signal(signal.SIGPROF, hang)
    signal.setitimer(signal.ITIMER_PROF, HANGS)
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
        assert peak <= AT_LEAST + PER_BYTE * num_bytes, f"{peak} bytes for a file of {num_bytes}"
    finally:
        tracemalloc.stop()
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def one_line(error):
    line = str(error)
    assert line.isprintable() and len(line) < 1000, line


def plain(value):
    """Sequences as lists, NaN as None."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def expected(kind, value):
    if kind == STRING:
        return value.decode(errors="surrogateescape")
    return [expected(value[0], item) for item in value[1]] if kind == ARRAY else plain(value)


def check(file, data):
    """What every GGUFFile promises."""
    assert (file.size, len(file.tensors), len(file.metadata)) == (len(data), *struct.unpack_from("<QQ", data, 8))
    for key in file.metadata:
        plain(file.metadata[key])
    types = {row.name: row for row in TENSOR_TYPES.values()}
    for name, info in file.tensors.items():
        assert info.name == name and info.path == file.path and 1 <= len(info.shape) <= 4 and min(info.shape) > 0
        row, columns = types[info.type], info.shape[-1]
        row_bytes = row.row_bytes + columns // row.block * row.block_bytes
        assert info.num_bytes == math.prod(info.shape[:-1]) * row_bytes and columns % row.block == 0
        assert info.offset > 0 and info.offset + info.num_bytes <= len(data)
    places = sorted((info.offset, info.offset + info.num_bytes) for info in file.tensors.values())
    assert all(one[1] <= other[0] for one, other in itertools.pairwise(places))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz") / "x.gguf"


@cases(150)
@given(case=sound())
def test_sound_files_are_read_exactly(path, case):
    file, entries, places = case
    path.write_bytes(file.data)
    with bounded(len(file.data)):
        read = read_gguf(path)
    check(read, file.data)
    assert {key: plain(value) for key, value in read.metadata.items()} == {key.decode(): expected(*e) for key, e in entries.items()}
    assert {name: (info.offset, info.num_bytes, info.shape) for name, info in read.tensors.items()} == places


@cases(1000)
@given(data=damaged())
def test_damaged_files(path, data):
    path.write_bytes(data)
    with bounded(len(data)):
        try:
            check(read_gguf(path), data)
        except UserError as error:
            one_line(error)


@cases(200)
@given(parts=damaged_parts())
def test_damaged_parts(path, parts):
    paths = [path.with_name(f"m-{part:05}-of-00003.gguf") for part in (1, 2, 3)]
    for name, data in zip(paths, parts, strict=True):
        name.write_bytes(data)
    with bounded(sum(map(len, parts))):
        try:
            file = read_gguf(paths[0])
        except UserError as error:
            one_line(error)
            return
    assert file.size == (sum(map(len, parts)) if file.integer("split.count", 1) > 1 else len(parts[0]))
    sizes = dict(zip(paths, map(len, parts), strict=True))
    assert all(info.offset + info.num_bytes <= sizes[info.path] for info in file.tensors.values())
    assert len(file.tensors) == sum(struct.unpack_from("<Q", part, 8)[0] for part in parts) or file.size == len(parts[0])


@cases(200)
@given(data=st.one_of(st.binary(max_size=200), st.binary(max_size=200).map(lambda tail: b"GGUF\3\0\0\0" + tail)))
def test_any_bytes(path, data):
    path.write_bytes(data)
    with bounded(len(data)):
        try:
            check(read_gguf(path), data)
        except UserError as error:
            one_line(error)


# What a model says of itself: mostly right, so that a wrong value is looked at and not only the first of many.
RIGHT = {
    "llama.embedding_length": 64, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
    "llama.feed_forward_length": 96, "llama.block_count": 1, "llama.context_length": 128, "llama.rope.dimension_count": 16,
    "llama.attention.key_length": 16, "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0,
    "llama.rope.scaling.factor": 2.0,
}  # fmt: skip
SHAPES = {
    "token_embd": (256, 64), "output_norm": (64,), "blk.0.attn_norm": (64,), "blk.0.attn_q": (64, 64), "blk.0.attn_k": (32, 64),
    "blk.0.attn_v": (32, 64), "blk.0.attn_output": (64, 64), "blk.0.ffn_norm": (64,), "blk.0.ffn_gate": (96, 64),
    "blk.0.ffn_up": (96, 64), "blk.0.ffn_down": (64, 96),
}  # fmt: skip
WRONG = st.one_of(
    st.sampled_from([(10, n) for n in (0, 1, 3, 2**31, 2**32, 2**40, 2**63, 2**64 - 1)]),
    st.sampled_from([(11, n) for n in (-1, -(2**63), 7, 64)]),
    st.sampled_from([(12, x) for x in (math.nan, math.inf, -math.inf, 0.0, -1.0, 1e308, 5e-324, 64.0)]),
    VALUES,
)


def build(entries, shapes):
    """A file of F32 tensors."""
    file = File()
    file.number(3, 4)
    file.number(len(shapes), 8)
    file.number(len(entries), 8)
    for key, (kind, value) in entries.items():
        file.string(key.encode())
        file.number(kind, 4)
        file.value(kind, value)
    offset = 0
    for name, shape in shapes.items():
        file.string(f"{name}.weight".encode())
        file.number(len(shape), 4)
        for dim in reversed(shape):
            file.number(dim, 8)
        file.number(0, 4)
        file.number(offset, 8)
        offset += -(-4 * math.prod(shape) // 32) * 32
    file.data += bytes(-len(file.data) % 32 + offset)
    return file


def write(path, entries, shapes):
    path.write_bytes(build(entries, shapes).data)
    return path.stat().st_size


@cases(200)
@given(
    wrong=st.dictionaries(st.sampled_from(list(RIGHT)), st.one_of(st.none(), WRONG), max_size=3),
    shapes=st.dictionaries(st.sampled_from([*SHAPES, "output", "\n"]), st.lists(st.integers(1, 99), min_size=1, max_size=3)),
    absent=st.sets(st.sampled_from(list(SHAPES)), max_size=1),
    ranks=st.integers(1, 5),
)
def test_the_sizes_of_a_model(path, wrong, shapes, absent, ranks):
    right = {key: (12, value) if isinstance(value, float) else (4, value) for key, value in RIGHT.items()}
    entries = {key: entry for key, entry in (right | wrong).items() if entry}
    tensors = {name: shape for name, shape in (SHAPES | shapes).items() if name in shapes or name not in absent}
    num_bytes = write(path, entries, tensors)
    with bounded(num_bytes):
        try:
            file = read_gguf(path)
            spec = llama.read_spec(file)
            sizes = spec.sizes
            assert sizes.heads == sizes.kv_heads * sizes.group
            slices = [cut(file, llama.rules(spec), sizes, split(sizes, rank, ranks))[0] for rank in range(ranks)]
        except UserError as error:
            one_line(error)
            return
    assert spec.context > 0 and len(spec.layers) == 1
    assert math.isfinite(spec.epsilon) and spec.epsilon > 0 and np.isfinite(spec.rope.frequencies).all()
    for pieces in zip(*slices, strict=True):
        assert all(0 <= r.start <= r.stop <= math.prod(p.info.shape) for p in pieces for r in p.rows)


TOKENS = [bytes([byte]) for byte in range(33, 127)] + [b"\xc4\xa0", b"\xc4\x8a", b"ab", b"\xc4\xa0a", b"<s>", b"</s>"]
WORDS = {
    "tokenizer.ggml.model": (STRING, b"gpt2"), "tokenizer.ggml.pre": (STRING, b"smollm"),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, TOKENS)), "tokenizer.ggml.merges": (ARRAY, (STRING, [b"a b", b"\xc4\xa0 a"])),
    "tokenizer.ggml.token_type": (ARRAY, (5, [1] * (len(TOKENS) - 2) + [3, 3])),
    "tokenizer.ggml.bos_token_id": (4, 98), "tokenizer.ggml.eos_token_id": (4, 99), "tokenizer.ggml.add_bos_token": (7, True),
    "tokenizer.chat_template": (STRING, b"{{ messages }}"),
}  # fmt: skip
PIECES = st.one_of(st.binary(max_size=6), st.sampled_from([b"a b", b"b a", b"a", b" ", b"", b"\xff", b"a b c", b"zz zz"]))
LISTS = st.one_of(
    st.lists(PIECES, max_size=8).map(lambda items: (ARRAY, (STRING, items))),
    st.lists(PIECES, max_size=8).map(lambda items: (ARRAY, (STRING, TOKENS + items))),
    st.lists(st.integers(-9, 9), min_size=len(TOKENS), max_size=len(TOKENS)).map(lambda items: (ARRAY, (5, items))),
    st.lists(st.floats(), max_size=100).map(lambda items: (ARRAY, (12, items))),
)


@cases(200)
@given(
    wrong=st.dictionaries(st.sampled_from(list(WORDS)), st.one_of(st.none(), WRONG, LISTS, LISTS), max_size=3),
    text=st.text(max_size=20),
)
def test_the_vocabulary_of_a_model(path, wrong, text):
    entries = {key: entry for key, entry in (WORDS | wrong).items() if entry}
    num_bytes = write(path, entries, {})
    with bounded(num_bytes):
        try:
            tokenizer = Tokenizer.from_gguf(read_gguf(path))
        except UserError as error:
            one_line(error)
            return
        try:
            ids = tokenizer.encode(text)
        except UserError as error:
            one_line(error)
            return
        assert all(0 <= id < tokenizer.vocab_size for id in ids)
        tokenizer.decode(range(tokenizer.vocab_size))
