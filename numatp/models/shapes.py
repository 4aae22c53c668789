"""Known models without their files: metadata and tensors as their GGUF files have them, so that a plan needs no download.

`NAME:TYPE` names one, TYPE as llama.cpp's llama-quantize calls it. Sizes are from the config.json of each model on the Hugging Face
hub. Which tensor gets which type follows llama-quantize (src/llama-quant.cpp of llama.cpp).
"""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from numatp import models
from numatp.errors import UserError
from numatp.files.gguf import GGUFFile, Metadata
from numatp.files.gguf_header import LazyArray
from numatp.files.model_file import TensorInfo
from numatp.models.spec import Spec
from numatp.quants.mixes import MIXES, base_of, fitting, gets_better, output_type
from numatp.quants.table import FORMATS
from numatp.weights.rules import Rule, whole_shape

TYPES = ("f16", "bf16", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")  # whose files have been compared with a plan
DEFAULT_TYPE = "q4_k_m"
INT32 = 5  # as GGUF numbers kinds of values


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
    "qwen3.5-27b": Shape("qwen35", 248320, {
        "embedding_length": 5120, "block_count": 64, "attention.head_count": 24, "attention.head_count_kv": 4,
        "attention.key_length": 256, "rope.dimension_count": 64, "full_attention_interval": 4, "ssm.state_size": 128,
        "ssm.group_count": 16, "ssm.time_step_rank": 48, "ssm.inner_size": 6144, "ssm.conv_kernel": 4,
        "feed_forward_length": 17408,
        "context_length": 262144, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "qwen3.5-35b-a3b": Shape("qwen35moe", 248320, {
        "embedding_length": 2048, "block_count": 40, "attention.head_count": 16, "attention.head_count_kv": 2,
        "attention.key_length": 256, "rope.dimension_count": 64, "full_attention_interval": 4, "ssm.state_size": 128,
        "ssm.group_count": 16, "ssm.time_step_rank": 32, "ssm.inner_size": 4096, "ssm.conv_kernel": 4,
        "expert_count": 256, "expert_used_count": 8, "expert_feed_forward_length": 512, "expert_shared_feed_forward_length": 512,
        "context_length": 262144, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "qwen3.5-122b-a10b": Shape("qwen35moe", 248320, {
        "embedding_length": 3072, "block_count": 48, "attention.head_count": 32, "attention.head_count_kv": 2,
        "attention.key_length": 256, "rope.dimension_count": 64, "full_attention_interval": 4, "ssm.state_size": 128,
        "ssm.group_count": 16, "ssm.time_step_rank": 64, "ssm.inner_size": 8192, "ssm.conv_kernel": 4,
        "expert_count": 256, "expert_used_count": 8, "expert_feed_forward_length": 1024, "expert_shared_feed_forward_length": 1024,
        "context_length": 262144, "attention.layer_norm_rms_epsilon": 1e-6,
    }),
    "qwen3.5-397b-a17b": Shape("qwen35moe", 248320, {
        "embedding_length": 4096, "block_count": 60, "attention.head_count": 32, "attention.head_count_kv": 2,
        "attention.key_length": 256, "rope.dimension_count": 64, "full_attention_interval": 4, "ssm.state_size": 128,
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
    "kimi-k2": Shape("deepseek2", 163840, {
        "embedding_length": 7168, "block_count": 61, "attention.head_count": 64, "attention.kv_lora_rank": 512,
        "attention.key_length_mla": 192, "attention.value_length_mla": 128, "rope.dimension_count": 64,
        "attention.q_lora_rank": 1536, "feed_forward_length": 18432, "leading_dense_block_count": 1, "expert_count": 384,
        "expert_used_count": 8, "expert_feed_forward_length": 2048, "expert_shared_count": 1,
        "context_length": 131072, "attention.layer_norm_rms_epsilon": 1e-6,
    }, optional=("blk.0.exp_probs_b.bias",)),
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
    "command-a": Shape("cohere2", 256000, {
        "embedding_length": 12288, "block_count": 64, "attention.head_count": 96, "attention.head_count_kv": 8,
        "feed_forward_length": 36864, "attention.sliding_window": 4096, "logit_scale": 0.25, "context_length": 131072,
        "attention.layer_norm_epsilon": 1e-5,
    }, tied=True),
    "llama-3.1-8b": Shape("llama", 128256, {
        "embedding_length": 4096, "block_count": 32, "attention.head_count": 32, "attention.head_count_kv": 8,
        "feed_forward_length": 14336, "context_length": 131072, "attention.layer_norm_rms_epsilon": 1e-5,
    }),
    "llama-3.1-70b": Shape("llama", 128256, {
        "embedding_length": 8192, "block_count": 80, "attention.head_count": 64, "attention.head_count_kv": 8,
        "feed_forward_length": 28672, "context_length": 131072, "attention.layer_norm_rms_epsilon": 1e-5,
    }),
}  # fmt: skip


# Later models of the same shape.
SAME = {
    "qwen3-coder-next": "qwen3-next-80b-a3b", "qwen3.6-27b": "qwen3.5-27b", "qwen3.6-35b-a3b": "qwen3.5-35b-a3b",
    "deepseek-r1": "deepseek-v3", "deepseek-v3.1": "deepseek-v3", "kimi-k2-thinking": "kimi-k2", "kimi-k2.5": "kimi-k2",
    "kimi-k2.6": "kimi-k2", "glm-5.1": "glm-5", "glm-5.2": "glm-5", "glm-4.7": "glm-4.6", "minimax-m2.1": "minimax-m2",
    "minimax-m2.5": "minimax-m2",
}  # fmt: skip


def find(name: str) -> str | None:
    """The known name that somebody means: also with other marks between its words, or without the last ones."""
    wanted = re.sub(r"[-_. ]", "", name.lower())
    meant: dict[int, set[str]] = {}  # by how many of the known name's words it lacks
    for known in (*SHAPES, *SAME):
        words = known.split("-")
        for count in range(len(words), 1, -1):
            if wanted == "".join(words[:count]).replace(".", ""):
                meant.setdefault(len(words) - count, set()).add(SAME.get(known, known))
    best = meant[min(meant)] if meant else set()
    return next(iter(best)) if len(best) == 1 else None


def names() -> str:
    """For people."""
    return f"{', '.join(SHAPES)}, with a type as in {next(iter(SHAPES))}:{DEFAULT_TYPE} ({', '.join(TYPES)})"


def header(name: str) -> GGUFFile | None:
    """As a GGUF file of "qwen2.5-72b:q4_k_m" has it; None for a name that is not known, UserError for a type that is not."""
    given, _, kind = name.lower().partition(":")
    base = find(given)
    if base is None:
        return None
    if (kind or DEFAULT_TYPE) not in TYPES:
        raise UserError(f"{name}: no type {kind!r} is known; known types: {', '.join(TYPES)}")
    shape, path = SHAPES[base], Path(f"{base}:{kind or DEFAULT_TYPE}")
    file = GGUFFile(path, 0, _metadata(shape))
    # Readers look for the vocabulary in the embedding, for the output matrix, and for a tensor per layer at least.
    width, layers = file.count(f"{shape.architecture}.embedding_length"), file.count(f"{shape.architecture}.block_count")
    file.tensors = {f"blk.{layer}": TensorInfo(f"blk.{layer}", "F32", (1,), 0, 4, path) for layer in range(layers)}
    for tensor in shape.optional:
        file.tensors[tensor] = TensorInfo(tensor, "F32", (1,), 0, 4, path)
    for matrix in ("token_embd.weight", "output.weight")[: 1 if shape.tied else 2]:
        file.tensors[matrix] = TensorInfo(matrix, "F32", (shape.vocab, width), 0, 0, path)
    model = models.find(file)
    spec = model.read_spec(file)
    file.tensors = _tensors(model.rules(spec), spec, path, (kind or DEFAULT_TYPE).upper())
    file.size = sum(info.num_bytes for info in file.tensors.values())
    return file


def _metadata(shape: Shape) -> Metadata:
    entries: dict[str, int | float | str | LazyArray] = {"general.architecture": shape.architecture}
    arrays = b""
    for key, value in shape.metadata.items():
        if isinstance(value, list):
            entries[f"{shape.architecture}.{key}"] = LazyArray(INT32, len(value), len(arrays))
            arrays += np.array(value, "<i4").tobytes()
        else:
            entries[f"{shape.architecture}.{key}"] = value
    return Metadata(entries, arrays, {})


def _tensors(rules: Iterable[Rule], spec: Spec, path: Path, wanted: str) -> dict[str, TensorInfo]:
    most, better = base_of(wanted), MIXES[wanted].better if wanted in MIXES else None
    shapes = {rule.name: (rule, whole_shape(rule, spec.sizes)) for rule in rules}
    counts = Counter(name.split(".")[2] for name in shapes if name.startswith("blk."))
    seen: Counter[str] = Counter()
    tensors = {}
    for name, (rule, shape) in shapes.items():
        part = name.split(".")[-2]
        kind = most
        if rule.kind == "head":
            kind = output_type(most)
        elif rule.kind in ("vector", "table", "router"):
            kind = "F32"
        elif better and part in ("attn_v", "ffn_down", "ffn_down_exps", "ffn_down_shexp"):
            if gets_better(seen[part], counts[part]):
                kind = better
            elif part == "attn_v" and len(spec.layers) == 80 and most == "Q4_K":
                kind = "Q5_K"
        seen[part] += 1
        kind = fitting(kind, shape[-1]) or kind
        tensors[name] = TensorInfo(name, kind, shape, 0, FORMATS[kind].bytes_of(prod(shape)), path)
    return tensors
