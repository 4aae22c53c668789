"""Each quantised layout of Hugging Face folders against its definition, and whole models of it."""

import numpy as np
import pytest
from support.engines import CHUNKS, TOKENS, engine_logits, expected
from support.logits import eight_bits, error
from support.models import folders, tiny
from support.models.quantized_folders import LAYOUTS, write_llama
from support.reference import naive

from numatp import quants
from numatp.errors import UserError
from numatp.files import layouts
from numatp.files.safetensors import read_header
from numatp.quants.table import FORMATS

ROWS, COLUMNS = 48, 384  # three groups of 128, an FP8 block and a half down


def opened(tmp_path, name, change=lambda tensors: None):
    settings, make, kind = LAYOUTS[name]
    tensors, weights = make(np.random.default_rng(0), ROWS, COLUMNS)
    change(tensors)
    folders.write(tmp_path, {}, {f"x.{suffix}": values for suffix, values in tensors.items()})
    parts = {info.name.removeprefix("x."): info for info in read_header(tmp_path / "model.safetensors")[0].values()}

    def fail(fault):
        raise UserError(fault)

    layout = layouts.find(settings["quant_method"])
    layout.check(settings, fail)
    assert layout.is_quantized(parts) and set(parts) <= set(layout.SUFFIXES)
    return layout.open_matrix("x.weight", parts, settings, fail), weights, kind


@pytest.mark.parametrize("name", LAYOUTS)
def test_definitions(tmp_path, name):
    matrix, weights, kind = opened(tmp_path, name)
    assert (matrix.shape, matrix.type, bool(matrix.note)) == ((ROWS, COLUMNS), kind, kind == "F32")
    format, rng, block = quants.kernels_of(kind), np.random.default_rng(1), FORMATS[kind].columns
    # Float16 rounds a minimum, of 16 steps at most, by 2^-11 of it at most; all else is exact, or a product in float32.
    allowed = 16 * 0.015 * 2**-11 if kind == "Q4_1" else np.abs(weights).max() * 2**-22
    for rows in (np.arange(ROWS), np.arange(17, 40), rng.permutation(ROWS)):
        for columns in (range(COLUMNS), range(block, 3 * block), range(3 * block, 384)):
            read = matrix.cut(rows, columns)
            for some in (slice(None), slice(3, 11)):
                got = format.unpack(read(some)) * layouts.factor_of(matrix)
                assert np.abs(got - weights[rows[some], columns.start : columns.stop]).max() <= allowed
    assert matrix.cut(np.arange(0), range(COLUMNS)) is not None


@pytest.mark.parametrize("ranks", [1, 2, 3])
@pytest.mark.parametrize("name", ["awq", "gptq", "gptq in activation order", "fp8", "w4a16 with zeros", "w8a8", "nvfp4"])
def test_models(tmp_path, monkeypatch, name, ranks):
    """A Llama whose layers' matrices are all quantised, against the naive pass with the weights of the definition, or what
    Q8_0 makes of them."""
    monkeypatch.setenv("QUANTIZE", "none")  # of embedding and output
    sizes = tiny.SUPER_SIZES if name == "nvfp4" else tiny.SIZES
    original = folders.llama(tiny.write(tmp_path / "tiny.gguf", sizes=sizes), sizes)
    folder, weights = write_llama(tmp_path / "folder", name, *original)
    if LAYOUTS[name][2] == "F32":
        q8_0 = quants.kernels_of("Q8_0")
        weights |= {tensor: q8_0.unpack(quants.quantize("Q8_0", weights[tensor])) for tensor in weights if "_proj" in tensor}
    tensors = folders.to_gguf_llama(weights, sizes)
    wanted = expected(tensors, sizes=sizes)
    # The same noise in other places: twice what rounding rows to 8 bits does to the naive pass.
    allowed = 2 * error(naive.logits(sizes, tensors, TOKENS, eight_bits)[np.cumsum(CHUNKS) - 1], wanted)
    assert error(engine_logits(folder, tmp_path, ranks), wanted) < allowed < 0.1
