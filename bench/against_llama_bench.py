"""Speed beside llama.cpp's llama-bench: same file, same number of threads in all, in turns, with the roofline of the same minute.

python bench/against_llama_bench.py LLAMA_BENCH [-m MODEL] [-p 512] [-n 128] [-d 0] [-t 2] [-r 3] [--ranks 1,2] [--save FILE]

llama.cpp counts with the best of flash attention off and on, mmap on and off, and --cache types, for each test by itself: the one
with the best median over the rounds, not the luckiest run of a round. Absolute figures drift on shared machines; medians of ratios
within one round hold. Nothing else may run meanwhile. Prints JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
from datetime import date
from pathlib import Path

from numatp.files.models import resolve_model

NUMATP = Path(sys.executable).parent / "numatp"


def run_json(command):
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout)


def name_of(row):
    parts = [f"pp{row['n_prompt']}" * bool(row["n_prompt"]), f"tg{row['n_gen']}" * bool(row["n_gen"])]
    return "+".join(filter(None, parts)) + f" @ d{row['n_depth']}" * bool(row["n_depth"])


def tests_of(options):
    return [
        "-m",
        options.path,
        "-p",
        options.prompt,
        "-n",
        options.gen,
        "-d",
        options.depth,
        "-r",
        options.repetitions,
        "-o",
        "json",
    ]


def llama(options):
    """Test -> its rows, one for each way of running, always in the same order."""
    help_text = subprocess.run([options.llama_bench, "--help"], capture_output=True, text=True, check=False).stdout
    loads = ("-lm", "mmap,none") if "--load-mode" in help_text else ("-mmp", "0,1")
    found = {}
    for cache in options.cache.split(","):
        attention = "0,1" if cache == "f16" else "1"  # quantised values need flash attention
        command = [
            options.llama_bench,
            *tests_of(options),
            "-t",
            options.threads,
            "-fa",
            attention,
            *loads,
            "-ctk",
            cache,
            "-ctv",
            cache,
        ]
        for row in run_json(command):
            found.setdefault(name_of(row), []).append(row)
    return found


def best_way(rounds, test):
    """llama.cpp's row of each round, in the way of running that has the best median."""
    ways = zip(*(row["llama"][test] for row in rounds), strict=True)
    return max(ways, key=lambda rows: statistics.median(one["avg_ts"] for one in rows))


def ours(options, ranks, cache):
    command = [
        NUMATP, "bench", *tests_of(options), "-t", options.threads // ranks, "--ranks", ranks, "-ctk", cache, "-ctv", cache,
    ]  # fmt: skip
    return {name_of(row): row for row in run_json(command)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("llama_bench")
    parser.add_argument("-m", "--model", default="smollm2")
    parser.add_argument("-p", "--prompt", default="512", help="tokens, a list; 0: none")
    parser.add_argument("-n", "--gen", default="128", help="tokens, a list; 0: none")
    parser.add_argument("-d", "--depth", default="0", help="tokens in the cache before, a list")
    parser.add_argument("-t", "--threads", type=int, default=2, help="in all")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--repetitions", type=int, default=2, help="of each test in a round")
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks of numatp")
    parser.add_argument("--cache", default="f16", help="cache types of llama.cpp, a list, the best one counts")
    parser.add_argument("--our-cache", default="f16", help="cache types of numatp, a list, each by itself")
    parser.add_argument("--save", metavar="NAME", help="also write bench/results/DATE-NAME.json")
    options = parser.parse_args()
    options.path = str(resolve_model(options.model))
    counts, caches = [int(n) for n in options.ranks.split(",")], options.our_cache.split(",")
    ways = {f"ranks{count}" + f" {cache}" * (len(caches) > 1): (count, cache) for count in counts for cache in caches}
    rounds = []
    for number in range(options.rounds):
        row = {"llama": llama(options)} | {way: ours(options, *ways[way]) for way in ways}
        rounds.append(row)
        for test, theirs in row["llama"].items():
            mine = ", ".join(f"{way} {row[way][test]['avg_ts']:.1f} ({row[way][test]['roofline_percent']:.0f} %)" for way in ways)
            rates = ", ".join(f"{one['avg_ts']:.1f}" for one in theirs)
            print(f"round {number + 1}: {test}: llama.cpp {rates}; {mine} of the roofline", file=sys.stderr)
    summary = {}
    for test in rounds[0]["llama"]:
        theirs = best_way(rounds, test)
        summary[test] = {"llama_ts": [round(one["avg_ts"], 2) for one in theirs]}
        for way in ways:
            found = [row[way][test] for row in rounds]
            ratios = [mine["avg_ts"] / one["avg_ts"] for mine, one in zip(found, theirs, strict=True)]
            summary[test][way] = {
                "ratio": round(statistics.median(ratios), 3), "ts": [round(mine["avg_ts"], 2) for mine in found],
                "roofline_percent": round(statistics.median(mine["roofline_percent"] for mine in found), 1),
                "roofline_gbs": [round(mine["roofline_gbs"], 1) for mine in found],
            }  # fmt: skip
    result = {
        "model": Path(options.path).name, "threads": options.threads, "llama_cache": options.cache,
        "numatp_cache": options.our_cache, "summary": summary, "rounds": rounds,
    }  # fmt: skip
    if options.save:
        path = Path(__file__).parent / "results" / f"{date.today()}-{options.save}.json"
        path.write_text(json.dumps(result).replace(options.path, Path(options.path).name) + "\n")
        print(path, file=sys.stderr)
    print(json.dumps(result | {"rounds": len(rounds)}, indent=1))


if __name__ == "__main__":
    main()
