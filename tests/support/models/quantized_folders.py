"""Matrices as AWQ, GPTQ, FP8 and compressed-tensors store them, written down from their definitions one number at a time."""

import numpy as np
from support.models import folders


def words(codes, bits, order=None):
    """(..., columns) unsigned codes to int32 words, the first code in the lowest bits; order: which code each place holds."""
    per_word = 32 // bits
    grouped = codes.astype(np.uint32).reshape(*codes.shape[:-1], -1, per_word)
    packed = np.zeros(grouped.shape[:-1], np.uint32)
    for place, code in enumerate(order or range(per_word)):
        packed |= grouped[..., code] << np.uint32(place * bits)
    return packed.view(np.int32)


def scales_of(rng, rows, groups, dtype=np.float16):
    return (rng.uniform(0.5, 1.5, (rows, groups)) * 0.01).astype(np.float32).astype(dtype)


def spread(per_group, group, columns):
    return per_group.repeat(group, axis=1)[:, :columns]


def awq(rng, rows, columns, group=32):
    """(tensors by suffix, float64 weights)."""
    q, z = rng.integers(0, 16, (rows, columns)), rng.integers(0, 16, (rows, columns // group))
    s = scales_of(rng, rows, columns // group)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    tensors = {"qweight": words(q.T, 4, order), "qzeros": words(z.T, 4, order), "scales": np.ascontiguousarray(s.T)}
    return tensors, (q - spread(z, group, columns)) * spread(s.astype(np.float64), group, columns)


def gptq(rng, rows, columns, group=32, bits=4, sym=True, ordered=False, second=False):
    group = columns if group == -1 else group
    groups = -(-columns // group)
    q, s = rng.integers(0, 1 << bits, (rows, columns)), scales_of(rng, rows, groups)
    z = np.full((rows, groups), 1 << bits - 1) if sym else rng.integers(1, 1 << bits, (rows, groups))
    places = np.arange(columns) // group
    if ordered:
        places = rng.permutation(places)
    stored = z if second else z - 1
    packed = np.ascontiguousarray(words(q, bits).T)  # down the columns
    tensors = {"qweight": packed, "qzeros": words(stored.T, bits), "scales": np.ascontiguousarray(s.T),
               "g_idx": places.astype(np.int32)}  # fmt: skip
    return tensors, (q - z[:, places]) * s.astype(np.float64)[:, places]


def e4m3(code):
    """float of one byte, by the format's definition."""
    sign, exponent, mantissa = -1 if code & 128 else 1, code >> 3 & 15, code & 7
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def fp8(rng, rows, columns, block=(128, 128), scale_name="weight_scale_inv"):
    """block None: one scale in all, a number without dimensions."""
    codes = rng.integers(0, 256, (rows, columns)).astype(np.uint8)
    codes[codes & 127 > 80] ^= 32  # not too many of the largest
    codes[codes & 127 == 127] = 0
    whole = block is None
    block = block or (rows, columns)
    scale = scales_of(rng, -(-rows // block[0]), -(-columns // block[1]), np.float32)
    values = np.array([e4m3(code) for code in range(256)])[codes]
    tensors = {"weight": codes, scale_name: scale.reshape(()) if whole else scale}
    return tensors, values * scale.repeat(block[0], 0)[:rows].repeat(block[1], 1)[:, :columns]


def packed(rng, rows, columns, group=32, bits=4, sym=True):
    groups = columns // group
    q, s = rng.integers(0, 1 << bits, (rows, columns)), scales_of(rng, rows, groups)
    z = np.full((rows, groups), 1 << bits - 1) if sym else rng.integers(0, 1 << bits, (rows, groups))
    tensors = {"weight_packed": words(q, bits), "weight_scale": s, "weight_shape": np.array([rows, columns])}
    if not sym:
        filled = np.zeros((-(-rows // 8) * 8, groups), np.int64)
        filled[:rows] = z
        tensors["weight_zero_point"] = np.ascontiguousarray(words(filled.T, bits).T)
    return tensors, (q - spread(z, group, columns)) * spread(s.astype(np.float64), group, columns)


def int8(rng, rows, columns):
    q, s = rng.integers(-127, 128, (rows, columns)), scales_of(rng, rows, 1)
    return {"weight": q.astype(np.int8), "weight_scale": s}, q * s.astype(np.float64)


def mxfp4(rng, rows, columns):
    """Of 3 experts, whose rows lie below each other."""
    q, e = rng.integers(0, 16, (rows, columns)).astype(np.uint8), rng.integers(117, 123, (rows, columns // 32)).astype(np.uint8)
    pairs = q.reshape(3, rows // 3, columns // 32, 16, 2)
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])  # e2m1
    values = np.where(q & 8, -1, 1) * magnitudes[q & 7] * spread(2.0 ** (e.astype(np.float64) - 127), 32, columns)
    return {"blocks": pairs[..., 0] | pairs[..., 1] << 4, "scales": e.reshape(3, rows // 3, -1)}, values


E2M1 = np.array([sign * magnitude for sign in (1, -1) for magnitude in (0, 0.5, 1, 1.5, 2, 3, 4, 6)])


def float_pairs(rng, rows, columns):
    """(two floats of 4 bits per byte, their values)."""
    q = rng.integers(0, 16, (rows, columns)).astype(np.uint8)
    return q[:, ::2] | q[:, 1::2] << 4, E2M1[q]


def powers_of_two(rng, rows, columns):
    """(bytes, values)."""
    e = rng.integers(117, 123, (rows, columns)).astype(np.uint8)
    return e, 2.0 ** (e.astype(np.float64) - 127)


def mxfp4_pairs(rng, rows, columns, weight, scale):
    """weight, scale: what the tensors are called, and their types."""
    pairs, values = float_pairs(rng, rows, columns)
    e, powers = powers_of_two(rng, rows, columns // 32)
    tensors = {name: values.view([(kind, np.uint8)]) for (name, kind), values in ((weight, pairs), (scale, e))}
    return tensors, values * spread(powers, 32, columns)


def nvfp4(rng, rows, columns, weight="weight", factor="weight_scale_2", inverse=False):
    """weight, factor: what the tensors are called; inverse: of the factor."""
    pairs, values = float_pairs(rng, rows, columns)
    d = rng.integers(40, 80, (rows, columns // 16)).astype(np.uint8)
    scales, number = np.array([e4m3(code) for code in range(128)])[d], np.float32(0.0137)
    tensors = {weight: pairs.view([("uint8", np.uint8)]), "weight_scale": d, "input_scale": np.float32(1).reshape(())}
    tensors[factor] = np.float32(1 / number if inverse else number).reshape(1 if inverse else ())
    return tensors, values * spread(scales, 16, columns) * (1 / np.float64(tensors[factor]) if inverse else number)


def fp8_with_powers(rng, rows, columns):
    """As DeepSeek-V4 has it."""
    tensors, values = fp8(rng, rows, columns)
    scale = tensors.pop("weight_scale_inv")
    e, powers = powers_of_two(rng, *scale.shape)
    each = [spread(one, 128, columns).repeat(128, 0)[:rows] for one in (scale.astype(np.float64), powers)]
    return tensors | {"scale": e.view([("float8_e8m0fnu", np.uint8)])}, values / each[0] * each[1]


def compressed(kind, **weights):
    described = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32} | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": described, "input_activations": None}}
    return {"quant_method": "compressed-tensors", "format": kind, "config_groups": groups, "ignore": ["lm_head"]}


def awq_settings(group=32, **more):
    return {"quant_method": "awq", "bits": 4, "group_size": group, "version": "gemm", "zero_point": True} | more


def autoround_settings(packing, sym=True):
    return {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": sym, "data_type": "int", "packing_format": packing}


def gptq_settings(group=32, bits=4, sym=True, **more):
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "sym": sym, "desc_act": False} | more


# name: (quantization_config, matrix maker, GGUF type of its rows)
LAYOUTS = {
    "awq": (awq_settings(), awq, "Q4_1"),
    "awq of 64": (awq_settings(64), lambda *a: awq(*a, group=64), "Q4_1"),
    "awq of 128": (awq_settings(128), lambda *a: awq(*a, group=128), "Q4_1"),
    "gptq": (gptq_settings(), gptq, "Q4_0"),
    "gptq per row": (gptq_settings(-1), lambda *a: gptq(*a, group=-1), "Q4_0"),
    "gptq with zeros": (gptq_settings(64, sym=False), lambda *a: gptq(*a, group=64, sym=False), "Q4_1"),
    "gptq 2 with zeros": (
        gptq_settings(sym=False, checkpoint_format="gptq_v2"), lambda *a: gptq(*a, sym=False, second=True), "Q4_1"),
    "gptq of 8 bits": (gptq_settings(64, bits=8), lambda *a: gptq(*a, group=64, bits=8), "Q8_0"),
    "gptq of 8 bits with zeros": (gptq_settings(bits=8, sym=False), lambda *a: gptq(*a, bits=8, sym=False), "F32"),
    "gptq in activation order": (gptq_settings(desc_act=True), lambda *a: gptq(*a, ordered=True), "F32"),
    "gptq with zeros in activation order": (
        gptq_settings(sym=False, desc_act=True), lambda *a: gptq(*a, sym=False, ordered=True), "F32"),
    "fp8": ({"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128], "activation_scheme": "dynamic"}, fp8, "F32"),
    "fp8 in one": ({"quant_method": "fp8"}, lambda *a: fp8(*a, block=None, scale_name="weight_scale"), "F32"),
    "fp8 by row": (
        compressed("float-quantized", num_bits=8, type="float", strategy="channel"),
        lambda rng, rows, columns: fp8(rng, rows, columns, (1, columns), "weight_scale"), "F32"),
    "fp8 with powers of two": (
        {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0"}, fp8_with_powers, "F32"),
    "fp8's fp4": (
        {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0", "expert_dtype": "fp4"},
        lambda *a: mxfp4_pairs(*a, ("weight", "int8"), ("scale", "float8_e8m0fnu")), "MXFP4"),
    "mxfp4": ({"quant_method": "mxfp4"}, mxfp4, "MXFP4"),
    "compressed mxfp4": (
        compressed("mxfp4-pack-quantized", type="float"),
        lambda *a: mxfp4_pairs(*a, ("weight_packed", "uint8"), ("weight_scale", "uint8")), "MXFP4"),
    "nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}, nvfp4, "NVFP4"),
    "compressed nvfp4": (
        compressed("nvfp4-pack-quantized", type="float", strategy="tensor_group", group_size=16),
        lambda *a: nvfp4(*a, "weight_packed", "weight_global_scale", inverse=True), "NVFP4"),
    "autoround": (autoround_settings("auto_round:auto_gptq", sym=False), lambda *a: gptq(*a, sym=False), "Q4_1"),
    "autoround as awq": (autoround_settings("auto_round:auto_awq"), awq, "Q4_1"),
    "w4a16": (compressed("pack-quantized"), packed, "Q4_0"),
    "w4a16 with zeros": (compressed("pack-quantized", symmetric=False), lambda *a: packed(*a, sym=False), "Q4_1"),
    "w8a16": (compressed("pack-quantized", num_bits=8), lambda *a: packed(*a, bits=8), "Q8_0"),
    "w8a8": (compressed("int-quantized", num_bits=8, strategy="channel"), int8, "Q8_0"),
}  # fmt: skip


def write_llama(folder, name, config, tensors):
    """(the folder of a model whose layers' matrices are random ones of a layout, all its weights)."""
    settings, make, _ = LAYOUTS[name]
    rng, stored, weights = np.random.default_rng(0), {}, {}
    for tensor, values in tensors.items():
        if "_proj" in tensor:
            parts, weights[tensor] = make(rng, *values.shape)
            size = np.sqrt((weights[tensor] ** 2).mean() * values.shape[1])  # so that rows keep their size
            scale = next(suffix for suffix in ("weight_scale_2", "scales", "weight_scale_inv", "weight_scale") if suffix in parts)
            parts[scale] = (parts[scale] / size).astype(parts[scale].dtype)
            weights[tensor] = weights[tensor] / size
            stored |= {tensor.removesuffix("weight") + suffix: part for suffix, part in parts.items()}
        else:
            stored[tensor] = weights[tensor] = values
    return folders.write(folder, config | {"quantization_config": settings}, stored), weights
