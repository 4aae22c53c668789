"""SmolLM3: as Llama (prenorm.py), but every fourth layer knows no positions."""

from numatp.files.huggingface import HuggingFace
from numatp.files.layouts import Config
from numatp.files.model_file import ModelFile
from numatp.models.names import CONFIG, FFN, NO_WINDOWS, ONLY, windows
from numatp.models.prenorm import PRENORM_TENSORS, PrenormSpec, prenorm_forward, prenorm_rules, read_prenorm
from numatp.models.spec import read_pattern

PERIOD = 4  # of four layers the last does not rotate; no GGUF file says so


def _rotates(config: Config) -> list[bool]:
    layers = config["num_hidden_layers"]
    flags = config.get("no_rope_layers")
    if flags is None:
        return [(layer + 1) % config["no_rope_layer_interval"] != 0 for layer in range(layers)]
    return [bool(flags[layer]) for layer in range(layers)]


def _pattern(config: Config) -> list[bool] | None:
    flags = _rotates(config)
    return None if flags == [(layer + 1) % PERIOD != 0 for layer in range(len(flags))] else flags


HUGGING_FACE = HuggingFace(
    classes={
        "SmolLM3ForCausalLM": {
            "rms_norm_eps": 1e-6, "rope_theta": 2000000.0, "no_rope_layer_interval": 4, "use_sliding_window": False,
            "sliding_window": None,
        },
    },
    config=CONFIG | windows(lambda config, layer: not _rotates(config)[layer]) | {"rope.pattern": _pattern},
    tensors={**PRENORM_TENSORS, **FFN},
    only=ONLY | {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    tied=True,
    unwritten=NO_WINDOWS | {"rope.pattern": None},
)  # fmt: skip


def read_spec(file: ModelFile) -> PrenormSpec:
    flags = read_pattern(file, "rope.pattern", PERIOD)
    return read_prenorm(file, still=tuple(layer for layer, rotates in enumerate(flags) if not rotates))


rules, forward = prenorm_rules, prenorm_forward
