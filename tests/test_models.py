"""Metadata that would make an architecture compute nonsense or reach outside memory is refused in one line."""

import pytest
import tiny_cohere2
import tiny_qwen3next

from numatp import models
from numatp.errors import UserError
from numatp.models.spec import Attention, Recurrent
from numatp.weights.splits import split


def spec_of(path):
    file, model = models.open_model(path)
    return model.read_spec(file)


def written(tmp_path, tiny, monkeypatch, more=(), **sizes):
    """A file with other metadata than the tiny model has, and no tensors but one."""
    for name, value in sizes.items():
        monkeypatch.setitem(tiny.SIZES, name, value)
    writer = tiny.writer_of(tmp_path / "tiny.gguf")
    for method, value in more:
        getattr(writer, method)(value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


@pytest.mark.parametrize(
    ("tiny", "sizes"),
    [
        (tiny_cohere2, {"head_size": 34, "width": 288}),  # turns more values than a head has
        (tiny_cohere2, {"window": 0}),
        (tiny_qwen3next, {"rotated": 64}),
        (tiny_qwen3next, {"rotated": 7}),
        (tiny_qwen3next, {"key_heads": 3}),
        (tiny_qwen3next, {"key_heads": 0}),
        (tiny_qwen3next, {"linear_head_size": 24}),
        (tiny_qwen3next, {"conv_width": 1}),
    ],
)
def test_impossible_sizes_are_refused(tmp_path, monkeypatch, tiny, sizes):
    with pytest.raises(UserError) as refused:
        spec_of(written(tmp_path, tiny, monkeypatch, **sizes))
    assert "tiny.gguf" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("more", [("add_expert_count", 4), ("add_nextn_predict_layers", 1)])
def test_what_qwen3next_cannot_do_yet_is_refused(tmp_path, monkeypatch, more):
    with pytest.raises(UserError):
        spec_of(written(tmp_path, tiny_qwen3next, monkeypatch, [more]))


def test_kinds_of_layers(tmp_path, monkeypatch):
    window = Attention(tiny_cohere2.SIZES["window"])
    cohere2 = written(tmp_path, tiny_cohere2, monkeypatch)
    assert spec_of(cohere2).layers == (window, window, window, Attention(), window)
    cohere2 = written(tmp_path, tiny_cohere2, monkeypatch, [("add_sliding_window_pattern", 2)])
    assert spec_of(cohere2).layers == (window, Attention(), window, Attention(), window)
    spec = spec_of(written(tmp_path, tiny_qwen3next, monkeypatch))
    assert [isinstance(layer, Recurrent) for layer in spec.layers] == [True, True, True, False, True]
    # Of 5 key heads of 32 values and twice as many value heads: 3 conv inputs of their channels, and their matrices, as float32.
    sizes = [spec.layers[0].state_bytes(split(spec.sizes, rank, 2)) for rank in (0, 1)]
    assert sizes == [4 * (3 * heads * 4 * 32 + heads * 2 * 32 * 32) for heads in (2, 3)]
