"""Reading weights in batches: the same memory whatever their size, and an error that names the tensor."""

import ctypes
import io

import numpy as np
import pytest
from support.kernels import KERNEL
from support.models import tiny

from numatp import models
from numatp.errors import UserError
from numatp.machine import pages
from numatp.weights import load as loading
from numatp.weights.rules import cut
from numatp.weights.splits import split


def load(path, rank, ranks, threads=2):
    """(bytes of all weights, calls of the progress function)."""
    file, model = models.open_model(path)
    spec = model.read_spec(file)
    slices, num_bytes = cut(file, model.rules(spec), spec.sizes, split(spec.sizes, rank, ranks))
    arena, told = pages.reserve(num_bytes), []

    def run(calls):
        for thread in range(threads):
            for kernel, record in calls:
                KERNEL(kernel.address)(record.ctypes.data, thread, threads)

    try:
        loading.Weights(slices, arena).load(threads, {0}, run, lambda done, total: told.append((done, total)))
        return bytes((ctypes.c_uint8 * num_bytes).from_address(arena)), told
    finally:
        pages.release(arena, num_bytes)


@pytest.mark.parametrize("rank", [0, 1])
def test_batches_of_any_size_give_the_same_memory(tmp_path, monkeypatch, rank):
    path = tmp_path / "tiny.gguf"
    tiny.write(path, "Q4_K", sizes=tiny.SUPER_SIZES)
    whole, told = load(path, rank, 2)
    assert told[-1] == (told[-1][1],) * 2
    assert np.frombuffer(whole, np.uint8).any()
    for limit in (1, 50_000):
        monkeypatch.setattr(loading, "READ_AT_ONCE", limit)
        again, more = load(path, rank, 2)
        assert again == whole
        assert len(more) > len(told)
        assert more[-1] == told[-1]


def test_a_file_that_ends_early_is_an_error_of_the_first_tensor_that_is_not_there(tmp_path, monkeypatch):
    path, shorter = tmp_path / "tiny.gguf", tmp_path / "shorter.gguf"
    tiny.write(path, "Q8_0")
    file, model = models.open_model(path)
    tensors = sorted((info for info in file.tensors.values() if len(info.shape) > 1), key=lambda info: info.offset)
    lost = tensors[len(tensors) // 2]
    shorter.write_bytes(path.read_bytes()[: lost.offset + lost.num_bytes - 1])
    monkeypatch.setattr(loading, "_open", lambda info: io.FileIO(shorter))  # as if it had been cut after its header was read
    with pytest.raises(UserError, match="cannot be read: the file changed") as error:
        load(path, 0, 1)
    asked = [file.tensors[rule.name] for rule in model.rules(model.read_spec(file))]
    first = next(info for info in asked if info in tensors and info.offset >= lost.offset)
    assert f"tensor '{first.name}'" in str(error.value)
