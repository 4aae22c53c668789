"""Records how SmolLM2 goes on in float64 when it always takes the most probable token: text, tokens, and by how much (in logits)
each beats the next. Writes smollm2_text.json.

python tests/data/make_smollm2_text.py
"""

import json
import sys
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent
sys.path[:0] = [str(DATA.parent), str(DATA.parents[1] / "bench")]
from perplexity import dequantised, sizes_of  # noqa: E402
from support.reference import naive  # noqa: E402

from numatp.files.gguf import read_gguf  # noqa: E402
from numatp.files.models import resolve_model  # noqa: E402
from numatp.text.tokenizer import Tokenizer  # noqa: E402

PROMPT, COUNT = "The capital of France is", 24


def main():
    file = read_gguf(resolve_model("smollm2"))
    tokenizer, sizes = Tokenizer.from_gguf(file), sizes_of(file)
    tensors = {name: value.astype(np.float64) for name, value in dequantised(file).items()}
    tokens, gaps = tokenizer.encode(PROMPT), []
    start = len(tokens)
    for _ in range(COUNT):
        logits = naive.logits(sizes, tensors, tokens)[-1]
        second, first = np.partition(logits, -2)[-2:]
        tokens.append(int(logits.argmax()))
        gaps.append(round(float(first - second), 3))
    answer = tokens[start:]
    recorded = {"prompt": PROMPT, "text": tokenizer.decode(answer), "tokens": answer, "gaps": gaps}
    lines = ",\n".join(f' "{name}": {json.dumps(value)}' for name, value in recorded.items())
    (DATA / "smollm2_text.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
