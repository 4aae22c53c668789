"""`numatp bench --compare`: the same work on one node, as one rank over all nodes with interleaved memory, and as TP.

Each way is loaded anew in every round, and rounds go there and back (a b c, c b a, a b c), so that no way always comes first. The
first round is said to be cold: files may have to be read from the disk and kernels to be compiled.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from numatp.cli.audit import FINDING, below
from numatp.cli.options import note
from numatp.cli.progress import Progress
from numatp.cli.session import ended
from numatp.engine.job import Job
from numatp.errors import MachineError, UserError
from numatp.llm import count_pages
from numatp.machine import placement, snapshot
from numatp.machine.launch import read_launch
from numatp.machine.topology import format_cpulist
from numatp.measure.service import MeasuringService
from numatp.measure.workload import Workload
from numatp.results import RankPages

if TYPE_CHECKING:
    from numatp.measure.bench import Bench, Result

WAYS = ("one-node", "interleave", "tp")
ROUNDS = 3
OUTPUTS = ("md", "json")


@dataclass(frozen=True)
class Way:
    ranks: int
    changes: dict[str, Any]  # of the Job


def parse_ways(text: str) -> list[str]:
    ways = text.split(",")
    for way in ways:
        if way not in WAYS:
            raise argparse.ArgumentTypeError(f"'{way}' is nothing to compare; choose from {','.join(WAYS)}")
    return list(dict.fromkeys(ways))


def ways_of(names: list[str], ranks: int | None, threads: int | None) -> dict[str, Way]:
    """UserError where two of them would be the same."""
    launched = read_launch()
    if launched and launched.size > 1:
        raise UserError(f"--compare starts its own ranks: run it without {launched.starter}")
    machine = snapshot.take()
    usable = placement.usable_nodes(machine.given, machine.allowed)
    nodes = [node.id for node in usable]
    if len(nodes) < 2 and (ranks or 1) < 2:
        raise UserError("--compare: this job has one node, where all ways are the same; --ranks N makes tp N ranks on it")
    cpus = machine.allowed & {cpu for node in usable for cpu in node.cpus}
    every = threads * len(nodes) if threads else None
    ways = {
        "one-node": Way(1, {"nodes": str(nodes[0])}),
        "interleave": Way(1, {"cpus": format_cpulist(cpus), "interleave": nodes, "threads": every, "allow_remote": True}),
        "tp": Way(ranks or len(nodes), {"nodes": format_cpulist(nodes)}),
    }
    return {name: ways[name] for name in names}


def run(
    ways: dict[str, Way], job: Callable[..., Job], tests: list[Workload], repetitions: int, output: str, min_local: float
) -> int:
    """job(**changes): the Job of a way. min_local: per cent of pages, but of interleaved ones, below which it is a finding."""
    if output not in OUTPUTS:
        raise UserError(f"--compare has the outputs {' and '.join(OUTPUTS)}, not {output}")
    found: list[dict[str, Any]] = []
    status = 0
    for number in range(ROUNDS):
        for name in list(ways)[:: -1 if number % 2 else 1]:
            way = ways[name]
            with Progress(f"round {number + 1}, {name}: load") as progress:
                service = MeasuringService(job(**way.changes), way.ranks, progress.update)
            with ended(service.abort):
                engine = service.engine()
                note(f"round {number + 1} of {ROUNDS}, {name}: {service.started.line}")
                note(engine.pages_line)
                for line in service.started.notes:
                    note(line)
                bench = _open_bench(service)
                for test in tests:
                    result: Result = service.call(partial(bench.run, test, repetitions, lambda done, total: None))
                    tokens = test.prompt + test.generated
                    found.append(
                        {
                            "way": name, "round": number + 1, "state": "warm" if number else "cold", "test": test.name,
                            "ranks": way.ranks, "threads": engine.team.threads * way.ranks, "avg_ts": tokens / result.seconds,
                            "samples_ns": result.samples_ns,
                        }
                    )  # fmt: skip
                    note(f"{name}, {found[-1]['state']}: {test.name} {found[-1]['avg_ts']:.2f} t/s")
                pages = _pages(service, min_local)
                for one in found[-len(tests) :]:
                    one["pages"] = [{"rank": r.rank, "node": r.node, "by_node": r.by_node} for r in pages]
                if name != "interleave" and below(min_local, pages):
                    status = FINDING
                service.close()
    gains = _gains(found, list(ways), [test.name for test in tests])
    if output == "json":
        print(json.dumps({"rounds": found, "gains": gains}))
    else:
        print("\n".join([*_table(found, list(ways), [test.name for test in tests]), *gains.values()]))
    return status


def _pages(service: MeasuringService, min_local: float) -> list[RankPages]:
    """Where they are, said too. Nothing where the kernel does not tell; MachineError if min_local asks for it."""
    try:
        pages = count_pages(service)
    except MachineError as error:
        if min_local:
            raise
        note(str(error))
        return []
    for rank in pages:
        note(f"pages of rank {rank.rank}: {', '.join(f'{count} on node {node}' for node, count in rank.by_node.items())}")
    return pages


def _open_bench(service: MeasuringService) -> "Bench":
    from numatp.measure.bench import Bench

    return service.call(partial(Bench, roofline=False))


def _rates(found: list[dict[str, Any]], way: str, test: str, state: str) -> list[float]:
    return [one["avg_ts"] for one in found if (one["way"], one["test"], one["state"]) == (way, test, state)]


def _table(found: list[dict[str, Any]], ways: list[str], tests: list[str]) -> list[str]:
    lines = ["| way | ranks | threads | test | cold t/s | warm t/s |", "| --- | --- | --- | --- | --- | --- |"]
    for test in tests:
        for way in ways:
            one = next(entry for entry in found if entry["way"] == way)
            cold, warm = (" ".join(f"{rate:.2f}" for rate in _rates(found, way, test, state)) for state in ("cold", "warm"))
            lines.append(f"| {way} | {one['ranks']} | {one['threads']} | {test} | {cold} | {warm} |")
    return lines


def _gains(found: list[dict[str, Any]], ways: list[str], tests: list[str]) -> dict[str, str]:
    """What TP gained over the other ways, by medians of the warm rounds; nothing without tp."""
    if "tp" not in ways:
        return {}
    lines = {}
    for test in tests:
        rates = {way: median(_rates(found, way, test, "warm")) for way in ways}
        gained = ", ".join(f"{rates['tp'] / rates[way]:.2f} x {way}" for way in ways if way != "tp")
        lines[test] = f"{test}, warm: tp {rates['tp']:.2f} t/s{f' is {gained}' if gained else ''}"
    return lines
