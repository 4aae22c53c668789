"""Recorded tokens, and GGUF files that hold a vocabulary and no tensors."""

import json

import gguf
from support.commands import TESTS

RECORDED = json.loads((TESTS / "data/smollm2_tokens.json").read_text())  # data/make_smollm2_tokens.py
WORDS = json.loads((TESTS / "data/words_tokens.json").read_text())  # data/make_words_tokens.py
NORMAL, UNKNOWN, CONTROL, BYTE = 1, 2, 3, 6


def write(path, recorded, rule):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    add(writer, recorded, rule)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def add(writer, recorded, rule):
    """By rule: a byte-level vocabulary with that `tokenizer.ggml.pre`, or kind 'llama' ('without prefix': no first space), or
    'gemma4', which has the same pieces by merges.
    """
    kind, _, without_prefix = rule.partition(" ")
    if kind in ("llama", "gemma4"):
        pieces = recorded["pieces"]
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
        writer.add_tokenizer_model(kind)
        writer.add_token_list(tokens)
        if kind == "gemma4":
            cuts = ((piece[:cut], piece[cut:]) for piece in pieces for cut in range(1, len(piece)))
            writer.add_token_merges([" ".join(cut) for cut in cuts if set(cut) <= set(pieces)])
        else:
            writer.add_tokenizer_pre("default")
            writer.add_token_scores([0.0] * 259 + [-float(rank) for rank in range(len(pieces))])
        writer.add_token_types([UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * len(pieces))
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_unk_token_id(0)
        writer.add_add_space_prefix(not without_prefix)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(kind)
        writer.add_token_list(recorded["bpe"]["tokens"])
        writer.add_token_types([NORMAL] * len(recorded["bpe"]["tokens"]))
        writer.add_token_merges(recorded["bpe"]["merges"])
        writer.add_add_bos_token(False)
