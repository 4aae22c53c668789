"""Seconds to load a model whose file is in the page cache, beside `dd`: `python bench/load.py MODEL.gguf [-r 6] [--ranks 1,2]`

In turns: dd of the file, then one load for each number of ranks, in a process of its own; seconds as the library reports them
(Stats: from opening the file to programs that are ready to run; Python's start and importing Numba are not in it). A virtual
machine may give free memory back to its host, from where it takes seconds to come again; with --hold SECONDS rank 0 holds memory
for the model for so long that what was free before has been given back, and frees it when it begins to read matrices; that needs
free memory for the model twice. Prints JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

LOAD = """
import mmap, os, sys, time
from numatp import LLM
model, ranks, hold = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
memory = None
if hold:
    memory = mmap.mmap(-1, os.path.getsize(model) * 9 // 8, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    for place in range(0, len(memory), mmap.PAGESIZE):
        memory[place] = 1
    time.sleep(hold)

def free(done, total):  # first called before any matrix is read
    if memory is not None and not memory.closed:
        memory.close()

with LLM(model, ranks=ranks, progress=free) as llm:
    print(llm.stats.load_seconds)
"""


def dd(path):
    began = time.perf_counter()
    subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=4M"], check=True, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def load(path, ranks, hold):
    result = subprocess.run([sys.executable, "-c", LOAD, path, ranks, str(hold)], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"loading failed: {result.stderr[-2000:]}")
    return float(result.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("-r", "--rounds", type=int, default=6)
    parser.add_argument("--ranks", default="1,2")
    parser.add_argument("--hold", type=float, default=0, metavar="SECONDS", help="hold the memory before each load")
    options = parser.parse_args()
    names = ["dd", *(f"ranks {ranks}" for ranks in options.ranks.split(","))]
    seconds = {name: [] for name in names}
    for round_ in range(options.rounds + 1):
        for name in names:
            took = dd(options.model) if name == "dd" else load(options.model, name.split()[1], options.hold)
            if round_:  # the first round warms the caches
                seconds[name].append(round(took, 3))
    ratios = {
        name: round(statistics.median(ours / theirs for ours, theirs in zip(seconds[name], seconds["dd"], strict=True)), 2)
        for name in names[1:]
    }
    found = {"date": str(date.today()), "model": options.model.name, "hold": options.hold, "seconds": seconds}
    print(json.dumps({**found, "median_ratio_to_dd": ratios}, indent=1))


if __name__ == "__main__":
    main()
