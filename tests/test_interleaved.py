"""GGUF files of ik_llama.cpp with four rows in a block (numatp/weights/interleaved.py); test_kernels.py judges their numbers."""

import numpy as np
import pytest
from support.models import tiny
from support.models.opening import opened, refused

from numatp import quants
from numatp.quants.table import TYPES
from numatp.weights.interleaved import APART


@pytest.mark.parametrize("kind", APART)
def test_any_rows_in_any_order(tmp_path, kind):
    tensors = tiny.write(tmp_path / "a.gguf", kind, sizes=tiny.SUPER_SIZES)
    (info,) = (info for name, info in opened(tmp_path / "a.gguf")[0].tensors.items() if name == "blk.1.ffn_down.weight")
    assert info.type == kind.removesuffix("_R4")
    (piece,) = info.pieces
    row_bytes = TYPES[info.type].bytes_of(512)
    assert piece.cut(np.arange(0), range(512))(slice(None)).shape == (0, row_bytes)
    for rows in (np.arange(256), np.array([7, 2, 3, 90, 89, 255]), np.arange(3, 50)):
        read = piece.cut(rows, range(512))
        assert (quants.unpack(info.type, read(slice(None))) == tensors[info.name][rows]).all()
        assert (quants.unpack(info.type, read(slice(1, 4))) == tensors[info.name][rows][1:4]).all()


def test_rows_that_are_no_four(tmp_path):
    tiny.write(tmp_path / "a.gguf", "IQ4_K_R4", sizes=tiny.SUPER_SIZES)
    raw = (tmp_path / "a.gguf").read_bytes()
    head = b"blk.1.ffn_gate.weight" + (2).to_bytes(4, "little") + (256).to_bytes(8, "little")
    assert raw.count(head + (512).to_bytes(8, "little")) == 1
    raw = raw.replace(head + (512).to_bytes(8, "little"), head + (510).to_bytes(8, "little"))
    (tmp_path / "a.gguf").write_bytes(raw)
    what = "tensor 'blk.1.ffn_gate.weight' has shape (510, 256), which is not whole blocks of IQ4_K_R4; download it again"
    refused(tmp_path / "a.gguf", what)
