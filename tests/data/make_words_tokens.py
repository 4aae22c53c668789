"""Write words_tokens.json: a small vocabulary whose merges cross the borders of words, 200 hard texts, and the ids that llama.cpp's
llama-tokenize gives for them by each rule of `tokenizer.ggml.pre`, and as a SentencePiece vocabulary with the same merges.

python tests/data/make_words_tokens.py LLAMA_TOKENIZE
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import tokenizers
from make_smollm2_tokens import hard_texts
from tokenizers import models, pre_tokenizers, trainers

from numatp.text.tokenizer import BYTE_OF_CHAR

sys.path.insert(0, str(Path(__file__).parents[1]))
from support.models import vocabularies

HERE = Path(__file__).parent
RULES = [
    "gpt-2", "smollm", "llama-bpe", "chatglm-bpe", "qwen2", "qwen35", "gpt-4o", "tekken", "deepseek-llm", "deepseek-coder",
    "deepseek-v3", "command-r", "kimi-k2", "cohere2moe",
]  # fmt: skip


def texts():
    short = [text for text in hard_texts() if 0 < len(text) <= 70 and "<" not in text]
    return short[:: max(len(short) // 200, 1)][:200]


def merges_of(alphabet, pre_tokenizer, size):
    """(tokens, merges) trained on the hard texts and on some prose and code, without any words."""
    bpe = tokenizers.Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizer
    prose = (HERE / "text.txt").read_text()[:20000]
    corpus = [*hard_texts(), *(prose[i : i + 400] for i in range(0, len(prose), 400))]
    trainer = trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, max_token_length=12, min_frequency=2, show_progress=False
    )
    bpe.train_from_iterator(corpus, trainer)
    model = json.loads(bpe.to_str())["model"]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return sorted(model["vocab"], key=model["vocab"].get), merges


def main():
    tool = sys.argv[1]
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokens, merges = merges_of(list(BYTE_OF_CHAR), byte_level, 1500)
    pieces, _ = merges_of(list("abcdefghijklmnopqrstuvwxyz ."), pre_tokenizers.Metaspace(split=False, prepend_scheme="never"), 2600)
    pieces = [piece for piece in pieces if "\0" not in piece]  # it ends a text in C
    recorded = {"bpe": {"tokens": tokens, "merges": merges}, "pieces": pieces, "texts": texts(), "ids": {}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.gguf"
        for rule in [*RULES, "llama", "llama without prefix"]:
            vocabularies.write(path, recorded, rule)
            command = [tool, "-m", path, "--ids", "--no-bos", "--no-escape", "--log-disable", "--stdin"]
            recorded["ids"][rule] = [
                json.loads(subprocess.run(command, input=text.encode(), capture_output=True, check=True).stdout)
                for text in recorded["texts"]
            ]
            print(rule, file=sys.stderr)
    (HERE / "words_tokens.json").write_text(json.dumps(recorded, separators=(",", ":")).replace("],[", "],\n["))


if __name__ == "__main__":
    main()
