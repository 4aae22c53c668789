"""Does the number of ranks, or rounding, change how well a model predicts? `python bench/perplexity.py MODEL FILE`

Runs `numatp perplexity` with each number of ranks and evaluates the first windows in float64 too, from the file's dequantised
weights (tests/support/reference/naive.py, architecture llama). Prints JSON. Activations are rounded to 8 bits, and partial sums
that were added in another order round differently, so the perplexities of two numbers of ranks differ by a noise that falls with
the square root of the number of tokens.
"""

import argparse
import json
import subprocess
import sys
from math import exp
from pathlib import Path

import numpy as np

from numatp import quants
from numatp.cli.progress import Progress
from numatp.files.gguf import read_gguf
from numatp.files.models import resolve_model
from numatp.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support.reference import naive


def dequantised(file):
    """Name -> float32 array, of every tensor."""
    tensors = {}
    for name, tensor in file.tensors.items():
        raw = np.fromfile(tensor.path, np.uint8, tensor.num_bytes, offset=tensor.offset)
        rows = tensor.shape[0] if len(tensor.shape) > 1 else 1
        tensors[name] = quants.kernels_of(tensor.type).unpack(raw.reshape(rows, -1)).reshape(tensor.shape)
    return tensors


def sizes_of(file):
    """What naive.py wants to know."""
    return {
        "heads": file.count("llama.attention.head_count"), "kv_heads": file.count("llama.attention.head_count_kv"),
        "layers": file.count("llama.block_count"), "epsilon": file.positive("llama.attention.layer_norm_rms_epsilon"),
        "rope_base": file.positive("llama.rope.freq_base", default=10000.0),
    }  # fmt: skip


def float64_losses(file, text, window, windows):
    """Of the second half of each window, as the command scores them."""
    sizes = sizes_of(file)
    tokens, tensors, losses = Tokenizer.from_gguf(file).encode(text), dequantised(file), []
    tensors = {name: value.astype(np.float64) for name, value in tensors.items()}
    with Progress("float64") as progress:
        for i in range(windows):
            part = tokens[i * window : (i + 1) * window]
            rows = naive.logits(sizes, tensors, part)[window // 2 : -1]
            rows -= rows.max(-1, keepdims=True)
            targets = rows[np.arange(len(rows)), part[window // 2 + 1 :]]
            losses += list(np.log(np.exp(rows).sum(-1)) - targets)
            progress.update(i + 1, windows)
    return losses


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("file", type=Path)
    parser.add_argument("--ranks", default="1,2,3,5")
    parser.add_argument("-c", "--window", type=int, default=512)
    parser.add_argument("--float64", type=int, default=0, metavar="WINDOWS", help="evaluate so many windows in float64 too")
    options = parser.parse_args()
    result = {"model": options.model, "file": options.file.name, "bytes": options.file.stat().st_size, "ranks": {}}
    command = [Path(sys.executable).parent / "numatp", "perplexity", "-m", options.model, "-c", str(options.window), "-o", "json"]
    for ranks in options.ranks.split(","):
        run = subprocess.run([*command, "-f", options.file, "--ranks", ranks], stdout=subprocess.PIPE, text=True, check=True)
        result["ranks"][ranks] = json.loads(run.stdout)
    values = [measured["perplexity"] for measured in result["ranks"].values()]
    result["largest_difference_percent"] = 100 * (max(values) / min(values) - 1)
    if options.float64:
        file, text = read_gguf(str(resolve_model(options.model))), options.file.read_text()
        windows = min(options.float64, result["ranks"][options.ranks.split(",")[0]]["windows"])
        losses = float64_losses(file, text, options.window, windows)
        result["float64"] = {"perplexity": exp(sum(losses) / len(losses)), "tokens": len(losses), "windows": windows}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
