"""Decoding over several hosts, and what `numatp plan` says that the link costs.

    python bench/hosts.py MODEL --over 0us:100gbit "mpirun -np 2 --host a,b" --over 20us:10gbit "mpirun -np 2 --host c,d" ...
        [--local "mpirun -np 2"] [--pipeline]

Each way is the beginning of a command line that numatp bench is put behind; they take turns, -r rounds. What a token takes beside
its messages is found on the first link, which is best one without delay: its seconds less those of the messages, as `--link
measured` finds them there. Predicted: those, and what the plan says of the messages over each link, by its name and as it is
measured. --local: the same ranks on one host, to compare with. With --pipeline the hosts hold layers. Medians; prints JSON.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

NUMATP = Path(sys.executable).parent / "numatp"
TOKENS = 4  # of a run


def asked(way, *words):
    """What numatp says as JSON."""
    result = subprocess.run(
        [*shlex.split(way), NUMATP, *map(str, words), "-o", "json"], capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(result.stderr)
    return json.loads(result.stdout)


def seconds_of_a_token(way, options, *more):
    """The lower quartile of many short runs: in the upper ones is what else the machine did."""
    words = ["-p", 0, "-n", TOKENS, "-r", options.runs, "--roofline", 16, *more]
    return statistics.quantiles(asked(way, "bench", "-m", options.model, *words)[0]["samples_ns"], n=4)[0] / TOKENS / 1e9


def added_by(way, link, options):
    """Seconds of a token's messages between hosts, as planned."""
    planned = asked(way, "plan", "-m", options.model, "--hosts", options.hosts, "--link", link)["hosts"]
    return (planned["pipeline"] if options.pipeline else planned)["crossing_seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="path of a GGUF file")
    parser.add_argument("--over", required=True, nargs=2, action="append", metavar=("LINK", "COMMAND"), default=[])
    parser.add_argument("--local", metavar="COMMAND")
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("-n", "--runs", type=int, default=24, help="in each round")
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--pipeline", action="store_true")
    options = parser.parse_args()
    ways = dict(options.over) | ({"local": options.local} if options.local else {})
    found, added = {name: [] for name in ways}, {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            over = name != "local"
            found[name].append(seconds_of_a_token(way, options, *(["--pipeline"] if over and options.pipeline else [])))
            if over:
                added[name].append(added_by(way, "measured", options))
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    measured = {name: statistics.median(added[name]) for name, _ in options.over}
    first = options.over[0][0]
    beside = medians[first] - measured[first]
    rows = []
    for name in ways:
        row = {"way": name, "ms": medians[name], "least": min(found[name]), "most": max(found[name])}
        if name != "local":
            row |= {"by_name": beside + added_by("", name, options), "by_measure": beside + measured[name]}
        row = {key: value if key == "way" else round(1e3 * value, 3) for key, value in row.items()}
        rows.append(row | {f"of_{key}": round(row["ms"] / row[key], 3) for key in ("by_name", "by_measure") if key in row})
    print(json.dumps({"beside_ms": round(1e3 * beside, 3), "ways": rows}, indent=1))


if __name__ == "__main__":
    main()
