"""Records llama.cpp's logits of the tiny random models, against which test_naive.py holds the naive forward passes.

python make_tiny_logits.py — needs llama-cpp-python (0.3.36 was used); writes tiny_logits.json: per model the tokens, and
rows of logits by position.
"""

import json
import sys
import tempfile
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np

DATA = Path(__file__).parent
sys.path.insert(0, str(DATA.parent))
from support.models import tiny_cohere2, tiny_qwen3, tiny_qwen3moe, tiny_qwen3next  # noqa: E402

MODELS = {"cohere2": tiny_cohere2, "qwen3": tiny_qwen3, "qwen3moe": tiny_qwen3moe, "qwen3next": tiny_qwen3next}
POSITIONS = (0, 3, 69, 70, 150, 229)


def with_experts(tensors, sizes):
    """llama.cpp knows no Qwen3-Next without experts: one that gets every token, and a shared one of zeros, are the same."""
    made = {}
    for name, value in tensors.items():
        if ".ffn_" not in name:
            made[name] = value
            continue
        made[name.replace(".weight", "_exps.weight")] = value[None]
        block = name.split(".ffn_")[0]
        width = sizes["width"]
        shapes = {"gate_inp": (1, width), "gate_inp_shexp": (width,), "gate_shexp": (32, width), "up_shexp": (32, width),
                  "down_shexp": (width, 32)}  # fmt: skip
        made |= {f"{block}.ffn_{other}.weight": np.zeros(shape, np.float32) for other, shape in shapes.items()}
    return made


def write(path, writer, tensors):
    writer.add_tokenizer_model("no_vocab")
    for name, value in tensors.items():
        writer.add_tensor(name, np.ascontiguousarray(value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(path, tokens, vocab):
    params = llama.llama_model_default_params()
    params.use_mmap = False
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    context_params = llama.llama_context_default_params()
    context_params.n_ctx = context_params.n_batch = context_params.n_ubatch = 512
    context = llama.llama_init_from_model(model, context_params)
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, 1
    assert llama.llama_decode(context, batch) == 0
    rows = [np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), (vocab,)).copy() for i in range(len(tokens))]
    return np.array(rows)


def main():
    tokens = np.random.default_rng(0).integers(0, 200, POSITIONS[-1] + 1).tolist()
    recorded = {"tokens": tokens}
    llama.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        for name, tiny in MODELS.items():
            tensors, writer = tiny.write(path), tiny.writer_of(path)
            if name == "qwen3next":
                tensors = with_experts(tensors, tiny.SIZES)
                writer.add_expert_count(1)
                writer.add_expert_used_count(1)
                writer.add_expert_feed_forward_length(tiny.SIZES["ffn"])
                writer.add_expert_shared_feed_forward_length(32)
            rows = logits(write(path, writer, tensors), tokens, tiny.SIZES["vocab"])
            recorded[name] = {position: [round(float(x), 5) for x in rows[position]] for position in POSITIONS}
    lines = [f'"tokens": {json.dumps(tokens)}']
    for name in recorded.keys() - {"tokens"}:
        rows = ",\n".join(f'"{position}": {json.dumps(row)}' for position, row in recorded[name].items())
        lines.append(f'"{name}": {{\n{rows}\n}}')
    (DATA / "tiny_logits.json").write_text("{\n" + ",\n".join(sorted(lines)) + "\n}\n")


if __name__ == "__main__":
    sys.exit(main())
