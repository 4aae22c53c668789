"""`numatp bandwidth`: what the memory of this machine gives, measured; kept as the roofline of plans, doctor and uneven splits."""

import argparse
import csv
import io
import json
import socket
import sys
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from numatp.cli.options import note, positive
from numatp.cli.progress import Progress
from numatp.files.measured import keep_bandwidth
from numatp.machine import isa, launch, limits, policy, topology

if TYPE_CHECKING:
    from numatp.measure.bandwidth import Bandwidth


def counts(text: str) -> list[int]:
    return [positive(part) for part in text.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    text = "numbers of threads per node, e.g. 1,8,32 (default: powers of two, and all cores)"
    parser.add_argument("-t", "--threads", type=counts, default=[], metavar="LIST", help=text)
    text = "memory that is read (default: eight times a node's L3 caches, at most half of what is free)"
    parser.add_argument("--size", type=positive, metavar="MIB", help=text)
    parser.add_argument("-o", "--output", choices=list(PRINTERS), default="text", help="what stdout gets (default text)")
    parser.add_argument("--plot", metavar="FILE", help="draw it (needs matplotlib)")
    parser.add_argument("--no-keep", action="store_true", help="measure only: plans go on with what was known")


def run(arguments: argparse.Namespace) -> int:
    """Under a launcher its first rank measures everything, with all the cpus that the launcher was given."""
    launched = launch.read_launch()
    if launched and launched.local_rank:
        return 0
    plot = None
    if arguments.plot is not None:
        from numatp.cli import bandwidth_plot

        plot = bandwidth_plot.check(arguments.plot)
    limits.check()
    from numatp.measure.bandwidth import measure

    bound = frozenset(policy.bound_nodes(policy.current_policy()))
    machine = topology.with_memory_of(topology.read_machine(), bound or topology.allowed_nodes())
    size = arguments.size << 20 if arguments.size else None
    with Progress("bandwidth") as progress:
        found = measure(machine, launch.allowed_cpus()[0], threads=arguments.threads, area_bytes=size, progress=progress.update)
    for line in found.notes:
        note(line)
    described = describe(found)
    print(PRINTERS[arguments.output](found, described))
    sys.stdout.flush()
    if plot:
        plot(found)
    if not arguments.no_keep:
        note(f"kept in {keep_bandwidth({n: round(rate, 2) for n, rate in found.local_gbs.items()}, described)}")
    return 0


def describe(found: "Bandwidth") -> dict[str, Any]:
    """As JSON: GB/s are 1e9 bytes per second."""
    return {
        "host": socket.gethostname(), "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "isa": isa.level().name,
        "cores": found.cores, "area_bytes": found.area_bytes, "together_gbs": round(found.together_gbs, 2),
        "pairs": [rounded(asdict(pair)) for pair in found.pairs], "latency": [rounded(asdict(one)) for one in found.latencies],
        "exchange": [rounded(asdict(one)) for one in found.exchanges], "notes": found.notes,
    }  # fmt: skip


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in values.items()}


Table = tuple[str, list[str], list[list[str]]]  # title, columns, rows


def tables(found: "Bandwidth") -> list[Table]:
    cores, holders = found.cores, [f"memory {node}" for node in found.nodes]

    def matrix(title: str, cells: dict[tuple[int, int], float], digits: int) -> Table:
        rows = [[f"threads {own}", *(f"{cells[own, node]:.{digits}f}" for node in found.nodes)] for own in cores]
        return title, ["node", *holders], rows

    full = {(p.threads_node, p.memory_node): p for p in found.pairs if p.threads == most_threads(found, p.threads_node)}
    count = ", ".join(f"{most_threads(found, node)} on node {node}" for node in cores)
    result = [
        matrix(f"read, GB/s, threads: {count}", {key: p.read_gbs for key, p in full.items()}, 1),
        matrix("copy, GB/s read and written", {key: p.copy_gbs for key, p in full.items()}, 1),
        matrix("4-bit matrix-vector product, GB/s of weights", {key: p.gemv_gbs for key, p in full.items()}, 1),
        matrix("latency, ns", {(one.threads_node, one.memory_node): one.ns for one in found.latencies}, 0),
    ]
    header = ["threads of", "memory of", "threads", "read", "copy", "4-bit", "loop"]
    rows = [
        [str(p.threads_node), str(p.memory_node), str(p.threads), f"{p.read_gbs:.1f}", f"{p.copy_gbs:.1f}", f"{p.gemv_gbs:.1f}",
         p.read_loop]
        for p in found.pairs
    ]  # fmt: skip
    result.append(("by number of threads, GB/s", header, rows))
    if found.exchanges:
        rows = [[f"{x.nodes[0]} and {x.nodes[1]}", f"{x.short_us:.2f}", f"{x.long_us:.2f}"] for x in found.exchanges]
        result.append(("exchange of two ranks, us", ["nodes", "2 KiB", "32 KiB"], rows))
    return result


def most_threads(found: "Bandwidth", node: int) -> int:
    return max(p.threads for p in found.pairs if p.threads_node == node)


def as_text(found: "Bandwidth", described: dict[str, Any]) -> str:
    blocks = []
    for title, header, rows in tables(found):
        widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [header, *rows]]
        blocks.append("\n".join([f"{title}:", *(f"  {line}" for line in lines)]))
    return "\n\n".join([*blocks, together(found)])


def as_markdown(found: "Bandwidth", described: dict[str, Any]) -> str:
    blocks = []
    for title, header, rows in tables(found):
        blocks.append("\n".join([f"{title}:", "", *(f"| {' | '.join(row)} |" for row in [header, ["---"] * len(header), *rows])]))
    return "\n\n".join([*blocks, together(found)])


def together(found: "Bandwidth") -> str:
    return f"all nodes at once, each its own memory: {found.together_gbs:.1f} GB/s"


def as_csv(found: "Bandwidth", described: dict[str, Any]) -> str:
    """A line per pair of nodes and number of threads."""
    latency = {(one.threads_node, one.memory_node): one.ns for one in found.latencies}
    text = io.StringIO()
    rows = [pair | {"latency_ns": round(latency[pair["threads_node"], pair["memory_node"]], 1)} for pair in described["pairs"]]
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().rstrip("\n")


def as_json(found: "Bandwidth", described: dict[str, Any]) -> str:
    return json.dumps(described)


PRINTERS = {"text": as_text, "md": as_markdown, "csv": as_csv, "json": as_json}
