"""Decoding over several hosts beside the same ranks on one, and what `numatp plan` says that the link costs.

    python bench/hosts.py MODEL --local "mpirun -np 2" --over 20us:10gbit "mpirun -np 2 --host a,b" [--over ...]

Each way is the beginning of a command line that numatp bench is put behind; they take turns, -r rounds. predicted: the median of
the local seconds of a token and, for each link, what engine/links.py says of all messages of a token. The local ranks exchange too,
in shared memory: some microseconds each, which stay in. Prints JSON.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

from numatp.engine.draft import Hosts, crossing_seconds, read_header
from numatp.engine.links import read_link

NUMATP = Path(sys.executable).parent / "numatp"


def seconds_of_a_token(way, options):
    words = [NUMATP, "bench", "-m", options.model, "-p", 0, "-n", options.tokens, "-r", 1, "-o", "json", "--roofline", 16]
    result = subprocess.run([*shlex.split(way), *map(str, words)], capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(result.stderr)
    return 1 / json.loads(result.stdout)[0]["avg_ts"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="path of a GGUF file")
    parser.add_argument("--local", required=True, metavar="COMMAND")
    parser.add_argument("--over", required=True, nargs=2, action="append", metavar=("LINK", "COMMAND"), default=[])
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("-n", "--tokens", type=int, default=32)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    options = parser.parse_args()
    spec = read_header(options.model).spec
    ways = {"local": options.local} | dict(options.over)
    found = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            found[name].append(seconds_of_a_token(way, options))
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    rows = []
    for link, _ in options.over:
        added = crossing_seconds(spec, Hosts(options.hosts, read_link(link)))
        predicted = medians["local"] + added
        rows.append(
            {
                "link": link,
                "ms": round(1e3 * medians[link], 3),
                "spread": [round(1e3 * bound, 3) for bound in (min(found[link]), max(found[link]))],
                "predicted_ms": round(1e3 * predicted, 3),
                "measured_to_predicted": round(medians[link] / predicted, 3),
                "of_local_rate": round(medians["local"] / medians[link], 3),
            }
        )
    print(json.dumps({"exchanges": spec.exchanges, "local_ms": round(1e3 * medians["local"], 3), "over": rows}, indent=1))


if __name__ == "__main__":
    main()
