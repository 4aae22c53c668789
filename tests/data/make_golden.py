"""Records what transformers computes for tiny random models, and has llama.cpp's converter write the same weights as GGUF files.

python make_golden.py CONVERTER [NAME ...] — needs torch and transformers (2.13.0 and 5.24.0 were used); CONVERTER is the folder of
llama.cpp that holds convert_hf_to_gguf.py (that of llama-cpp-python 0.3.36 was used). Writes golden/NAME.gguf and golden/NAME.npz:
tokens of two sequences, and the logits at all their positions; golden/NAME.json: config.json and the shapes of the tensors as
transformers saves them; golden/ropes.json: how released models rotate.

All weights are float16 numbers, so that both sides multiply the same, and keys and values are rounded to float16, because a float16
cache is part of what numatp promises. Norms, biases and sinks are random too: at the values that they start with, leaving them out
would change nothing.
"""

import json
import re
import sys
import tempfile
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
import transformers

GOLDEN = Path(__file__).parent / "golden"
LENGTHS = (90, 41)  # more than a cache block of 64 and four windows; about two windows
VOCAB = 100
WINDOW = 20
COMMON = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512, "pad_token_id": None, "bos_token_id": None,
    "eos_token_id": None, "attn_implementation": "eager", "experts_implementation": "eager",
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 1000.0}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    "rope_theta": 1000.0,
}  # fmt: skip
PLAIN = {"rope_type": "default", "rope_theta": 1000.0}
WIDE = {"hidden_size": 64, "num_attention_heads": 4}  # heads of 16 values, where their size is not given
COHERE = {**WIDE, "intermediate_size": 64, "logit_scale": 0.3, "layer_norm_eps": 1e-5, "rope_parameters": PLAIN}
MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
LINEAR_HEADS = {
    "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_num_key_heads": 3, "linear_num_value_heads": 6,
}  # fmt: skip
MROPE = {**PLAIN, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
ROUTED = {
    "n_routed_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 2, "first_k_dense_replace": 1,
    "routed_scaling_factor": 1.7, "norm_topk_prob": True, "intermediate_size": 64, "n_group": 1, "topk_group": 1,
    "tie_word_embeddings": False,
}  # fmt: skip
LATENT = {
    "kv_lora_rank": 64, "qk_nope_head_dim": 32, "qk_rope_head_dim": 16, "v_head_dim": 32, "num_attention_heads": 5,
    "num_key_value_heads": 5, "head_dim": 16, "scoring_func": "sigmoid",
}  # fmt: skip
GRANITE = {
    "embedding_multiplier": 3.0, "logits_scaling": 0.5, "residual_multiplier": 0.4, "attention_multiplier": 0.15,
    "rope_parameters": PLAIN,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "rope_theta": 1000.0, "short_factor": [1.0, 1.5, 2.0, 2.5], "long_factor": [1.0, 3.0, 6.0, 12.0],
}  # fmt: skip
YARN_LATENT = {**YARN, "mscale": 0.7, "mscale_all_dim": 0.7}
GEMMA4 = {
    "num_attention_heads": 4, "intermediate_size": 32, "sliding_window": WINDOW, "final_logit_softcapping": 1.5, "head_dim": 32,
    "global_head_dim": 64, "hidden_size_per_layer_input": 0, "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 5000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
    },
}  # fmt: skip
# So many heads and tokens that no row is near to choosing another token: by 4e-4 of the highest score.
INDEXED = {"q_lora_rank": 32, "index_topk": 22, "index_head_dim": 32, "index_n_heads": 16}

# name: (class of the model, what its configuration has besides COMMON)
MODELS = {
    "llama": ("Llama", {"hidden_size": 64, "intermediate_size": 64, "rope_parameters": LLAMA3, "tie_word_embeddings": False}),
    "llama-linear": ("Llama", {"rope_parameters": {**PLAIN, "rope_type": "linear", "factor": 4.0}, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {**WIDE, "rope_parameters": YARN, "tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {
        "rope_parameters": {**YARN, "beta_fast": 2.0, "beta_slow": 0.25, "attention_factor": 1.3}, "tie_word_embeddings": True,
    }),
    "qwen3moe": ("Qwen3Moe", {**MOE, "norm_topk_prob": True, "rope_parameters": PLAIN}),
    "command-r": ("Cohere", COHERE),
    "command-r-plus": ("Cohere", {**COHERE, "use_qk_norm": True}),
    "cohere2": ("Cohere2", {
        **COHERE, "num_hidden_layers": 4, "intermediate_size": 32, "sliding_window": WINDOW, "rotary_pct": 1.0,
    }),
    "cohere2moe": ("Cohere2Moe", {
        **COHERE, "num_hidden_layers": 3, "intermediate_size": 32, "sliding_window": WINDOW, "num_experts": 5,
        "num_experts_per_tok": 2, "num_shared_experts": 2, "expert_selection_fn": "sigmoid", "prefix_dense_intermediate_size": 64,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"], "mlp_layer_types": ["dense", "sparse", "sparse"],
    }),
    "gemma2": ("Gemma2", {
        "num_attention_heads": 4, "intermediate_size": 64, "sliding_window": WINDOW, "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5,
    }),
    "gemma3": ("Gemma3", {
        "num_hidden_layers": 6, "num_attention_heads": 4, "intermediate_size": 64, "sliding_window": WINDOW,
        "query_pre_attn_scalar": 16, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 5000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
        },
    }),
    "gemma4": ("Gemma4", {
        **GEMMA4, "enable_moe_block": True, "num_experts": 5, "top_k_experts": 2, "moe_intermediate_size": 32,
        "attention_k_eq_v": True, "num_global_key_value_heads": 1,
    }),
    "gemma4-dense": ("Gemma4", {**GEMMA4, "num_attention_heads": 2, "final_logit_softcapping": None}),
    "gemma4-e2b": ("Gemma4", {
        **GEMMA4, "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 5,
        "head_dim": 16, "global_head_dim": 32, "use_double_wide_mlp": True,
        "layer_types": ["sliding_attention", *["sliding_attention", "full_attention"] * 2], "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 64, "vocab_size_per_layer_input": VOCAB,
    }),
    "qwen2moe": ("Qwen2Moe", {
        **MOE, **WIDE, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64, "norm_topk_prob": False,
        "rope_parameters": PLAIN, "num_hidden_layers": 1,
    }),
    "qwen3next": ("Qwen3Next", {
        **MOE, "num_hidden_layers": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "norm_topk_prob": True,
        "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
        "linear_num_key_heads": 2, "linear_num_value_heads": 4, "num_attention_heads": 4, "num_experts": 4,
    }),
    "qwen35": ("Qwen3_5", {
        **LINEAR_HEADS, "num_hidden_layers": 4, "rope_parameters": MROPE, "num_attention_heads": 4, "tie_word_embeddings": False,
    }),
    "qwen35moe": ("Qwen3_5Moe", {
        **MOE, **LINEAR_HEADS, "num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"],
        "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "rope_parameters": MROPE, "num_attention_heads": 4,
        "num_experts": 4, "linear_num_value_heads": 9, "tie_word_embeddings": False,
    }),
    "glm4moe": ("Glm4Moe", {
        **ROUTED, "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}, "attention_bias": True, "use_qk_norm": True,
        "num_hidden_layers": 3,
    }),
    "minimax-m2": ("MiniMaxM2", {
        "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 64, "rotary_dim": 8,
        "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}, "tie_word_embeddings": False,
    }),
    "dots1": ("Dots1", {
        **ROUTED, "rope_parameters": PLAIN, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "num_experts_per_tok": 3,
        "layer_types": ["full_attention"] * 2,
    }),
    "ernie4_5-moe": ("Ernie4_5_Moe", {
        "moe_num_experts": 5, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 2, "moe_layer_start_index": 1,
        "moe_layer_interval": 1, "intermediate_size": 128, "rope_parameters": PLAIN, "tie_word_embeddings": True,
    }),
    "hy_v3": ("HYV3", {
        "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_shared_experts": 1, "intermediate_size": 64,
        "router_scaling_factor": 1.7, "rope_parameters": PLAIN, "tie_word_embeddings": False,
    }),
    "mimo2": ("MiMoV2Flash", {
        "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 4, "topk_group": 2,
        "intermediate_size": 64, "head_dim": 32, "v_head_dim": 16, "sliding_window": WINDOW,
        "layer_types": ["full_attention", "sliding_attention"], "attention_value_scale": 0.6, "rope_parameters": {
            "full_attention": {**PLAIN, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 300.0, "partial_rotary_factor": 0.5},
        },
    }),
    "bailingmoe2": ("Glm4Moe", {
        **ROUTED, "rope_parameters": {**PLAIN, "partial_rotary_factor": 0.5}, "attention_bias": False, "use_qk_norm": True,
        "num_nextn_predict_layers": None,
        "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "n_shared_experts": 1,
    }),
    "llama4": ("Llama4", {
        "num_hidden_layers": 4, "intermediate_size": 32, "intermediate_size_mlp": 64, "num_local_experts": 4,
        "num_experts_per_tok": 2, "interleave_moe_layer_step": 2, "rope_parameters": LLAMA3, "attention_chunk_size": 24,
        "floor_scale": 10, "attn_scale": 0.4,
    }),
    "deepseek2": ("DeepseekV3", {
        **ROUTED, **LATENT, "num_hidden_layers": 2, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "q_lora_rank": 32,
        "rope_parameters": YARN_LATENT,
    }),
    "deepseek2-lite": ("DeepseekV2", {
        **ROUTED, **LATENT, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": None, "rope_parameters": YARN_LATENT,
        "qk_rope_head_dim": 32,  # so that a cache of 8 bits can hold its rows
        "topk_method": "greedy", "scoring_func": "softmax", "norm_topk_prob": False,
    }),
    "deepseek2-v2": ("DeepseekV2", {
        **ROUTED, **LATENT, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32,
        "rope_parameters": YARN_LATENT, "first_k_dense_replace": 0,
        "n_routed_experts": 8, "n_group": 4, "topk_group": 1, "topk_method": "group_limited_greedy", "scoring_func": "softmax",
        "norm_topk_prob": False,
    }),
    "deepseek2-flash": ("Glm4MoeLite", {**ROUTED, **LATENT, "q_lora_rank": 32, "rope_parameters": PLAIN, "v_head_dim": 64}),
    "mistral4": ("Mistral4", {
        **ROUTED, **LATENT, "head_dim": 48, "q_lora_rank": 32, "routed_scaling_factor": 1.0, "scoring_func": "softmax",
        "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3},
    }),
    "deepseek32": ("DeepseekV32", {
        **ROUTED, **LATENT, **INDEXED, "n_routed_experts": 8, "n_group": 4, "topk_group": 2, "rope_parameters": YARN_LATENT,
    }),
    "glm-dsa": ("GlmMoeDsa", {
        **ROUTED, **LATENT, **INDEXED, "index_topk": 23, "num_hidden_layers": 3, "v_head_dim": 64, "rope_parameters": PLAIN,
        "indexer_types": ["full", "shared", "full"],
    }),
    "kimi-linear": ("KimiLinear", {
        **LATENT, "num_attention_heads": 4, "num_key_value_heads": 4, "layer_types": ["linear_attention", "full_attention"],
        "linear_head_dim": 32, "linear_num_heads": 4, "num_local_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
        "n_shared_experts": 1, "routed_scaling_factor": 1.7, "intermediate_size": 64, "tie_word_embeddings": False,
    }),
    "bailingmoe3": ("BailingHybrid", {
        **LATENT, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 32, "head_dim": 32, "layer_group_size": 2,
        "num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 2, "n_group": 4,
        "topk_group": 2, "routed_scaling_factor": 1.7, "intermediate_size": 64, "first_k_dense_replace": 1,
        "tie_word_embeddings": False, "kda_lower_bound": -3.0, "rope_parameters": PLAIN, "num_mtp_layers": 0,
    }),
    # As few rounds as these, and so large a least weight, that they count.
    "deepseek4": ("DeepseekV4", {
        "hidden_size": 64, "num_attention_heads": 10, "num_key_value_heads": 1, "head_dim": 32, "partial_rotary_factor": 0.5,
        "o_groups": 5, "o_lora_rank": 32, "q_lora_rank": 32, "num_hidden_layers": 3, "sliding_window": WINDOW,
        "layer_types": ["compressed_sparse_attention", "sliding_attention", "heavily_compressed_attention"],
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16}, "index_n_heads": 8,
        "index_head_dim": 32, "index_topk": 6, "mlp_layer_types": ["hash_moe", "moe", "moe"], "n_routed_experts": 8,
        "num_experts_per_tok": 2, "intermediate_size": 32, "moe_intermediate_size": 32, "routed_scaling_factor": 1.7,
        "swiglu_limit": 1.0, "hc_sinkhorn_iters": 2, "hc_eps": 0.05, "rope_theta": 1000.0, "compress_rope_theta": 300.0,
        "rope_parameters": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    }),
    "glm5-next": ("Glm5Next", {
        **LATENT, "hidden_size": 64, "q_lora_rank": 32, "qk_rope_head_dim": 0, "v_head_dim": 64, "num_hidden_layers": 3,
        "layer_types": ["linear_attention", "indexed_attention", "indexed_attention"], "linear_head_dim": 32, "linear_num_heads": 5,
        "linear_lower_bound": -3.0, "indexer_types": ["full", "full", "shared"], "index_n_heads": 16, "index_head_dim": 32,
        "index_topk": 24, "index_kpool": 4, "mlp_layer_types": ["dense", "sparse", "sparse"], "n_routed_experts": 5,
        "num_experts_per_tok": 2, "intermediate_size": 64, "moe_intermediate_size": 32, "n_shared_experts": 2,
        "routed_scaling_factor": 1.7, "swiglu_limit": 1.0, "hc_sinkhorn_iters": 2, "hc_eps": 0.05, "tie_word_embeddings": False,
    }),
    "smollm3": ("SmolLM3", {
        "num_hidden_layers": 4, "intermediate_size": 32, "num_attention_heads": 4, "rope_parameters": PLAIN,
        "tie_word_embeddings": True,
    }),
    "olmo2": ("Olmo2", {**WIDE, "num_hidden_layers": 1, "intermediate_size": 32, "rope_parameters": PLAIN}),
    "olmo3": ("Olmo3", {
        **WIDE, "intermediate_size": 32, "sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"full_attention": YARN, "sliding_attention": PLAIN},
    }),
    "granite": ("Granite", {**WIDE, **GRANITE, "intermediate_size": 32}),
    "granitemoe": ("GraniteMoeShared", {
        **WIDE, **GRANITE, "intermediate_size": 32, "num_local_experts": 5, "num_experts_per_tok": 2,
        "shared_intermediate_size": 32, "num_hidden_layers": 1,
    }),
    "phi3": ("Phi3", {
        **WIDE, "intermediate_size": 32, "original_max_position_embeddings": 32, "tie_word_embeddings": False,
        "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 32, "partial_rotary_factor": 0.5},
    }),
    "phi3-short": ("Phi3", {
        **WIDE, "num_hidden_layers": 1, "intermediate_size": 32, "original_max_position_embeddings": 512,
        "rope_parameters": {**LONGROPE, "original_max_position_embeddings": 512, "partial_rotary_factor": 0.5},
    }),
    "mistral3": ("Ministral3", {
        **WIDE, "intermediate_size": 32, "rope_parameters": {
            **YARN, "mscale": 1.0, "mscale_all_dim": 0.6, "beta_fast": 2.0, "beta_slow": 0.25, "llama_4_scaling_beta": 0.5,
        },
    }),
    "gpt-oss": ("GptOss", {
        "num_hidden_layers": 2, "intermediate_size": 64, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": WINDOW,
        "rope_parameters": {**YARN, "truncate": False, "beta_fast": 8.0}, "layer_types": ["sliding_attention", "full_attention"],
        "tie_word_embeddings": False, "swiglu_limit": 7.0,
    }),
}  # fmt: skip
IN_EIGHT_BITS = "deepseek2-lite"  # of which is recorded, too, what it gives with latent rows of 8 bits
WITH_TEXT_CONFIG = ("Gemma3", "Gemma4", "Qwen3_5", "Qwen3_5Moe", "Llama4", "Glm5Next")
# Of which there is no class for texts alone: what sees their images is as small as it can be.
SEEING = {"Glm5Next": {
    "depth": 1, "hidden_size": 16, "num_heads": 1, "intermediate_size": 16, "out_hidden_size": 64,
    "projection_intermediate_size": 16,
}}  # fmt: skip
PLUS_ONE = ("Gemma2", "Gemma3", "Qwen3Next", "Qwen3_5", "Qwen3_5Moe")  # whose norms multiply by 1 + weight


def values_of(name, shape, kind, rng):
    if name.endswith("A_log"):  # decays exp(-exp(A_log) * softplus(...)) from nearly 1 to a tenth
        return rng.uniform(-3, 0.5, shape)
    if "sinks" in name:
        return rng.normal(1, 1, shape)
    if "norm" in name:
        return rng.uniform(-0.5, 0.5, shape) + (0 if kind in PLUS_ONE and "linear_attn" not in name else 1)
    if len(shape) == 1 and "scal" in name:  # factors of experts, layers and a router's input
        return rng.uniform(0.5, 1.5, shape)
    if "e_score_correction_bias" in name:  # of sigmoids, or of probabilities
        return rng.normal(0, 0.3, shape)
    if "bias" in name or name.endswith("base"):
        return rng.normal(0, 0.7, shape)
    if name.endswith("tid2eid"):  # experts that are not the same
        return np.array([rng.permutation(8)[: shape[1]] for _ in range(shape[0])], float)
    columns = shape[-2] if kind in ("GptOss", "Llama4") and "experts" in name else shape[1] if "conv1d" not in name else 1
    size = 3 if "q_proj" in name or "router" in name or "mlp.gate.weight" in name else 1  # so that softmax chooses
    if kind == "GptOss" and "gate_up" in name:
        size = 4  # so that some values are clamped
    return size * rng.standard_normal(shape) / np.sqrt(columns)


def model_of(name):
    kind, more = MODELS[name]
    kind_of_config = f"{kind}TextConfig" if kind in WITH_TEXT_CONFIG else f"{kind}Config"
    config = getattr(transformers, kind_of_config)(**{**COMMON, **more})
    if kind in SEEING:
        config = getattr(transformers, f"{kind}Config")(text_config=config.to_dict(), vision_config=SEEING[kind])
    of_texts = "ForConditionalGeneration" if kind in SEEING else "ForCausalLM"
    model, rng = getattr(transformers, f"{kind}{of_texts}")(config).eval(), np.random.default_rng(0)
    with torch.no_grad():
        stored = model.state_dict().keys()  # biases of routers are buffers, and so are others that no folder has
        buffers = [(key, buffer) for key, buffer in model.named_buffers() if key in stored]
        for key, parameter in [*model.named_parameters(), *buffers]:
            parameter.copy_(torch.from_numpy(values_of(key, tuple(parameter.shape), kind, rng)).half())
    return model


def half(rows):
    return rows.half().to(rows.dtype)


def eight_bits(rows):
    """Blocks of 32 as int8 and a float16 scale."""
    blocks = rows.reshape(*rows.shape[:-1], -1, 32)
    scales = half(blocks.abs().amax(-1, keepdim=True) / 127)
    return (torch.round(blocks / scales) * scales).reshape(rows.shape)


def round_cache(model, rounded_rows=half):
    """From now on this kind of model's attention sees keys and values that have been float16. rounded_rows: how latent rows are
    rounded.
    """
    module = sys.modules[type(model).__module__]
    kept_keys = transformers.DynamicCache.update_indexer
    if kept_keys.__name__ != "round_indexer":  # those of the indexer, which the cache keeps

        def round_indexer(cache, keys, layer):
            packed = keys.shape[-1] % 2  # with gates, and whether they count: what GLM-5.3-Flash makes its keys of later
            return kept_keys(cache, keys if packed else half(keys), layer)

        transformers.DynamicCache.update_indexer = round_indexer
    if hasattr(module, "DeepseekV4HCACache"):  # whose indexer keeps keys of entries
        kept_entries = module.DeepseekV4HCACache.update_compressor_states
        if kept_entries.__name__ != "round_entries":

            def round_entries(cache, name, entries):
                return kept_entries(cache, name, half(entries))

            module.DeepseekV4HCACache.update_compressor_states = round_entries
    if hasattr(module, "Glm5NextTextIndexer"):  # which keeps keys of several tokens together
        pool = module.Glm5NextTextIndexer.get_pooled_states
        if pool.__name__ != "round_pools":

            def round_pools(indexer, packed_states):
                keys, *others = pool(indexer, packed_states)
                return half(keys), *others

            module.Glm5NextTextIndexer.get_pooled_states = round_pools
    layers = getattr(model.model, "language_model", model.model).layers
    for layer in layers:
        if hasattr(layer.self_attn, "expand_kv"):  # what is kept is a latent row and a rotated key
            expand = layer.self_attn.expand_kv
            layer.self_attn.expand_kv = lambda *kept, expand=expand: expand(*map(rounded_rows, kept))
    if any(hasattr(layer.self_attn, "expand_kv") for layer in layers):
        return
    true = module.eager_attention_forward
    if true.__name__ != "rounded":

        def rounded(layer, query, key, value, *args, **named):
            return true(layer, query, half(key), half(value), *args, **named)

        module.eager_attention_forward = rounded


def describe(folder, path):
    """The folder's config.json, and the shapes of its tensors."""
    with safetensors.safe_open(folder / "model.safetensors", "np") as file:
        shapes = {name: list(file.get_slice(name).get_shape()) for name in sorted(file.keys())}
    config = json.loads((folder / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("transformers_version", "dtype")}
    config = {key: value for key, value in config.items() if value is not None or key == "q_lora_rank"}  # None: without one
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in config.items()]
    tensors = [f"{json.dumps(name)}: {json.dumps(shape)}" for name, shape in shapes.items()]
    path.write_text('{"config": {\n' + ",\n".join(lines) + '\n}, "tensors": {\n' + ",\n".join(tensors) + "\n}}\n")


def temper(found):
    """The converter forgets how queries grow with their position, which it writes for Ministral 3 and Mistral Large 3."""
    true = found.set_gguf_parameters

    def set_gguf_parameters(self):
        true(self)
        self.gguf_writer.add_attn_temperature_scale(self.rope_parameters["llama_4_scaling_beta"])
        self.gguf_writer.add_attn_temperature_length(self.rope_parameters["original_max_position_embeddings"])

    found.set_gguf_parameters = set_gguf_parameters
    return found


def temper_all(found):
    """The converter leaves out of Llama 4 what llama.cpp takes as given: chunks of 8,192 tokens, after which queries grow."""
    true = found.set_gguf_parameters

    def set_gguf_parameters(self):
        true(self)
        self.gguf_writer.add_sliding_window(self.hparams["attention_chunk_size"])
        self.gguf_writer.add_attn_temperature_scale(self.hparams["attn_scale"])
        self.gguf_writer.add_attn_temperature_length(self.hparams["floor_scale"])

    found.set_gguf_parameters = set_gguf_parameters
    return found


def with_floats(found):
    """The converter takes it that experts have 4 bits, and says so of the file."""
    from conversion.base import LazyTorchTensor, TextModel

    def write(self, layer, matrix, key):
        names = [f"layers.{layer}.ffn.experts.{expert}.{matrix}.weight" for expert in range(self.hparams["n_routed_experts"])]
        data = np.stack([LazyTorchTensor.to_eager(self.model_tensors[name]()).half().numpy() for name in names])
        self.gguf_writer.add_tensor(self.format_tensor_name(key, layer), data)
        return names

    found._write_mxfp4_expert_tensor, found.prepare_tensors = write, TextModel.prepare_tensors
    return found


def as_released(name, folder):
    """What the converter wants to read and transformers does not write."""
    path, config = folder / "config.json", json.loads((folder / "config.json").read_text())
    if name == "mimo2":
        kinds, ropes = config["layer_types"], config.pop("rope_parameters")
        config |= {
            "swa_head_dim": config["head_dim"], "swa_num_attention_heads": config["num_attention_heads"],
            "swa_v_head_dim": config["v_head_dim"], "swa_num_key_value_heads": 2 * config["num_key_value_heads"],
            "hybrid_layer_pattern": [int(kind == "sliding_attention") for kind in kinds], "topk_method": "noaux_tc",
            "scoring_func": "sigmoid", "layernorm_epsilon": config["rms_norm_eps"], "partial_rotary_factor": 0.5,
            "model_type": "mimo_v2", "rope_theta": ropes["full_attention"]["rope_theta"],
            "swa_rope_theta": ropes["sliding_attention"]["rope_theta"],
        }  # fmt: skip
    if name == "kimi-linear":
        kinds = list(enumerate(config["layer_types"], 1))
        config["linear_attn_config"] = {
            "full_attn_layers": [number for number, kind in kinds if kind == "full_attention"],
            "kda_layers": [number for number, kind in kinds if kind == "linear_attention"], "head_dim": config["linear_head_dim"],
            "num_heads": config["linear_num_heads"], "short_conv_kernel_size": config["linear_conv_kernel_dim"],
        }  # fmt: skip
        config |= {"first_k_dense_replace": config["mlp_layer_types"].count("dense"), "moe_router_activation_func": "sigmoid"}
    if name == "bailingmoe3":
        config |= {
            "head_dim": config["linear_head_dim"], "n_group": config["num_expert_group"],
            "norm_topk_prob": config["moe_renormalize"],
            "architectures": ["BailingMoeV3ForCausalLM"], "model_type": "bailing_moe_v3",  # which transformers does not know
            "no_kda_lora": True, "score_function": "sigmoid",
            "gated_attention_proj_granularity_type": "head_wise",
            "moe_shared_expert_intermediate_size": config["num_shared_experts"] * config["moe_intermediate_size"],
        }  # fmt: skip
    if name == "glm5-next":
        config |= {
            "architectures": ["Glm5NextForConditionalGeneration"], "mla_use_nope": True, "scoring_func": "sigmoid",
            "first_k_dense_replace": config["mlp_layer_types"].count("dense"), "linear_attn_config": {
                "head_dim": config["linear_head_dim"], "num_heads": config["linear_num_heads"],
                "short_conv_kernel_size": config["linear_conv_kernel_dim"], "gate_lower_bound": config["linear_lower_bound"],
            },
        }  # fmt: skip
    if name == "deepseek4":
        rates = {"sliding_attention": 0, **config["compress_rates"]}
        yarn = config["rope_parameters"]["compress"]
        config |= {
            "compress_ratios": [rates[kind] for kind in config["layer_types"]], "qk_rope_head_dim": config["head_dim"] // 2,
            "num_hash_layers": config["mlp_layer_types"].count("hash_moe"), "num_nextn_predict_layers": 0,
            "rope_scaling": {"type": "yarn", **{key: yarn[key] for key in ("factor", "original_max_position_embeddings")}},
        }  # fmt: skip
        del config["rope_parameters"]
        found = safetensors.torch.load_file(folder / "model.safetensors")
        halves = {key: values.half() for key, values in found.items() if key.endswith(".weight") and values.dim() > 1}
        safetensors.torch.save_file(found | halves, folder / "model.safetensors", {"format": "pt"})
    if name == "bailingmoe2":
        bailing(folder, config)
    path.write_text(json.dumps(config))


def bailing(folder, config):
    """transformers has no class for Ling 2: GLM-4.5's computes the same under other names."""
    config["architectures"], config["model_type"] = ["BailingMoeV2ForCausalLM"], "bailing_moe"
    for theirs, glm in {"num_experts": "n_routed_experts", "num_shared_experts": "n_shared_experts"}.items():
        config[theirs] = config.pop(glm)
    config |= {
        "score_function": "sigmoid", "use_bias": False, "use_qkv_bias": config.pop("attention_bias"), "partial_rotary_factor": 0.5,
        "moe_router_enable_expert_bias": True, "rope_theta": config.pop("rope_parameters")["rope_theta"], "rope_scaling": None,
        "moe_shared_expert_intermediate_size": config["moe_intermediate_size"],
    }  # fmt: skip
    found = safetensors.torch.load_file(folder / "model.safetensors")
    names = {
        "embed_tokens": "word_embeddings", "self_attn.o_proj": "attention.dense", "self_attn.q_norm": "attention.query_layernorm",
        "self_attn.k_norm": "attention.key_layernorm", "gate.e_score_correction_bias": "gate.expert_bias",
    }  # fmt: skip
    for layer in range(config["num_hidden_layers"]):
        parts = [found.pop(f"model.layers.{layer}.self_attn.{part}_proj.weight") for part in "qkv"]
        found[f"model.layers.{layer}.attention.query_key_value.weight"] = torch.cat(parts)
    for glm, theirs in names.items():
        found = {name.replace(glm, theirs): values for name, values in found.items()}
    safetensors.torch.save_file(found, folder / "model.safetensors", {"format": "pt"})


def name_dense_layers(folder):
    """transformers calls the feed-forward network of Kimi Linear's layers without experts block_sparse_moe, like the others'."""
    found = safetensors.torch.load_file(folder / "model.safetensors")
    named = {
        key.replace("block_sparse_moe", "mlp")
        if ".block_sparse_moe." in key and key.split(".")[4].endswith("_proj")
        else key: value
        for key, value in found.items()
    }
    safetensors.torch.save_file(named, folder / "model.safetensors", {"format": "pt"})


def name_as_deepseek(folder):
    """transformers half turns the names of DeepSeek-V4's released folders into its own."""
    others = {
        r"^model\.": "", "embed_tokens": "embed", r"hc_head\.hc_": "hc_head_", r"\.attn\.norm\.": ".attn.kv_norm.",
    }  # fmt: skip
    found = safetensors.torch.load_file(folder / "model.safetensors")
    for theirs, released in others.items():
        found = {re.sub(theirs, released, name): values for name, values in found.items()}
    safetensors.torch.save_file(found, folder / "model.safetensors", {"format": "pt"})


def keep_text(folder):
    """The text model of a multimodal folder, as one of its own."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    names = [name.replace("ConditionalGeneration", "CausalLM") for name in config["architectures"]]
    path.write_text(json.dumps(config["text_config"] | {"architectures": names}))
    found = safetensors.torch.load_file(folder / "model.safetensors")
    found = {name.replace("language_model.", ""): values for name, values in found.items() if "visual" not in name}
    safetensors.torch.save_file(found, folder / "model.safetensors", {"format": "pt"})


def with_sight(config):
    """The other way: config.json of the multimodal folder."""
    (kind,) = (kind for kind in SEEING if config["architectures"] == [f"{kind}ForCausalLM"])
    names = [name.replace("CausalLM", "ConditionalGeneration") for name in config["architectures"]]
    return {
        "architectures": names, "model_type": config["model_type"].removesuffix("_text"), "text_config": config,
        "vision_config": SEEING[kind], "tie_word_embeddings": config.get("tie_word_embeddings", False),
    }  # fmt: skip


def convert(model, converter, path):
    """Writes the model as llama.cpp's converter does, but for the vocabulary, which it has none of."""
    if str(converter) not in sys.path:
        sys.path[:0] = [str(converter), str(converter / "gguf-py")]
    import conversion
    import gguf

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "tiny"  # the file names the model after it
        model.save_pretrained(folder)
        if path.stem == "bailingmoe2":
            as_released(path.stem, folder)
        if path.stem == "kimi-linear":
            name_dense_layers(folder)
        if path.stem == "deepseek4":
            name_as_deepseek(folder)
        if path.stem == "glm5-next":
            keep_text(folder)
        describe(folder, GOLDEN / f"{path.stem}.json")
        if path.stem in ("mimo2", "kimi-linear", "bailingmoe3", "deepseek4", "glm5-next"):
            as_released(path.stem, folder)
        vocab = {"model": {"vocab": {str(token): token for token in range(VOCAB)}}, "added_tokens": []}
        (folder / "tokenizer.json").write_text(json.dumps(vocab))  # Gemma's part of the converter counts it
        config = json.loads((folder / "config.json").read_text())
        if config["model_type"] == "mistral4":  # known as the text part of a multimodal model
            found = temper(conversion.get_model_class("Mistral3ForConditionalGeneration").Mistral4Model)
        else:
            found = conversion.get_model_class(config["architectures"][0])
        if path.stem == "llama4":
            found = temper_all(found)
        if path.stem == "deepseek4":
            found = with_floats(found)
        for kind in (found, getattr(found, "Ministral3Model", found)):  # which does the work of another class
            kind.set_vocab, kind.no_mtp = lambda self: None, True
        with torch.inference_mode():
            found(folder, gguf.LlamaFileType.MOSTLY_F16, path, use_temp_file=False).write()


# name: (head size, base, context, transformers' rope parameters) of released models
ROPES = {
    "Llama-3.1-8B": (128, 500000.0, 131072, {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }),
    "Llama-3.2-1B": (64, 500000.0, 131072, {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }),
    "Qwen2.5-72B": (128, 1000000.0, 32768, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
    "gpt-oss-20b": (64, 150000.0, 131072, {
        "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
        "original_max_position_embeddings": 4096,
    }),
    "gemma-3-4b": (256, 1000000.0, 131072, {"rope_type": "linear", "factor": 8.0}),
}  # fmt: skip


def write_ropes():
    """golden/ropes.json: per name the parameters, the frequencies and the scale of the rotation."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    recorded = {}
    for name, (head_size, base, context, parameters) in ROPES.items():
        parameters = {**parameters, "rope_theta": base}
        config = transformers.LlamaConfig(head_dim=head_size, max_position_embeddings=context, rope_parameters=parameters)
        frequencies, scale = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, "cpu")
        recorded[name] = {"head_size": head_size, "context": context, **parameters, "scale": scale}
        recorded[name]["frequencies"] = [float(f"{frequency:.9g}") for frequency in frequencies.tolist()]
    (GOLDEN / "ropes.json").write_text(json.dumps(recorded, indent=0) + "\n")


def main():
    write_ropes()
    converter, names = Path(sys.argv[1]), sys.argv[2:] or MODELS
    for name in names:
        model, rng, recorded = model_of(name), np.random.default_rng(1), {}
        round_cache(model)
        if name == IN_EIGHT_BITS:
            rounded = model_of(name)
            round_cache(rounded, eight_bits)
        for i, length in enumerate(LENGTHS):
            tokens = rng.integers(0, VOCAB, length)
            with torch.no_grad():
                logits = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
            recorded |= {f"tokens{i}": tokens.astype(np.uint8), f"logits{i}": logits.astype(np.float16)}
            if name == IN_EIGHT_BITS:
                with torch.no_grad():
                    recorded[f"rounded{i}"] = rounded(torch.from_numpy(tokens)[None]).logits[0].numpy().astype(np.float16)
        np.savez(GOLDEN / f"{name}.npz", **recorded)
        convert(model, converter, GOLDEN / f"{name}.gguf")
        print(name, (GOLDEN / f"{name}.gguf").stat().st_size, (GOLDEN / f"{name}.npz").stat().st_size, logits.std())


if __name__ == "__main__":
    sys.exit(main())
