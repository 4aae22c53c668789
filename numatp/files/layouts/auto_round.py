"""AutoRound (https://arxiv.org/abs/2309.05516): GPTQ's tensors, or AWQ's; `packing_format` of the settings says whose."""

from numatp.files.layouts import Config, Fail, Layout, Parts, awq, expect, gptq

SUFFIXES = gptq.SUFFIXES
METHODS = {"auto_round:auto_gptq": gptq, "auto_round:auto_awq": awq}


def is_quantized(parts: Parts) -> bool:
    return "qweight" in parts


def check(settings: Config, fail: Fail) -> None:
    expect(fail, "data_type", settings.get("data_type", "int"), ("int",))
    expect(fail, "packing_format", _packing(settings), tuple(METHODS))
    # Layers with bits of their own; those of 16 and more stay floats, as their tensors say.
    others = settings.get("extra_config") or {}
    for layer, own in others.items() if isinstance(others, dict) else [("", others)]:
        for key in ("bits", "group_size", "sym"):
            value = own.get(key, settings.get(key)) if isinstance(own, dict) else own
            if value != settings.get(key) and not (isinstance(own, dict) and own.get("bits", 0) in (16, 32)):
                fail(f"its quantization has {key} {value} for {layer}, and {settings.get(key)} for others; use another model")
    METHODS[_packing(settings)].check(settings, fail)


def open_matrix(name: str, parts: Parts, settings: Config, fail: Fail) -> Layout:
    layout: Layout = METHODS[_packing(settings)].open_matrix(name, parts, settings, fail)
    return layout


def _packing(settings: Config) -> str:
    return str(settings.get("packing_format", "auto_round:auto_gptq"))
