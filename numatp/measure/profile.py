"""Where the time of a Step goes: kinds of op, single ops, waiting, and the thread that the others wait for.

A thread is always in an op, in a barrier, or waiting for other ranks (the op "sync"); what is left of a Step is its start and end.
Times are means over all threads of all ranks, in us of one Step.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from numatp.measure.bench import Ceiling
from numatp.measure.instruments import OpInfo, Timed

SYNC = "sync"


def describe(
    timed: Timed, step_ns: Sequence[int], rows: int, ceiling: Ceiling | None, cache_bytes: int, cpus: Sequence[Sequence[int]]
) -> dict[str, Any]:
    """JSON. rows: of each Step; cache_bytes: read by all attention ops of a Step together; cpus: of each rank's threads."""
    steps = len(step_ns)
    tables = [times / steps / 1e3 for times in timed.times]  # us
    num_threads = sum(len(table) for table in tables)
    kinds: dict[tuple[str, str], dict[str, Any]] = {}
    for infos, table in zip(timed.ops, tables, strict=True):
        for info, waited, ran in zip(infos, table[:, :, 0].sum(0), table[:, :, 1].sum(0), strict=False):
            key = info.name, kind_of(info.label)
            kind = kinds.setdefault(
                key,
                {"op": key[0], "weights": key[1], "count": 0, "us": 0.0, "wait_us": 0.0, "bytes": 0, "macs": 0, "head": info.head},
            )
            kind["count"] += 1
            kind["us"] += float(ran) / num_threads
            kind["wait_us"] += float(waited) / num_threads
            kind["bytes"] += info.num_bytes
            kind["macs"] += info.macs
    attention = sum(kind["count"] for kind in kinds.values() if is_attention(kind["op"]))
    for kind in kinds.values():
        if is_attention(kind["op"]):
            kind["bytes"] += cache_bytes * kind["count"] // attention
        kind["count"] /= len(tables)
        add_rates(kind, rows, ceiling)
    waits = [kind for kind in kinds.values() if kind["op"] == SYNC]
    threads = [
        {
            "rank": rank, "thread": thread, "cpu": cpus[rank][thread], "barrier_us": float(row[:, 0].sum()),
            "exchange_wait_us": float(sum(row[i, 1] for i, info in enumerate(infos) if info.name == SYNC)),
            "busy_us": float(sum(row[i, 1] for i, info in enumerate(infos) if info.name != SYNC)),
        }
        for rank, (infos, table) in enumerate(zip(timed.ops, tables, strict=True))
        for thread, row in enumerate(table)
    ]  # fmt: skip
    step_us = float(np.mean(step_ns)) / 1e3
    barrier = sum(thread["barrier_us"] for thread in threads) / num_threads
    exchange = sum(kind["us"] for kind in waits)
    busy = sum(thread["busy_us"] for thread in threads) / num_threads
    slowest = max(threads, key=lambda thread: thread["busy_us"])
    return {
        "rows": rows, "steps": steps, "step_us": step_us, "busy_us": busy, "barrier_us": barrier, "exchange_wait_us": exchange,
        "start_and_end_us": step_us - busy - barrier - exchange,
        "straggler": slowest | {"above_mean_percent": 100 * (slowest["busy_us"] / busy - 1) if busy else 0.0},
        "kinds": sorted((kind for kind in kinds.values() if kind["op"] != SYNC), key=lambda kind: -kind["us"]),
        "threads": threads, "ops_of_rank_0": _ops(timed.ops[0], tables[0], rows, ceiling, len(tables[0]) / num_threads),
    }  # fmt: skip


def kind_of(label: str) -> str:
    """The weights' name without the layer."""
    return re.sub(r"blk\.\d+\.", "", label)


def is_attention(name: str) -> bool:
    return name.startswith("attention.")


def add_rates(row: dict[str, Any], rows: int, ceiling: Ceiling | None, share: float = 1.0) -> None:
    """gbs, gops and roofline_percent of something with us, bytes, macs (of one row) and head; None where there is nothing to tell.

    share: of the machine, that does it.
    """
    us, num_bytes = row["us"], row["bytes"]
    num_ops = 2 * row.pop("macs") * (1 if row.pop("head") else rows)  # only one row of these Steps wants logits
    row["gbs"] = num_bytes / us / 1e3 if us and num_bytes else None
    row["gops"] = num_ops / us / 1e3 if us and num_ops else None
    row["roofline_percent"] = None
    if ceiling and us and (num_bytes or num_ops):
        row["roofline_percent"] = 100 * ceiling.least_seconds(num_bytes, num_ops) * 1e6 / (us * share)


def _ops(infos: list[OpInfo], table: np.ndarray, rows: int, ceiling: Ceiling | None, share: float) -> list[dict[str, Any]]:
    found = []
    for i, info in enumerate(infos):
        row = {
            "op": info.name, "weights": info.label, "us": float(table[:, i, 1].mean()), "slowest_us": float(table[:, i, 1].max()),
            "wait_us": float(table[:, i, 0].mean()), "bytes": info.num_bytes, "macs": info.macs, "head": info.head,
        }  # fmt: skip
        add_rates(row, rows, ceiling, share)
        found.append(row)
    return found
