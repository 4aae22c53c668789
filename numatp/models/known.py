"""Sizes of known models, from the config.json of each on the Hugging Face hub; shapes.py makes files of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    architecture: str
    vocab: int
    metadata: dict[str, int | float | list[int]]  # without the architecture's prefix
    tied: bool = False
    optional: tuple[str, ...] = ()  # tensors that not every model of the architecture has: the first of each kind


# Of six layers the last sees all tokens, with heads of 512 whose keys are the values too.
GEMMA4: dict[str, int | float | list[int]] = {
    "attention.key_length": 512, "attention.value_length": 512, "attention.key_length_swa": 256, "attention.value_length_swa": 256,
    "attention.sliding_window": 1024, "rope.freq_base_swa": 10000.0, "context_length": 262144,
    "attention.layer_norm_rms_epsilon": 1e-6,
}  # fmt: skip
# Of E2B and E4B.
GEMMA4_SMALL: dict[str, int | float | list[int]] = {
    **GEMMA4, "attention.sliding_window": 512, "context_length": 131072, "embedding_length_per_layer_input": 256,
    "attention.head_count": 8,
}  # fmt: skip
LING: dict[str, int | float | list[int]] = {
    "attention.key_length": 128, "rope.dimension_count": 64, "expert_count": 256, "expert_used_count": 8, "expert_shared_count": 1,
    "expert_group_count": 8, "expert_group_used_count": 4, "context_length": 32768, "attention.layer_norm_rms_epsilon": 1e-6,
}  # fmt: skip
LING_OPTIONAL = ("blk.0.exp_probs_b.bias", "blk.0.attn_q_norm.weight")
LLAMA4: dict[str, int | float | list[int]] = {
    "embedding_length": 5120, "block_count": 48, "attention.head_count": 40, "attention.head_count_kv": 8,
    "attention.key_length": 128, "feed_forward_length": 16384, "expert_used_count": 1, "expert_feed_forward_length": 8192,
    "attention.layer_norm_rms_epsilon": 1e-5,
}  # fmt: skip
LLAMA3: dict[str, int | float | list[int]] = {
    "attention.head_count_kv": 8, "context_length": 131072, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 500000.0,
}  # fmt: skip
QWEN3: dict[str, int | float | list[int]] = {
    "attention.head_count_kv": 8, "attention.key_length": 128, "attention.value_length": 128, "context_length": 40960,
    "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1000000.0,
}  # fmt: skip
SHAPES = {
    "qwen2.5-72b": Shape("qwen2", 152064, {
        "embedding_length": 8192, "block_count": 80, "attention.head_count": 64, "attention.head_count_kv": 8,
        "feed_forward_length": 29568, "context_length": 32768, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "qwen3-235b-a22b": Shape("qwen3moe", 151936, {
        "embedding_length": 4096, "block_count": 94, "attention.head_count": 64, "attention.head_count_kv": 4,
        "attention.key_length": 128, "expert_count": 128, "expert_used_count": 8, "expert_feed_forward_length": 1536,
        "context_length": 40960, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "qwen3-30b-a3b": Shape("qwen3moe", 151936, {
        "embedding_length": 2048, "block_count": 48, "attention.head_count": 32, "attention.head_count_kv": 4,
        "attention.key_length": 128, "expert_count": 128, "expert_used_count": 8, "expert_feed_forward_length": 768,
        "context_length": 40960, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "qwen3-next-80b-a3b": Shape("qwen3next", 151936, {
        "embedding_length": 2048, "block_count": 48, "attention.head_count": 16, "attention.head_count_kv": 2,
        "attention.key_length": 256, "rope.dimension_count": 64, "full_attention_interval": 4, "ssm.state_size": 128,
        "ssm.group_count": 16, "ssm.time_step_rank": 32, "ssm.inner_size": 4096, "ssm.conv_kernel": 4,
        "expert_count": 512, "expert_used_count": 10, "expert_feed_forward_length": 512, "expert_shared_feed_forward_length": 512,
        "context_length": 262144, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "qwen3.5-4b": Shape("qwen35", 248320, {
        "embedding_length": 2560, "block_count": 32, "attention.head_count": 16, "attention.head_count_kv": 4,
        "attention.key_length": 256, "rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0],
        "full_attention_interval": 4, "ssm.state_size": 128,
        "ssm.group_count": 16, "ssm.time_step_rank": 32, "ssm.inner_size": 4096, "ssm.conv_kernel": 4,
        "feed_forward_length": 9216,
        "context_length": 262144, "attention.layer_norm_rms_epsilon": 1e-6,
    }, tied=True),
    "qwen3.5-27b": Shape("qwen35", 248320, {
        "embedding_length": 5120, "block_count": 64, "attention.head_count": 24, "attention.head_count_kv": 4,
        "attention.key_length": 256, "rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0],
        "full_attention_interval": 4, "ssm.state_size": 128,
        "ssm.group_count": 16, "ssm.time_step_rank": 48, "ssm.inner_size": 6144, "ssm.conv_kernel": 4,
        "feed_forward_length": 17408,
        "context_length": 262144, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "qwen3.5-35b-a3b": Shape("qwen35moe", 248320, {
        "embedding_length": 2048, "block_count": 40, "attention.head_count": 16, "attention.head_count_kv": 2,
        "attention.key_length": 256, "rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0],
        "full_attention_interval": 4, "ssm.state_size": 128,
        "ssm.group_count": 16, "ssm.time_step_rank": 32, "ssm.inner_size": 4096, "ssm.conv_kernel": 4,
        "expert_count": 256, "expert_used_count": 8, "expert_feed_forward_length": 512, "expert_shared_feed_forward_length": 512,
        "context_length": 262144, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "qwen3.5-122b-a10b": Shape("qwen35moe", 248320, {
        "embedding_length": 3072, "block_count": 48, "attention.head_count": 32, "attention.head_count_kv": 2,
        "attention.key_length": 256, "rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0],
        "full_attention_interval": 4, "ssm.state_size": 128,
        "ssm.group_count": 16, "ssm.time_step_rank": 64, "ssm.inner_size": 8192, "ssm.conv_kernel": 4,
        "expert_count": 256, "expert_used_count": 8, "expert_feed_forward_length": 1024, "expert_shared_feed_forward_length": 1024,
        "context_length": 262144, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "qwen3.5-397b-a17b": Shape("qwen35moe", 248320, {
        "embedding_length": 4096, "block_count": 60, "attention.head_count": 32, "attention.head_count_kv": 2,
        "attention.key_length": 256, "rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0],
        "full_attention_interval": 4, "ssm.state_size": 128,
        "ssm.group_count": 16, "ssm.time_step_rank": 64, "ssm.inner_size": 8192, "ssm.conv_kernel": 4,
        "expert_count": 512, "expert_used_count": 10, "expert_feed_forward_length": 1024, "expert_shared_feed_forward_length": 1024,
        "context_length": 262144, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "glm-4.6": Shape("glm4moe", 151552, {
        "embedding_length": 5120, "block_count": 92, "attention.head_count": 96, "attention.head_count_kv": 8,
        "attention.key_length": 128, "rope.dimension_count": 64, "feed_forward_length": 12288, "expert_count": 160,
        "expert_used_count": 8, "expert_feed_forward_length": 1536, "expert_shared_count": 1, "leading_dense_block_count": 3,
        "context_length": 202752, "attention.layer_norm_rms_epsilon": 1e-5,
    }, optional=("blk.0.attn_q.bias", "blk.0.attn_q_norm.weight")),
    "glm-4.5-air": Shape("glm4moe", 151552, {
        "embedding_length": 4096, "block_count": 46, "attention.head_count": 96, "attention.head_count_kv": 8,
        "attention.key_length": 128, "rope.dimension_count": 64, "feed_forward_length": 10944, "expert_count": 128,
        "expert_used_count": 8, "expert_feed_forward_length": 1408, "expert_shared_count": 1, "leading_dense_block_count": 1,
        "context_length": 131072, "attention.layer_norm_rms_epsilon": 1e-5,
    }, optional=("blk.0.attn_q.bias",)),
    "deepseek-v3": Shape("deepseek2", 129280, {
        "embedding_length": 7168, "block_count": 61, "attention.head_count": 128, "attention.kv_lora_rank": 512,
        "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64,
        "attention.q_lora_rank": 1536, "feed_forward_length": 18432, "leading_dense_block_count": 3, "expert_count": 256,
        "expert_used_count": 8, "expert_feed_forward_length": 2048, "expert_shared_count": 1,
        "context_length": 163840, "attention.layer_norm_rms_epsilon": 1e-6,
    }, optional=("blk.0.exp_probs_b.bias",)),
    "deepseek-v4-flash": Shape("deepseek4", 129280, {
        "embedding_length": 4096, "block_count": 43, "attention.head_count": 64, "attention.key_length": 512,
        "rope.dimension_count": 64, "attention.q_lora_rank": 1024, "attention.output_group_count": 8,
        "attention.output_lora_rank": 1024, "attention.indexer.head_count": 64, "attention.indexer.key_length": 128,
        "attention.indexer.top_k": 512, "attention.sliding_window": 128, "attention.compress_ratios": [0, 0, *[4, 128] * 20, 4],
        "hyper_connection.count": 4, "hyper_connection.sinkhorn_iterations": 20, "hyper_connection.epsilon": 1e-6,
        "hash_layer_count": 3, "expert_count": 256, "expert_used_count": 6, "expert_feed_forward_length": 2048,
        "expert_shared_count": 1, "expert_gating_func": 4, "swiglu_clamp_exp": 10.0, "context_length": 1048576,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "kimi-k2": Shape("deepseek2", 163840, {
        "embedding_length": 7168, "block_count": 61, "attention.head_count": 64, "attention.kv_lora_rank": 512,
        "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64,
        "attention.q_lora_rank": 1536, "feed_forward_length": 18432, "leading_dense_block_count": 1, "expert_count": 384,
        "expert_used_count": 8, "expert_feed_forward_length": 2048, "expert_shared_count": 1,
        "context_length": 131072, "attention.layer_norm_rms_epsilon": 1e-6,
    }, optional=("blk.0.exp_probs_b.bias",)),
    "deepseek-v2": Shape("deepseek2", 102400, {
        "embedding_length": 5120, "block_count": 60, "attention.head_count": 128, "attention.q_lora_rank": 1536,
        "attention.kv_lora_rank": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128,
        "rope.dimension_count": 64, "feed_forward_length": 12288, "leading_dense_block_count": 1, "expert_count": 160,
        "expert_used_count": 6, "expert_feed_forward_length": 1536, "expert_shared_count": 2, "expert_group_count": 8,
        "expert_group_used_count": 3, "context_length": 163840, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "deepseek-v2-lite": Shape("deepseek2", 102400, {
        "embedding_length": 2048, "block_count": 27, "attention.head_count": 16, "attention.kv_lora_rank": 512,
        "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64,
        "feed_forward_length": 10944, "leading_dense_block_count": 1, "expert_count": 64, "expert_used_count": 6,
        "expert_feed_forward_length": 1408, "expert_shared_count": 2,
        "context_length": 163840, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "glm-4.7-flash": Shape("deepseek2", 154880, {
        "embedding_length": 2048, "block_count": 47, "attention.head_count": 20, "attention.q_lora_rank": 768,
        "attention.kv_lora_rank": 512, "attention.key_length_mla": 256, "attention.value_length_mla": 256,
        "rope.dimension_count": 64, "feed_forward_length": 10240, "leading_dense_block_count": 1, "expert_count": 64,
        "expert_used_count": 4, "expert_feed_forward_length": 1536, "expert_shared_count": 1,
        "context_length": 202752, "attention.layer_norm_rms_epsilon": 1e-5,
    }, optional=("blk.0.exp_probs_b.bias",)),
    "deepseek-v3.2": Shape("deepseek32", 129280, {
        "embedding_length": 7168, "block_count": 61, "attention.head_count": 128, "attention.q_lora_rank": 1536,
        "attention.kv_lora_rank": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128,
        "rope.dimension_count": 64, "feed_forward_length": 18432, "leading_dense_block_count": 3, "expert_count": 256,
        "expert_used_count": 8, "expert_feed_forward_length": 2048, "expert_shared_count": 1, "expert_group_count": 8,
        "expert_group_used_count": 4, "attention.indexer.head_count": 64, "attention.indexer.key_length": 128,
        "attention.indexer.top_k": 2048, "context_length": 163840, "attention.layer_norm_rms_epsilon": 1e-6,
    }, optional=("blk.0.exp_probs_b.bias",)),
    "glm-5": Shape("glm-dsa", 154880, {
        "embedding_length": 6144, "block_count": 78, "attention.head_count": 64, "attention.q_lora_rank": 2048,
        "attention.kv_lora_rank": 512, "attention.key_length_mla": 256, "attention.value_length_mla": 256,
        "rope.dimension_count": 64, "feed_forward_length": 12288, "leading_dense_block_count": 3, "expert_count": 256,
        "expert_used_count": 8, "expert_feed_forward_length": 2048, "expert_shared_count": 1,
        "attention.indexer.head_count": 32, "attention.indexer.key_length": 128, "attention.indexer.top_k": 2048,
        "context_length": 202752, "attention.layer_norm_rms_epsilon": 1e-5,
    }, optional=("blk.0.exp_probs_b.bias",)),
    "glm-5.3-flash": Shape("glm5-next", 154880, {
        "embedding_length": 4096, "block_count": 45, "attention.head_count": 64,
        "attention.head_count_kv": [int(layer % 4 == 3) for layer in range(45)], "attention.q_lora_rank": 1536,
        "attention.kv_lora_rank": 512, "attention.key_length_mla": 256, "attention.value_length_mla": 256,
        "rope.dimension_count": 0, "attention.indexer.head_count": 32, "attention.indexer.key_length": 128,
        "attention.indexer.top_k": 2048, "attention.indexer.kpool": 4, "kda.head_dim": 128, "kda.gate_lower_bound": -5.0,
        "ssm.conv_kernel": 4, "hyper_connection.count": 4, "hyper_connection.sinkhorn_iterations": 20,
        "hyper_connection.epsilon": 1e-6, "feed_forward_length": 12288, "leading_dense_block_count": 3, "expert_count": 288,
        "expert_used_count": 8, "expert_feed_forward_length": 2048, "expert_shared_count": 1, "swiglu_clamp_exp": 10.0,
        "context_length": 1048576, "attention.layer_norm_rms_epsilon": 1e-5,
    }),
    "kimi-linear-48b-a3b": Shape("kimi-linear", 163840, {
        "embedding_length": 2304, "block_count": 27, "attention.head_count": 32,
        "attention.head_count_kv": [int(layer % 4 == 3 or layer == 26) for layer in range(27)], "attention.kv_lora_rank": 512,
        "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64, "kda.head_dim": 128,
        "ssm.conv_kernel": 4, "feed_forward_length": 9216, "leading_dense_block_count": 1, "expert_count": 256,
        "expert_used_count": 8, "expert_feed_forward_length": 1024, "expert_shared_count": 1, "context_length": 1048576,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }, optional=("blk.0.exp_probs_b.bias",)),
    "ling-3.0-flash": Shape("bailingmoe3", 157184, {
        "embedding_length": 2560, "block_count": 42, "attention.head_count": 32,
        "attention.head_count_kv": [int(layer % 6 == 5) for layer in range(42)], "attention.kv_lora_rank": 512,
        "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64, "kda.head_dim": 128,
        "kda.gate_lower_bound": -5.0, "ssm.conv_kernel": 4, "feed_forward_length": 6144, "leading_dense_block_count": 2,
        "expert_count": 512, "expert_used_count": 8, "expert_feed_forward_length": 768, "expert_shared_count": 1,
        "expert_group_count": 8, "expert_group_used_count": 4, "context_length": 262144,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }, optional=("blk.0.exp_probs_b.bias",)),
    "mistral-large-3": Shape("deepseek2", 131072, {
        "embedding_length": 7168, "block_count": 61, "attention.head_count": 128, "attention.q_lora_rank": 1536,
        "attention.kv_lora_rank": 512, "attention.key_length_mla": 192, "attention.value_length_mla": 128,
        "rope.dimension_count": 64, "feed_forward_length": 16384, "leading_dense_block_count": 3, "expert_count": 128,
        "expert_used_count": 4, "expert_feed_forward_length": 4096, "expert_shared_count": 1,
        "context_length": 262144, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "mistral-small-4": Shape("mistral4", 131072, {
        "embedding_length": 4096, "block_count": 36, "attention.head_count": 32, "attention.q_lora_rank": 1024,
        "attention.kv_lora_rank": 256, "attention.key_length_mla": 128, "attention.value_length_mla": 128,
        "rope.dimension_count": 64, "leading_dense_block_count": 0, "expert_count": 128, "expert_used_count": 4,
        "expert_feed_forward_length": 2048, "expert_shared_count": 1, "context_length": 1048576,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "minimax-m2": Shape("minimax-m2", 200064, {
        "embedding_length": 3072, "block_count": 62, "attention.head_count": 48, "attention.head_count_kv": 8,
        "attention.key_length": 128, "rope.dimension_count": 64, "expert_count": 256, "expert_used_count": 8,
        "expert_feed_forward_length": 1536, "context_length": 196608,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "mimo-v2-flash": Shape("mimo2", 152576, {
        "embedding_length": 4096, "block_count": 48, "attention.head_count": 64,
        "attention.head_count_kv": [4 if layer == 0 or layer % 6 == 5 else 8 for layer in range(48)],
        "attention.key_length": 192, "attention.value_length": 128, "rope.dimension_count": 64, "attention.sliding_window": 128,
        "attention.sliding_window_pattern": [int(layer > 0 and layer % 6 != 5) for layer in range(48)],
        "feed_forward_length": 16384, "leading_dense_block_count": 1, "expert_count": 256, "expert_used_count": 8,
        "expert_feed_forward_length": 2048, "context_length": 262144, "attention.layer_norm_rms_epsilon": 1e-5,
    }, optional=("blk.1.attn_sinks.weight",)),
    "ling-mini-2.0": Shape("bailingmoe2", 157184, {
        **LING, "embedding_length": 2048, "block_count": 20, "attention.head_count": 16, "attention.head_count_kv": 4,
        "feed_forward_length": 5120, "leading_dense_block_count": 1, "expert_feed_forward_length": 512,
    }, optional=LING_OPTIONAL),
    "ling-flash-2.0": Shape("bailingmoe2", 157184, {
        **LING, "embedding_length": 4096, "block_count": 32, "attention.head_count": 32, "attention.head_count_kv": 4,
        "feed_forward_length": 9216, "leading_dense_block_count": 1, "expert_feed_forward_length": 1024,
    }, optional=LING_OPTIONAL),
    "ling-1t": Shape("bailingmoe2", 157184, {
        **LING, "embedding_length": 8192, "block_count": 80, "attention.head_count": 64, "attention.head_count_kv": 8,
        "feed_forward_length": 18432, "leading_dense_block_count": 4, "expert_feed_forward_length": 2048,
    }, optional=LING_OPTIONAL),
    "llama-4-scout": Shape("llama4", 202048, {
        **LLAMA4, "expert_count": 16, "interleave_moe_layer_step": 1, "context_length": 10485760,
    }),
    "llama-4-maverick": Shape("llama4", 202048, {
        **LLAMA4, "expert_count": 128, "interleave_moe_layer_step": 2, "context_length": 1048576,
    }),
    "smollm3-3b": Shape("smollm3", 128256, {
        "embedding_length": 2048, "block_count": 36, "attention.head_count": 16, "attention.head_count_kv": 4,
        "feed_forward_length": 11008, "context_length": 65536, "attention.layer_norm_rms_epsilon": 1e-6,
    }, tied=True),
    "olmo-3-32b": Shape("olmo2", 100278, {
        "embedding_length": 5120, "block_count": 64, "attention.head_count": 40, "attention.head_count_kv": 8,
        "feed_forward_length": 27648, "attention.sliding_window": 4096, "context_length": 65536,
        "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "granite-3.3-8b": Shape("granite", 49159, {
        "embedding_length": 4096, "block_count": 40, "attention.head_count": 32, "attention.head_count_kv": 8,
        "feed_forward_length": 12800, "context_length": 131072, "attention.layer_norm_rms_epsilon": 1e-5, "logit_scale": 16.0,
    }, tied=True),
    "phi-4": Shape("phi3", 100352, {
        "embedding_length": 5120, "block_count": 40, "attention.head_count": 40, "attention.head_count_kv": 10,
        "feed_forward_length": 17920, "context_length": 16384, "attention.layer_norm_rms_epsilon": 1e-5,
    }),
    "ministral-3-14b": Shape("mistral3", 131072, {
        "embedding_length": 5120, "block_count": 40, "attention.head_count": 32, "attention.head_count_kv": 8,
        "attention.key_length": 128, "attention.value_length": 128, "feed_forward_length": 16384, "context_length": 262144,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }),
    "gemma-4-31b": Shape("gemma4", 262144, {
        **GEMMA4, "embedding_length": 5376, "block_count": 60, "attention.head_count": 32, "feed_forward_length": 21504,
        "attention.head_count_kv": [4 if layer % 6 == 5 else 16 for layer in range(60)],
    }, tied=True, optional=tuple(f"blk.{layer}.attn_v.weight" for layer in range(60) if layer % 6 != 5)),
    "gemma-4-26b-a4b": Shape("gemma4", 262144, {
        **GEMMA4, "embedding_length": 2816, "block_count": 30, "attention.head_count": 16, "feed_forward_length": 2112,
        "attention.head_count_kv": [2 if layer % 6 == 5 else 8 for layer in range(30)],
        "expert_count": 128, "expert_used_count": 8, "expert_feed_forward_length": 704,
    }, tied=True, optional=tuple(f"blk.{layer}.attn_v.weight" for layer in range(30) if layer % 6 != 5)),
    "gemma-4-e2b": Shape("gemma4", 262144, {
        **GEMMA4_SMALL, "embedding_length": 1536, "block_count": 35, "attention.head_count_kv": 1, "attention.shared_kv_layers": 20,
        "attention.sliding_window_pattern": 5, "feed_forward_length": [6144] * 15 + [12288] * 20,
    }, tied=True, optional=tuple(f"blk.{layer}.attn_v.weight" for layer in range(15))),
    "gemma-4-e4b": Shape("gemma4", 262144, {
        **GEMMA4_SMALL, "embedding_length": 2560, "block_count": 42, "attention.head_count_kv": 2, "attention.shared_kv_layers": 18,
        "feed_forward_length": 10240,
    }, tied=True, optional=tuple(f"blk.{layer}.attn_v.weight" for layer in range(24))),
    "command-a": Shape("cohere2", 256000, {
        "embedding_length": 12288, "block_count": 64, "attention.head_count": 96, "attention.head_count_kv": 8,
        "feed_forward_length": 36864, "attention.sliding_window": 4096, "logit_scale": 0.25, "context_length": 131072,
        "attention.layer_norm_epsilon": 1e-5,
    }, tied=True),
    "smollm2-135m": Shape("llama", 49152, {
        "embedding_length": 576, "block_count": 30, "attention.head_count": 9, "attention.head_count_kv": 3,
        "feed_forward_length": 1536, "context_length": 8192, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 100000.0,
    }, tied=True),
    "llama-3.2-1b": Shape("llama", 128256, {
        **LLAMA3, "embedding_length": 2048, "block_count": 16, "attention.head_count": 32, "feed_forward_length": 8192,
    }, tied=True),
    "llama-3.2-3b": Shape("llama", 128256, {
        **LLAMA3, "embedding_length": 3072, "block_count": 28, "attention.head_count": 24, "feed_forward_length": 8192,
    }, tied=True),
    "llama-3.1-8b": Shape("llama", 128256, {
        **LLAMA3, "embedding_length": 4096, "block_count": 32, "attention.head_count": 32, "feed_forward_length": 14336,
    }),
    "llama-3.1-70b": Shape("llama", 128256, {
        **LLAMA3, "embedding_length": 8192, "block_count": 80, "attention.head_count": 64, "feed_forward_length": 28672,
    }),
    "qwen3-0.6b": Shape("qwen3", 151936, {
        **QWEN3, "embedding_length": 1024, "block_count": 28, "attention.head_count": 16, "feed_forward_length": 3072,
    }, tied=True),
    "qwen3-8b": Shape("qwen3", 151936, {
        **QWEN3, "embedding_length": 4096, "block_count": 36, "attention.head_count": 32, "feed_forward_length": 12288,
    }),
    "qwen3-32b": Shape("qwen3", 151936, {
        **QWEN3, "embedding_length": 5120, "block_count": 64, "attention.head_count": 64, "feed_forward_length": 25600,
    }),
}  # fmt: skip


# Later models of the same shape.
SAME = {
    "qwen3-coder-next": "qwen3-next-80b-a3b", "qwen3.6-27b": "qwen3.5-27b", "qwen3.6-35b-a3b": "qwen3.5-35b-a3b",
    "deepseek-r1": "deepseek-v3", "deepseek-v3.1": "deepseek-v3", "kimi-k2-thinking": "kimi-k2", "kimi-k2.5": "kimi-k2",
    "kimi-k2.6": "kimi-k2", "glm-5.1": "glm-5", "glm-5.2": "glm-5", "glm-5.3": "glm-5", "glm-4.7": "glm-4.6",
    "minimax-m2.1": "minimax-m2", "minimax-m2.5": "minimax-m2", "mimo-v2.5": "mimo-v2-flash", "ring-mini-2.0": "ling-mini-2.0",
    "ring-flash-2.0": "ling-flash-2.0", "ring-1t": "ling-1t",
}  # fmt: skip
