"""Decoding over several hosts beside the same ranks on one, and what `numatp plan` says that the link costs.

    python bench/hosts.py MODEL --local "mpirun -np 2" --over 20us:10gbit "mpirun -np 2 --host a,b" [--over ...] [--pipeline]

Each way is the beginning of a command line that numatp bench is put behind; they take turns, -r rounds. predicted: the median of
the local seconds of a token and, for each link, what the plan says of all messages of a token: for a link of that name, and for one
as `--link measured` finds it there. Local ranks exchange too, in shared memory: some microseconds each, which stay in. With
--pipeline the hosts hold layers, and local is to be as many ranks as one of them has. Prints JSON.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

NUMATP = Path(sys.executable).parent / "numatp"


def asked(way, *words):
    """What numatp says as JSON."""
    result = subprocess.run(
        [*shlex.split(way), NUMATP, *map(str, words), "-o", "json"], capture_output=True, text=True, check=False
    )
    if result.returncode:
        sys.exit(result.stderr)
    return json.loads(result.stdout)


def seconds_of_a_token(way, options, *more):
    return (
        1 / asked(way, "bench", "-m", options.model, "-p", 0, "-n", options.tokens, "-r", 1, "--roofline", 16, *more)[0]["avg_ts"]
    )


def added_by(way, link, options):
    """Seconds of a token's messages between hosts, as planned."""
    planned = asked(way, "plan", "-m", options.model, "--hosts", options.hosts, "--link", link)["hosts"]
    return (planned["pipeline"] if options.pipeline else planned)["crossing_seconds"]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="path of a GGUF file")
    parser.add_argument("--local", required=True, metavar="COMMAND")
    parser.add_argument("--over", required=True, nargs=2, action="append", metavar=("LINK", "COMMAND"), default=[])
    parser.add_argument("--hosts", type=int, default=2)
    parser.add_argument("-n", "--tokens", type=int, default=32)
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--pipeline", action="store_true")
    options = parser.parse_args()
    ways = {"local": options.local} | dict(options.over)
    found, added = {name: [] for name in ways}, {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            over = name != "local"
            found[name].append(seconds_of_a_token(way, options, *(["--pipeline"] if over and options.pipeline else [])))
            if over:
                added[name].append(added_by(way, "measured", options))
    medians = {name: statistics.median(seconds) for name, seconds in found.items()}
    rows = []
    for link, _ in options.over:
        by_name = medians["local"] + added_by("", link, options)
        by_measure = medians["local"] + statistics.median(added[link])
        rows.append(
            {
                "link": link,
                "ms": round(1e3 * medians[link], 3),
                "spread": [round(1e3 * bound, 3) for bound in (min(found[link]), max(found[link]))],
                "predicted_ms": round(1e3 * by_name, 3),
                "predicted_by_measure_ms": round(1e3 * by_measure, 3),
                "measured_to_predicted": round(medians[link] / by_name, 3),
                "measured_to_predicted_by_measure": round(medians[link] / by_measure, 3),
                "of_local_rate": round(medians["local"] / medians[link], 3),
            }
        )
    spread = [round(1e3 * bound, 3) for bound in (min(found["local"]), max(found["local"]))]
    print(json.dumps({"local_ms": round(1e3 * medians["local"], 3), "spread": spread, "over": rows}, indent=1))


if __name__ == "__main__":
    main()
