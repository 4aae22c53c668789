"""Decode speed beside llama.cpp's llama-bench: same file, same number of threads in all, in turns.

python bench/against_llama_bench.py LLAMA_BENCH [-m MODEL] [-n 128] [-t 2] [-r 5] [--ranks 1,2]

Absolute figures drift on shared machines; medians of ratios within one round hold. Nothing else may run meanwhile.
The last line on stdout is JSON.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

from numatp.files.models import resolve_model

NUMATP = Path(sys.executable).parent / "numatp"


def llama(binary: str, model: str, tokens: int, threads: int) -> float:
    """tok/s of the better of flash attention off and on."""
    command = [binary, "-m", model, "-p", "0", "-n", str(tokens), "-t", str(threads), "-r", "2", "-fa", "0,1", "-o", "json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return max(row["avg_ts"] for row in json.loads(result.stdout))


def ours(model: str, tokens: int, threads: int, ranks: int) -> tuple[float, float]:
    """(tok/s, GB/s of weights) as `numatp generate` reports them."""
    command = [
        NUMATP, "generate", "-m", model, "-p", "Once upon a time", "-n", tokens + 1, "-t", threads // ranks, "--ranks", ranks,
        "--temp", 0, "--ignore-eos",
    ]  # fmt: skip
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=True)
    found = re.search(r"decode (\d+) tokens at ([\d.]+) tok/s, reading ([\d.]+) GB/s", result.stderr)
    assert found and int(found[1]) == tokens, f"not {tokens} tokens: {result.stderr}"
    return float(found[2]), float(found[3])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("llama_bench")
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("-n", type=int, default=128, help="tokens")
    parser.add_argument("-t", type=int, default=2, help="threads in all")
    parser.add_argument("-r", type=int, default=5, help="rounds")
    parser.add_argument("--ranks", default="1,2")
    arguments = parser.parse_args()
    model = str(resolve_model(arguments.model))
    counts = [int(n) for n in arguments.ranks.split(",")]
    for count in counts:
        ours(model, arguments.n, arguments.t, count)  # kernels compiled, file in the page cache
    rounds = []
    for number in range(arguments.r):
        row: dict[str, float] = {"llama": llama(arguments.llama_bench, model, arguments.n, arguments.t)}
        for count in counts:
            row[f"ranks{count}"], row[f"ranks{count}_gbs"] = ours(model, arguments.n, arguments.t, count)
        rounds.append(row)
        print(f"round {number + 1}: " + ", ".join(f"{name} {value:.1f}" for name, value in row.items()), file=sys.stderr)
    summary = {}
    for count in counts:
        summary[f"ranks{count}_ratio"] = round(statistics.median(row[f"ranks{count}"] / row["llama"] for row in rounds), 2)
    print(json.dumps({"model": Path(model).name, "tokens": arguments.n, "threads": arguments.t, "rounds": rounds, **summary}))


if __name__ == "__main__":
    main()
