"""Records what transformers computes when keys of config.json are changed, one at a time, for every golden model.

python make_config_keys.py [NAME ...]: needs torch and transformers (2.13.0 and 5.24.0 were used). Writes config_keys.json: per
golden model (and Mistral, which has Llama's weights) a list of [changes, what happens]: None where transformers cannot build or run
the model, "same" where the logits are those of the unchanged model, otherwise the row of config_keys.npz that has them. A change
is {key: value}; "absent" takes a key out. The logits are those after the first recorded sequence.

Every key of transformers' configuration classes is tried, those of the rotation with each kind of scaling, what older folders say
in other words, and some keys that only other architectures know.
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from make_golden import COMMON, GOLDEN, MODELS, model_of, round_cache, with_sight

HERE = Path(__file__).parent
VARIANTS = ("llama-linear", "gemma4-dense", "phi3-short", "deepseek2-v2")  # of golden models whose keys are those of another
UNKNOWN = ("bailingmoe2",)  # of whose folders transformers has no class
SAME = 1e-4  # of the logits' norm; the smallest change that counts in a feature is 100 times as much
# What has no part in a forward pass of text, or is no number of the model.
OTHERS = {
    "_name_or_path", "architectures", "attn_implementation", "bos_token_id", "chunk_size_feed_forward", "dtype", "eos_token_id",
    "experts_implementation", "id2label", "is_encoder_decoder", "label2id", "model_type", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "return_dict", "transformers_version", "vocab_size",
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1000.0}
ROPES = [
    {"rope_type": "default", "rope_theta": 500.0},
    {"rope_type": "default", "rope_theta": 1000.0, "factor": 8.0},
    {"rope_type": "default", "rope_theta": 1000.0, "partial_rotary_factor": 0.5},
    {"rope_type": "default"},
    {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
    {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0, "attention_factor": 2.0},
    {"type": "linear", "factor": 4.0, "rope_theta": 1000.0},
    {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1000.0},
    {"rope_type": "longrope", "factor": 4.0, "rope_theta": 1000.0, "short_factor": [1.5] * 8, "long_factor": [2.0] * 8},
    {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1000.0,
        "original_max_position_embeddings": 64,
    },
    {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 1000.0},
    YARN,
    YARN | {"truncate": False},
    YARN | {"attention_factor": 1.4},
    YARN | {"mscale": 1.0},
    YARN | {"mscale_all_dim": 0.7},
    YARN | {"mscale": 1.0, "mscale_all_dim": 0.5},
    YARN | {"mscale": 1.0, "mscale_all_dim": 0.5, "attention_factor": 1.2},
    YARN | {"mscale": 0, "mscale_all_dim": 0.5},
    YARN | {"beta_fast": 4.0, "beta_slow": 0.5},
    YARN | {"beta_fast": 0, "beta_slow": 0},
    YARN | {"factor": None},
    YARN | {"factor": 1.0},
    YARN | {"partial_rotary_factor": 0.5},
    {key: value for key, value in YARN.items() if key != "original_max_position_embeddings"},
    {key: value for key, value in YARN.items() if key != "factor"},
]  # fmt: skip
LINEAR, FASTER = ROPES[4], {"rope_type": "default", "rope_theta": 300.0}
LAYERED = [
    {"full_attention": ROPES[0], "sliding_attention": FASTER},
    {"full_attention": LINEAR, "sliding_attention": LINEAR},
    {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default", "rope_theta": 70.0}},
    {"full_attention": YARN, "sliding_attention": FASTER},
    {"full_attention": YARN | {"truncate": False}, "sliding_attention": FASTER},
    {"full_attention": YARN | {"mscale": 1.0, "mscale_all_dim": 0.5}, "sliding_attention": FASTER},
    {"full_attention": ROPES[0] | {"partial_rotary_factor": 0.5}, "sliding_attention": FASTER},
    {"full_attention": ROPES[0], "sliding_attention": FASTER | {"partial_rotary_factor": 0.5}},
    {"full_attention": ROPES[0]},
    {"full_attention": {"rope_type": "default"}, "sliding_attention": {"rope_type": "default"}},
    {"sliding_attention": FASTER},
]
DELTA = {"head_dim": 32, "num_heads": 4, "short_conv_kernel_size": 4}
# More than one key at a time, as folders of other versions have them.
TOGETHER = [
    {"rope_parameters": None, "rope_theta": 500.0},
    {"rope_parameters": "absent", "rope_theta": 500.0},
    {"rope_parameters": None, "rope_theta": 1000.0, "rope_scaling": {"type": "linear", "factor": 4.0}},
    {"rope_parameters": "absent", "rope_theta": 1000.0, "rope_scaling": YARN},
    {"rope_parameters": "absent", "rope_theta": 1000.0, "rope_scaling": YARN | {"truncate": False}},
    {"rope_parameters": "absent", "rope_theta": 1000.0, "rope_scaling": {"rope_type": "default"}},
    {"rope_parameters": "absent", "rope_theta": 5000.0, "rope_local_base_freq": 300.0, "rope_scaling": LINEAR},
    {"rope_parameters": "absent", "rope_theta": 5000.0, "rope_scaling": LINEAR},
    {"rope_parameters": "absent", "rope_local_base_freq": 300.0, "rope_scaling": LINEAR},
    {"rope_parameters": YARN, "rope_scaling": None},
    {"rope_parameters": YARN, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    {"rope_parameters": {"rope_type": "default"}, "rope_theta": 500.0},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}, "rope_theta": 1000.0},
    {"rope_parameters": YARN, "original_max_position_embeddings": 64},
    {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0},
    {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 0, "layer_types": "absent"},
    {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1, "layer_types": "absent"},
    {"use_sliding_window": True, "sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]},
    {"use_sliding_window": True, "sliding_window": 20, "layer_types": ["full_attention", "full_attention"]},
    {"use_sliding_window": True, "sliding_window": 20, "layer_types": "absent", "max_window_layers": "absent"},
    {"use_sliding_window": True, "sliding_window": None, "layer_types": "absent", "max_window_layers": 0},
    {"layer_types": "absent", "sliding_window_pattern": 2},
    {"layer_types": "absent", "full_attention_interval": 2},
    {"layer_types": None, "sliding_window_pattern": 3},
    {"layer_types": "absent", "linear_attn_config": DELTA | {"full_attn_layers": [2], "kda_layers": [1]}},
    {"layer_types": "absent", "linear_attn_config": DELTA | {"full_attn_layers": [1], "kda_layers": [2]}},
    {"layer_types": "absent", "linear_attn_config": DELTA | {"full_attn_layers": [2], "kda_layers": []}},
    {"linear_head_dim": "absent", "linear_num_heads": "absent", "linear_attn_config": DELTA},
    {"mlp_layer_types": "absent", "first_k_dense_replace": 1},
]  # fmt: skip
VALUES = {
    "attn_logit_softcapping": [5.0], "final_logit_softcapping": [5.0], "head_dim": [8, None], "hidden_act": ["gelu", "relu"],
    "hidden_activation": ["gelu", "silu"], "intermediate_size": [64, 128], "layer_norm_eps": [0.1, None],
    "logit_scale": [0.7, None, 1], "logits_scaling": [2.0], "mlp_only_layers": [[0], None], "query_pre_attn_scalar": [100, 64],
    "rms_norm_eps": [0.1, None], "sliding_window": [5, None, 4096], "num_local_experts": [3], "num_experts": [3],
    "num_key_value_heads": [None, 1], "decoder_sparse_step": [2], "max_position_embeddings": [64], "embedding_multiplier": [2.0],
    "clip_qkv": [0.1], "residual_multiplier": [0.5], "attention_multiplier": [0.1], "rope_parameters": [None, {}, *ROPES, *LAYERED],
    "rope_scaling": [None, ROPES[5], YARN], "rope_theta": [500.0], "partial_rotary_factor": [0.5], "rotary_pct": [0.5],
    "original_max_position_embeddings": [64, 128], "sliding_window_pattern": [2], "full_attention_interval": [2],
    "rope_local_base_freq": [70.0], "swiglu_alpha": [1.0], "swiglu_limit": [2.0], "max_window_layers": [0, 1],
    "use_sliding_window": [True, False], "use_qk_norm": [True, False], "qkv_bias": [True, False], "attention_bias": [True, False],
    "mlp_bias": [True, False], "norm_topk_prob": [True, False, None], "use_bidirectional_attention": [True],
    "tie_word_embeddings": [True, False, None], "linear_value_head_dim": [8], "linear_num_key_heads": [4],
    "pretraining_tp": [2], "tie_encoder_decoder": [True], "num_experts_per_tok": [1, 3], "num_experts_per_token": [1, 3, 4],
    "is_causal": [False],
    "n_group": [1, 4], "topk_group": [1, 4], "first_k_dense_replace": [0, 2], "n_shared_experts": [1], "rotary_dim": [4, 16, None],
    "moe_layer_end_index": [-1, 0, 1], "moe_layer_start_index": [0, 2], "moe_layer_interval": [2],
    "mlp_layer_types": [None, ["dense", "dense"], ["sparse", "dense"], ["sparse", "sparse"]],
    "scoring_func": ["sigmoid", "softmax"], "topk_method": ["greedy", "group_limited_greedy"],
    "indexer_types": [None, ["full", "shared", "shared"], ["shared", "full", "full"]], "index_topk_pattern": ["FSF"],
    "num_nextn_predict_layers": [0, 2], "linear_conv_kernel_dim": [3],
    "expert_selection_fn": ["softmax", "sigmoid", "tanh"], "shared_expert_combination_strategy": ["sum"],
    "attention_value_scale": [1.0, None], "routed_scaling_factor": [2.0, None], "attention_chunk_size": [49, 8192, None],
    "no_rope_layers": [None, [1, 1, 1, 1], [0, 1, 1, 0]], "moe_layers": [None, [0, 1, 2, 3], [1, 2], []],
    "num_kv_shared_layers": [0, 1, 3],
    "cross_attention_hidden_size": [8], "temperature": [2.0], "output_router_logits": [True], "per_layer_config": [None],
}  # fmt: skip


def tried(name, config, known):
    """Changes of config, one after another. known: the keys of the configuration's class."""
    layers = config["num_hidden_layers"]
    kinds = {
        "all full": ["full_attention"] * layers, "all sliding": ["sliding_attention"] * layers,
        "one sliding": ["sliding_attention"] + ["full_attention"] * (layers - 1),
        "turned": config.get("layer_types", [])[::-1], "linear": ["linear_attention"] * layers,
        "short": ["full_attention"] * (layers - 1),
    }  # fmt: skip
    if "attention_chunk_size" in config:
        kinds["all in chunks"] = ["chunked_attention"] * layers
    values = VALUES | {"layer_types": [None, *kinds.values()]}
    for key in sorted((config.keys() | known | values.keys()) - OTHERS):
        if key in config:
            yield {key: "absent"}
        old = config.get(key, known.get(key))
        more = values.get(key)
        if more is None:
            more = [not old] if isinstance(old, bool) else [2 * old + 1] if isinstance(old, int | float) else []
        for value in more:
            if key not in config or config[key] != value or type(config[key]) is not type(value):
                yield {key: value}
    yield from TOGETHER


def changed(config, changes):
    found = config | changes
    return {key: value for key, value in found.items() if not (isinstance(value, str) and value == "absent")}


def logits_of(folder, config, tokens):
    """Of the last token, or None."""
    # Of the tiny vocabulary: a class may pad with a token that it does not have.
    config = config | {"pad_token_id": None}
    if not hasattr(transformers, config["architectures"][0]):  # there is one of the multimodal model alone
        config = with_sight(config)
    (folder / "config.json").write_text(json.dumps(config))
    try:
        model, info = getattr(transformers, config["architectures"][0]).from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager", output_loading_info=True
        )
        if info["missing_keys"] or info["mismatched_keys"]:
            return None
        round_cache(model)
        with torch.no_grad():
            logits = model(torch.from_numpy(tokens)[None]).logits[0, -1].numpy()
        return logits if np.isfinite(logits).all() else None
    except Exception as error:
        print("   ", type(error).__name__, str(error).split("\n")[0][:100], file=sys.stderr)
        return None


def main():
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = sys.argv[1:] or [*(name for name in MODELS if name not in VARIANTS + UNKNOWN), "mistral"]
    recorded = json.loads((HERE / "config_keys.json").read_text()) if sys.argv[1:] else {}
    rows = dict(np.load(HERE / "config_keys.npz")) if sys.argv[1:] else {}
    for name in names:
        golden = "llama" if name == "mistral" else name
        tokens = np.load(GOLDEN / f"{golden}.npz")["tokens0"].astype(np.int64)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            model_of(golden).save_pretrained(folder)
            config = json.loads((GOLDEN / f"{golden}.json").read_text())["config"]
            if name == "mistral":
                config |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
            known = type(transformers.AutoConfig.for_model(config["model_type"]))().to_dict()
            known = {key: COMMON.get(key, value) for key, value in known.items()}
            base, found, kept = logits_of(folder, config, tokens), [], []
            for changes in tried(name, config, known):
                logits = logits_of(folder, changed(config, changes), tokens)
                if logits is None:
                    found.append([changes, None])
                elif np.linalg.norm(logits - base) < SAME * np.linalg.norm(base):
                    found.append([changes, "same"])
                else:
                    found.append([changes, len(kept)])
                    kept.append(logits.astype(np.float16))
            recorded[name] = found
            rows |= {name: np.array(kept), f"{name} base": base.astype(np.float16)}
            print(name, len(found), "changes,", len(kept), "count,", sum(what is None for _, what in found), "do not run")
        write(recorded, rows)


def write(recorded, rows):
    lines = [f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, recorded[name])) + "\n]" for name in sorted(recorded)]
    (HERE / "config_keys.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")
    np.savez_compressed(HERE / "config_keys.npz", **rows)


if __name__ == "__main__":
    main()
