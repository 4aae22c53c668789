"""Golden models as Hugging Face folders: the config.json that transformers wrote, and the tensors of the GGUF file under the names
and with the numbers that transformers gives them.
"""

import json
from collections import defaultdict
from functools import partial

import numpy as np
from support.models import folders
from support.models.golden import GOLDEN

from numatp import quants
from numatp.files.gguf import read_gguf
from numatp.files.safetensors import read_bytes


def tensors_of(path):
    """float32 or int64 arrays by GGUF's names."""
    found = {}
    for name, info in read_gguf(path).tensors.items():
        raw = read_bytes(info, 0, info.num_bytes).reshape(info.shape[0] if len(info.shape) > 1 else 1, -1)
        if info.type == "I32":  # folders have such numbers in 64 bits
            found[name] = raw.view(np.int32).astype(np.int64)
            continue
        found[name] = quants.kernels_of(info.type).unpack(raw).reshape(info.shape)
    return found


def gemma(tensors):
    names = {
        "ffn_norm.weight": "pre_feedforward_layernorm.weight", "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
    }  # fmt: skip
    found = {}
    for name, values in tensors.items():
        rest = name.split(".", 2)[-1]
        theirs = (
            f"model.layers.{name.split('.')[1]}.{names[rest]}" if rest in names else next(iter(folders.renamed({name: values})))
        )
        found[theirs] = values - 1 if "norm" in name else values
    return found


def gemma4(tensors):
    """Of experts gate and up lie in one matrix."""
    names = {
        "ffn_norm.weight": "pre_feedforward_layernorm.weight", "post_ffw_norm.weight": "post_feedforward_layernorm.weight",
        "post_ffw_norm_1.weight": "post_feedforward_layernorm_1.weight",
        "pre_ffw_norm_2.weight": "pre_feedforward_layernorm_2.weight",
        "post_ffw_norm_2.weight": "post_feedforward_layernorm_2.weight", "layer_output_scale.weight": "layer_scalar",
        "ffn_gate_inp.weight": "router.proj.weight", "ffn_gate_inp.scale": "router.scale",
        "ffn_down_exps.scale": "router.per_expert_scale", "ffn_gate_up_exps.weight": "experts.gate_up_proj",
        "ffn_down_exps.weight": "experts.down_proj", "inp_gate.weight": "per_layer_input_gate.weight",
        "proj.weight": "per_layer_projection.weight", "post_norm.weight": "post_per_layer_input_norm.weight",
    }  # fmt: skip
    of_token = {
        "per_layer_token_embd": "embed_tokens_per_layer", "per_layer_model_proj": "per_layer_model_projection",
        "per_layer_proj_norm": "per_layer_projection_norm",
    }  # fmt: skip
    found = {}
    for name, values in tensors.items():
        rest = name.split(".", 2)[-1]
        if name.removesuffix(".weight") in of_token:
            found[f"model.{of_token[name.removesuffix('.weight')]}.weight"] = values
        elif rest in names:
            found[f"model.layers.{name.split('.')[1]}.{names[rest]}"] = values
        elif name != "rope_freqs.weight":
            found |= folders.renamed({name: values})
    return found


def olmo(tensors):
    return {
        name.replace("post_ffw_norm", "post_feedforward_layernorm"): values for name, values in folders.renamed(tensors).items()
    }


def phi3(tensors):
    tensors = {name: values for name, values in tensors.items() if not name.startswith("rope_factors")}
    return {
        name.replace("attn_qkv", "self_attn.qkv_proj").replace("mlp.up_proj", "mlp.gate_up_proj"): values
        for name, values in folders.renamed(tensors).items()
    }


def granitemoe(tensors):
    """Of all experts gate above up; so of the one that all rows go through."""
    layers = sorted({name.split(".")[2] for name in tensors if name.startswith("model.layers.")})
    found = {name: values for name, values in tensors.items() if ".mlp." not in name}
    for layer in layers:
        place = f"model.layers.{layer}"
        experts = [
            [tensors[f"{place}.mlp.experts.{expert}.{kind}_proj.weight"] for expert in range(5)] for kind in ("gate", "up", "down")
        ]
        gate, up, down = map(np.stack, experts)
        shared = [tensors[f"{place}.mlp.shared_expert.{kind}_proj.weight"] for kind in ("gate", "up", "down")]
        found |= {
            f"{place}.block_sparse_moe.input_linear.weight": np.concatenate([gate, up], 1),
            f"{place}.block_sparse_moe.output_linear.weight": down,
            f"{place}.block_sparse_moe.router.layer.weight": tensors[f"{place}.mlp.gate.weight"],
            f"{place}.shared_mlp.input_linear.weight": np.concatenate(shared[:2]),
            f"{place}.shared_mlp.output_linear.weight": shared[2],
        }
    return found


NEIGHBOURS = ("smollm3", "granite", "granitemoe", "mistral3")  # whose pairs lie side by side in GGUF files


def gpt_oss(tensors, floats=False):
    """Experts in MXFP4, as released; or as floats by columns, as transformers writes them."""
    found = {}
    for name, values in tensors.items():
        rest, prefix = name.split(".", 2)[-1], f"model.layers.{name.split('.')[1]}"
        kind = rest.removeprefix("ffn_").split("_")[0]
        if rest.startswith("ffn_up_exps"):
            continue
        if rest.startswith("ffn_gate_inp"):
            found[f"{prefix}.mlp.router.{rest.rpartition('.')[2]}"] = values
        elif rest == "attn_sinks.weight":
            found[f"{prefix}.self_attn.sinks"] = values
        elif "_exps" in rest:
            theirs = f"{prefix}.mlp.experts.{'gate_up' if kind == 'gate' else 'down'}_proj"
            if kind == "gate":
                values = np.stack([values, tensors[name.replace("gate", "up")]], 2).reshape(len(values), -1, *values.shape[2:])
            if rest.endswith("bias"):
                found[f"{theirs}_bias"] = values
                continue
            if floats:
                found[theirs] = values.swapaxes(1, 2)
                continue
            found[f"{theirs}_blocks"], found[f"{theirs}_scales"] = mxfp4(values)
        else:
            found |= folders.renamed({name: values})
    return found


def routed(tensors, name):
    """Of models that route through a sigmoid, or with a bias that only chooses."""
    mlp, shared, bias, router = {
        "minimax-m2": ("block_sparse_moe", "", "e_score_correction_bias", "gate"),
        "ernie4_5-moe": ("mlp", "shared_experts", "moe_statics.e_score_correction_bias", "gate"),
        "hy_v3": ("mlp", "shared_mlp", "expert_bias", "router.gate"),
    }.get(name, ("mlp", "shared_experts", "gate.e_score_correction_bias", "gate"))
    experts = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"} if mlp == "block_sparse_moe" else {}
    found = {}
    for theirs, values in folders.renamed(tensors).items():
        layer, _, rest = theirs.removeprefix("model.layers.").partition(".")
        place = f"model.layers.{layer}.{mlp}"
        if rest.startswith("exp_probs_b"):
            theirs = f"{place}.{bias}"
        elif rest == "mlp.gate.weight":
            theirs = f"{place}.{router}.weight"
        elif ".shared_expert." in theirs:
            theirs = theirs.replace("shared_expert", shared)
        elif rest.startswith("mlp.experts."):
            theirs = theirs.replace("mlp", mlp)
            for long, short in experts.items():
                theirs = theirs.replace(long, short)
        found[theirs] = values
    return found


def deepseek(tensors):
    """kv_b_proj: of each head its rows for keys, which GGUF has as columns, then those for values."""
    names = {
        "attn_q_a.weight": "q_a_proj.weight", "attn_q_a_norm.weight": "q_a_layernorm.weight", "attn_q_b.weight": "q_b_proj.weight",
        "attn_kv_a_mqa.weight": "kv_a_proj_with_mqa.weight", "attn_kv_a_norm.weight": "kv_a_layernorm.weight",
        "indexer.attn_k.weight": "indexer.wk.weight", "indexer.attn_q_b.weight": "indexer.wq_b.weight",
        "indexer.proj.weight": "indexer.weights_proj.weight", "indexer.k_norm.weight": "indexer.k_norm.weight",
        "indexer.k_norm.bias": "indexer.k_norm.bias",
    }  # fmt: skip
    together = {name: values for name, values in tensors.items() if "gate_up_exps" in name}
    rest_of_them = {name.replace("gate_up", "down") for name in together}
    found = {}
    for name in [*together, *rest_of_them]:  # the matrices of all experts as one
        kind = "gate_up_proj" if name in together else "down_proj"
        found[f"model.layers.{name.split('.')[1]}.mlp.experts.{kind}"] = tensors[name]
    apart = {name: values for name, values in tensors.items() if name not in together.keys() | rest_of_them}
    for theirs, values in routed(apart, "deepseek2").items():
        layer, own = theirs.removeprefix("model.layers.").partition(".")[::2]
        place = f"model.layers.{layer}.self_attn"
        if own == "attn_k_b.weight":
            both = np.concatenate([values.swapaxes(1, 2), tensors[f"blk.{layer}.attn_v_b.weight"]], 1)
            found[f"{place}.kv_b_proj.weight"] = both.reshape(-1, both.shape[-1])
        elif own != "attn_v_b.weight":
            found[f"{place}.{names[own]}" if own in names else theirs] = values
    return found


DELTA = {
    "ssm_conv1d_q.weight": "q_conv1d.weight", "ssm_conv1d_k.weight": "k_conv1d.weight", "ssm_conv1d_v.weight": "v_conv1d.weight",
    "ssm_f_a.weight": "f_a_proj.weight", "ssm_f_b.weight": "f_b_proj.weight", "ssm_g_a.weight": "g_a_proj.weight",
    "ssm_g_b.weight": "g_b_proj.weight", "ssm_beta.weight": "b_proj.weight", "linear_attn.norm.weight": "o_norm.weight",
    "linear_attn.A_log": "A_log", "linear_attn.dt_bias": "dt_bias",
}  # fmt: skip


def kimi_linear(tensors):
    moe = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    found = {}
    for theirs, values in deepseek(tensors).items():
        layer, own = theirs.removeprefix("model.layers.").partition(".")[::2]
        if own in DELTA:
            theirs = f"model.layers.{layer}.self_attn.{DELTA[own]}"
        elif own.startswith(("mlp.gate.", "mlp.experts.", "mlp.shared_experts.")):
            theirs = theirs.replace("mlp", "block_sparse_moe")
            if own.startswith("mlp.experts."):
                *stem, matrix, last = theirs.split(".")
                theirs = ".".join([*stem, moe[matrix], last])
        if "conv1d" in own:
            values = values.reshape(-1, 1, values.shape[-1])
        if own.endswith("A_log"):
            values = np.log(-values).reshape(1, 1, -1, 1)
        found[theirs] = values
    return found


def glm5_next(tensors):
    pools = {
        "indexer_compressor_gate.weight": "indexer.index_kpool_compress_gate",
        "indexer_compressor_ape.weight": "indexer.index_kpool_compress_ape",
    }  # fmt: skip
    found = {}
    for theirs, values in deepseek(tensors).items():
        layer, own = theirs.removeprefix("model.layers.").partition(".")[::2]
        if own in DELTA or own in pools:
            theirs = f"model.layers.{layer}.self_attn.{(DELTA | pools)[own]}"
        elif own.startswith("hc_"):
            theirs = theirs.removesuffix(".weight")
        if "conv1d" in own:
            values = values.reshape(-1, 1, values.shape[-1])
        found[theirs] = np.log(-values) if own.endswith("A_log") else values
    return found


def bailing3(tensors):
    """The gates of heads and of linear attention have one name."""
    found, names = {}, {"ssm_f_a.weight": "f_proj.weight", "ssm_g_a.weight": "g_proj.weight", "attn_gate.weight": "g_proj.weight"}
    tensors = {name: -values if name.endswith("ssm_a") else values for name, values in tensors.items()}
    for theirs, values in kimi_linear(
        {name: values for name, values in tensors.items() if name.split(".", 2)[-1] not in names}
    ).items():
        theirs = theirs.replace("block_sparse_moe", "mlp").replace("gate.e_score_correction_bias", "gate.expert_bias")
        for short, long in {".w1.": ".gate_proj.", ".w2.": ".down_proj.", ".w3.": ".up_proj."}.items():
            theirs = theirs.replace(short, long)
        theirs = theirs.replace("self_attn.o_proj", "self_attn.dense").replace("embed_tokens", "word_embeddings")
        found[theirs.replace("self_attn", "attention")] = values.ravel() if theirs.endswith("A_log") else values
    for name, values in tensors.items():
        rest = name.split(".", 2)[-1]
        if rest in names:
            found[f"model.layers.{name.split('.')[1]}.attention.{names[rest]}"] = values
    return found


def deepseek4(tensors, floats=False):
    """Experts in FP4, as released, or as floats."""
    blocks = {
        "attn_q_a": "attn.wq_a", "attn_q_a_norm": "attn.q_norm", "attn_q_b": "attn.wq_b", "attn_kv": "attn.wkv",
        "attn_kv_a_norm": "attn.kv_norm", "attn_output_a": "attn.wo_a", "attn_output_b": "attn.wo_b", "attn_norm": "attn_norm",
        "attn_compressor_kv": "attn.compressor.wkv", "attn_compressor_gate": "attn.compressor.wgate",
        "attn_compressor_norm": "attn.compressor.norm", "indexer.attn_q_b": "attn.indexer.wq_b",
        "indexer.proj": "attn.indexer.weights_proj", "indexer_compressor_kv": "attn.indexer.compressor.wkv",
        "indexer_compressor_gate": "attn.indexer.compressor.wgate", "indexer_compressor_norm": "attn.indexer.compressor.norm",
        "ffn_norm": "ffn_norm", "ffn_gate_inp": "ffn.gate", "ffn_gate_shexp": "ffn.shared_experts.w1",
        "ffn_down_shexp": "ffn.shared_experts.w2", "ffn_up_shexp": "ffn.shared_experts.w3",
    }  # fmt: skip
    bare = {
        "attn_sinks": "attn.attn_sink", "attn_compressor_ape": "attn.compressor.ape", "ffn_gate_tid2eid": "ffn.gate.tid2eid",
        "indexer_compressor_ape": "attn.indexer.compressor.ape", "exp_probs_b": "ffn.gate.bias",
    }  # fmt: skip
    ends = {
        "token_embd": "embed.weight", "output_norm": "norm.weight", "output": "head.weight", "output_hc_fn": "hc_head_fn",
        "output_hc_base": "hc_head_base", "output_hc_scale": "hc_head_scale",
    }  # fmt: skip
    found = {}
    for name, values in tensors.items():
        stem = name.removesuffix(".weight").removesuffix(".bias")
        if stem in ends:
            found[ends[stem]] = values
            continue
        _, layer, rest = stem.split(".", 2)
        place = f"layers.{layer}"
        if rest.endswith("_exps"):
            matrix = {"gate": "w1", "down": "w2", "up": "w3"}[rest.split("_")[1]]
            for expert, one in enumerate(values):
                own = f"{place}.ffn.experts.{expert}.{matrix}"
                found |= {f"{own}.weight": one} if floats else fp4(one, own)
        elif rest in blocks:
            found[f"{place}.{blocks[rest]}.weight"] = values
        else:
            found[f"{place}.{bare.get(rest, rest)}"] = values
    return found


def fp4(values, name):
    """Two floats per byte, and bytes of the scales."""
    pairs, scales = mxfp4(values)
    return {
        f"{name}.weight": pairs.reshape(len(values), -1).view(np.int8),
        f"{name}.scale": scales.view([("float8_e8m0fnu", np.uint8)]),
    }


def mxfp4(values):
    """(two floats per byte in the order of the weights, scales), uint8 (..., blocks, 16) and (..., blocks)."""
    import gguf

    packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.MXFP4).reshape(*values.shape[:-1], -1, 17)
    halves = packed[..., 1:]
    codes = np.concatenate([halves & 15, halves >> 4], -1)
    return codes[..., 0::2] | codes[..., 1::2] << 4, packed[..., 0]


def bailing(tensors):
    names = {
        "embed_tokens": "word_embeddings", "attn_qkv": "attention.query_key_value", "self_attn.o_proj": "attention.dense",
        "self_attn.q_norm": "attention.query_layernorm", "self_attn.k_norm": "attention.key_layernorm",
        "gate.e_score_correction_bias": "gate.expert_bias",
    }  # fmt: skip
    found = routed(tensors, "bailingmoe2")
    for ours, theirs in names.items():
        found = {name.replace(ours, theirs): values for name, values in found.items()}
    return found


def llama4(tensors):
    """The matrices of all experts by columns, gate beside up."""
    found = {}
    for name, values in tensors.items():
        place = f"model.layers.{name.split('.')[1]}.feed_forward.experts"
        if "gate_exps" in name:
            both = np.concatenate([values, tensors[name.replace("gate", "up")]], 1)
            found[f"{place}.gate_up_proj"] = both.swapaxes(1, 2)
        elif "down_exps" in name:
            found[f"{place}.down_proj"] = values.swapaxes(1, 2)
        elif "up_exps" not in name and name != "rope_freqs.weight":
            found |= folders.renamed({name: values})
    return {name.replace("mlp.gate.", "mlp.router.").replace(".mlp.", ".feed_forward."): values for name, values in found.items()}


QUANTIZED = {
    "gpt-oss": {"quant_method": "mxfp4"},
    "deepseek4": {"quant_method": "fp8", "weight_block_size": [128, 128], "scale_fmt": "ue8m0", "expert_dtype": "fp4"},
}  # fmt: skip
ROUTED = ("glm4moe", "minimax-m2", "dots1", "ernie4_5-moe", "hy_v3", "cohere2moe", "mimo2")


def write(folder, name, floats=False):
    """The folder, as transformers would have written it, but that some models' experts are quantised, unless floats are wanted."""
    recorded, tensors = json.loads((GOLDEN / f"{name}.json").read_text()), tensors_of(GOLDEN / f"{name}.gguf")
    config = recorded["config"]
    if name in ("llama", "llama-linear", *NEIGHBOURS):
        sizes = defaultdict(int, head_size=config.get("head_dim", 16))
        found = folders.llama({key: tensor for key, tensor in tensors.items() if key != "rope_freqs.weight"}, sizes)[1]
        if name == "granitemoe":
            found = granitemoe(found)
    elif name in ("qwen3next", "qwen35", "qwen35moe"):
        sizes = defaultdict(
            int, width=config["hidden_size"], head_size=config["head_dim"], key_heads=config["linear_num_key_heads"],
            linear_head_size=config["linear_key_head_dim"],
        )  # fmt: skip
        found = folders.qwen3next(tensors, sizes)[1] if name == "qwen3next" else folders.qwen35(tensors, sizes)
    elif name in ROUTED:
        found = routed(tensors, name)
    elif name == "deepseek4":
        found = deepseek4(tensors, floats)
    elif name.startswith(("deepseek", "glm-dsa", "mistral4")):
        found = deepseek(tensors)
    else:
        kinds = {
            "olmo2": olmo, "olmo3": olmo, "phi3": phi3, "phi3-short": phi3,
            "gemma2": gemma, "gemma3": gemma, "gemma4": gemma4, "gemma4-dense": gemma4,
            "gemma4-e2b": gemma4,
            "gpt-oss": partial(gpt_oss, floats=floats), "bailingmoe2": bailing, "llama4": llama4,
            "kimi-linear": kimi_linear, "bailingmoe3": bailing3, "glm5-next": glm5_next,
        }  # fmt: skip
        found = kinds.get(name, folders.renamed)(tensors)
    for key, values in found.items():
        if values.dtype == np.float32 and values.ndim > 1:
            found[key] = values.astype(np.float16)
    if name in QUANTIZED and not floats:
        config = config | {"quantization_config": QUANTIZED[name]}
    else:
        assert {key: list(values.shape) for key, values in found.items()} == recorded["tensors"]
    return folders.write(folder, config, found)
