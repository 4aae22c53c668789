"""How a token's work would divide among more threads than there are cores: `numatp bench --rehearse THREADS`.

The threads take turns on the cores that are here, and the clock counts a thread's own cpu time. Between two barriers all wait for
the one that has most to do. What cannot be seen: bandwidth and caches that so many cores would share, what barriers between them
cost, and clocks that fall. A thread that comes back to its cpu finds caches that others have filled.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from numatp.engine.programs import ONE_ROW
from numatp.measure.bench import Bench
from numatp.measure.instruments import MeasuringEngine, OpInfo
from numatp.measure.profile import kind_of
from numatp.measure.workload import Workload

STEPS = 12
WAITING = ("sync", "cross", "take_over")  # ops that are no work


def rehearse(engine: MeasuringEngine) -> dict[str, Any]:
    """Runs Steps of one row; JSON. On rank 0 of an engine whose job rehearses, on the engine's thread."""
    bench, test = Bench(engine, roofline=False), Workload(0, STEPS, 0, 1, 1)
    samples: list[list[np.ndarray]] = [[] for _ in range(engine.world.size)]  # per rank of each Step us (threads, ops)
    ops: list[list[OpInfo]] = []
    for _ in range(STEPS):
        timed, _ = bench.timed(1, 1, test)
        ops = timed.ops
        for found, times in zip(samples, timed.times, strict=True):
            found.append(times[:, :-1, 1] / 1e3)
    program = engine.programs[ONE_ROW]
    threads = engine.team.threads
    even = program.weight_bytes / threads
    return {
        "model": engine.job.model, "threads": threads, "steps": STEPS,
        "weights_imbalance_percent": 100 * (program.busiest_bytes(threads) / even - 1) if even else 0.0,
        "ranks": [describe(infos, found) for infos, found in zip(ops, samples, strict=True)],
    }  # fmt: skip


def describe(ops: Sequence[OpInfo], samples: Sequence[np.ndarray]) -> dict[str, Any]:
    """Of one rank. samples: us (threads, ops) of each Step; the least counts, for the others hold what else the machine did."""
    least = np.min(samples, axis=0)
    least[:, [op.name in WAITING for op in ops]] = 0
    begins = [i for i, op in enumerate(ops) if op.barrier or not i]
    sections = np.add.reduceat(least, begins, axis=1)  # between two barriers each, (threads, sections)
    kinds: dict[tuple[str, str], dict[str, Any]] = {}
    for op, spent in zip(ops, least.T, strict=True):
        key = op.name, kind_of(op.label)
        kind = kinds.setdefault(key, {"op": key[0], "weights": key[1], "count": 0, "mean_us": 0.0, "busiest_us": 0.0})
        kind["count"] += 1
        kind["mean_us"] += float(spent.mean())
        kind["busiest_us"] += float(spent.max())
    mean, busiest = float(sections.mean(0).sum()), float(sections.max(0).sum())
    return {
        "barriers": sum(op.barrier for op in ops) + 1, "mean_us": mean, "busiest_us": busiest,
        "imbalance_percent": 100 * (busiest / mean - 1) if mean else 0.0,
        "kinds": sorted((kind for kind in kinds.values() if kind["op"] not in WAITING), key=lambda kind: -kind["busiest_us"]),
    }  # fmt: skip
