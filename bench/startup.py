"""Seconds from starting the command to its first token, warm: `python bench/startup.py [MODEL]`

One rank, two local ranks and two under mpirun, in turns; beside them a start of Python with numpy and Numba (what nothing can
be faster than that compiles with Numba) and an mpi4py hello world on two ranks. Prints JSON with medians.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
HELLO = "from mpi4py import MPI; print(MPI.COMM_WORLD.Get_rank(), flush=True)"
os.environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "PYTHONUNBUFFERED": "1"}


def seconds_to_first_output(command):
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        first = os.read(process.stdout.fileno(), 1)
        took = time.perf_counter() - began
        process.stdout.read()
    if process.returncode or not first:
        sys.exit(f"failed: {' '.join(map(str, command))}")
    return took


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("-r", "--rounds", type=int, default=7)
    options = parser.parse_args()
    generate = [BIN / "numatp", "generate", "-m", options.model, "-p", "The capital of France is", "-n", "4", "--temp", "0"]
    two = [BIN / "mpirun", "-np", "2", "--oversubscribe"]
    commands = {
        "one rank": [*generate, "--ranks", "1"],
        "two local ranks": [*generate, "--ranks", "2"],
        "two ranks, mpirun": [*two, *generate],
        "import numpy, numba": [sys.executable, "-c", "import numpy, numba; print(1)"],
        "mpi4py hello world, mpirun": [*two, sys.executable, "-c", HELLO],
    }
    taken = {name: [] for name in commands}
    for round_ in range(options.rounds + 1):
        for name, command in commands.items():
            took = seconds_to_first_output(command)
            if round_:  # the first round warms the caches
                taken[name].append(round(took, 3))
    medians = {name: statistics.median(values) for name, values in taken.items()}
    print(json.dumps({"model": options.model, "median_seconds": medians, "seconds": taken}, indent=1))


if __name__ == "__main__":
    main()
