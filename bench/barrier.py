"""What a barrier of a rank's threads costs here, by threads, beside what is predicted: `python bench/barrier.py`

Threads are those that a rank of one node would have, one per core, spread over the L3 caches. Prints JSON: ns of a barrier, from
runs of barriers between ops that do nothing, without what the ops take: the median over the rounds and the fastest, which tells the
barrier from what else the machine does.
"""

import argparse
import json
import os
import statistics
import time

from numatp.engine.job import Job
from numatp.engine.start import start_ranks

BARRIERS = 2000  # of one timing


def counts_up_to(cores):
    """1, 2, 4, ..., and halves between from 16 on, up to all cores."""
    usual = {1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256}
    return sorted({count for count in usual if count < cores} | {cores})


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-r", "--rounds", type=int, default=21)
    parser.add_argument("--nodes", help="of whose cores, e.g. 0 (default: the first)")
    options = parser.parse_args()
    started = start_ranks(Job(model="", threads=1, nodes=options.nodes or "0"), 1)
    import numpy as np

    from numatp.engine.team import Team
    from numatp.kernels.copy import copy_slots
    from numatp.machine import barrier, placement, topology
    from numatp.program.builder import Op, Program

    allowed, machine = frozenset(os.sched_getaffinity(0)), topology.read_machine()
    nothing = np.zeros(1, np.int64)
    record = copy_slots.record(states=0, slot_bytes=0, copies=0, num_copies=nothing.ctypes.data)

    def program(meets):
        return Program("barriers", [Op(copy_slots.name, copy_slots, record, [], [], barrier=meets) for _ in range(BARRIERS)], 0)

    (most,) = placement.place(machine, allowed, 1, nodes=options.nodes or "0")
    rows = []
    for count in counts_up_to(len(most.cpus)):
        (place,) = placement.place(machine, allowed, 1, threads=count, nodes=options.nodes or "0")
        team, taken = Team(started.world.host, place.cpus, place.l3), {True: [], False: []}
        for number in range(options.rounds + 1):
            for meets in taken:
                made = program(meets)
                made.record  # noqa: B018 - made before the clock runs
                began = time.perf_counter()
                team.run_program(made)
                if number:  # the first round warms up
                    taken[meets].append(time.perf_counter() - began)
        team.close()
        ns = [1e9 * (of(taken[True]) - of(taken[False])) / BARRIERS for of in (statistics.median, min)]
        rows.append(
            {
                "threads": count, "l3_groups": len(set(place.l3)), "barrier_ns": round(ns[0], 1), "fastest_ns": round(ns[1], 1),
                "predicted_ns": round(1e9 * barrier.seconds(place.l3), 1),
            }
        )  # fmt: skip
    print(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
