"""What `numatp bench` prints: llama-bench's table, JSON, JSON lines and CSV, and the table of a profile."""

import csv
import json
import sys
from collections.abc import Sequence
from typing import Any, Protocol

from numatp.measure.workload import Workload

# Column: width, negative where it is aligned to the left; as llama-bench has them.
WIDTHS = {
    "model": -30, "size": 10, "params": 10, "backend": -10, "threads": 7, "n_batch": 7, "n_ubatch": 8, "type_k": 6, "type_v": 6,
    "test": 15, "t/s": 20,
}  # fmt: skip
MIB, GIB = 1 << 20, 1 << 30
LISTS = ("samples_ns", "samples_ts", "profile", "audit")  # that a CSV file has no place for


class Printer(Protocol):
    def __init__(self, swept: Sequence[str]): ...
    def add(self, result: dict[str, Any]) -> None: ...
    def finish(self) -> None: ...


def workload_name(result: dict[str, Any]) -> str:
    return Workload(result["n_prompt"], result["n_gen"], result["n_depth"], result["n_batch"], result["n_ubatch"]).name


class Markdown:
    def __init__(self, swept: Sequence[str]):
        """swept: the columns that are not always there."""
        self._columns = ["model", "size", "params", "backend", "threads", *swept, "test", "t/s"]
        self._line([f"{name:{self._align(name)}{abs(WIDTHS[name])}}" for name in self._columns])
        self._line(["-" * (abs(WIDTHS[name]) - 1) + ("-" if WIDTHS[name] < 0 else ":") for name in self._columns])

    def add(self, result: dict[str, Any]) -> None:
        size, params = result["model_size"], result["model_n_params"]
        shown = result | {
            "model": result["model_type"],
            "size": f"{size / MIB:.2f} MiB" if size < GIB else f"{size / GIB:.2f} GiB",
            "params": f"{params / 1e6:.2f} M" if params < 1e9 else f"{params / 1e9:.2f} B",
            "backend": result["backends"],
            "threads": f"{result['n_threads']}" if result["ranks"] == 1 else f"{result['ranks']} x {result['n_threads']}",
            "test": workload_name(result),
            "t/s": f"{result['avg_ts']:.2f} ± {result['stddev_ts']:.2f}",
        }
        self._line([f"{shown[name]!s:{self._align(name)}{abs(WIDTHS[name])}}" for name in self._columns])

    def finish(self) -> None:
        pass

    def _align(self, name: str) -> str:
        return "<" if WIDTHS[name] < 0 else ">"

    def _line(self, cells: list[str]) -> None:
        print("|" + "".join(f" {cell} |" for cell in cells), flush=True)


class Json:
    def __init__(self, swept: Sequence[str]):
        self._results: list[dict[str, Any]] = []

    def add(self, result: dict[str, Any]) -> None:
        self._results.append(result)

    def finish(self) -> None:
        print(json.dumps(self._results, indent=2))


class JsonLines:
    def __init__(self, swept: Sequence[str]):
        pass

    def add(self, result: dict[str, Any]) -> None:
        print(json.dumps(result), flush=True)

    def finish(self) -> None:
        pass


class Csv:
    def __init__(self, swept: Sequence[str]):
        self._writer: csv.DictWriter[str] | None = None

    def add(self, result: dict[str, Any]) -> None:
        row = {name: value for name, value in result.items() if name not in LISTS}
        if self._writer is None:
            print(",".join(row))
            self._writer = csv.DictWriter(sys.stdout, list(row), quoting=csv.QUOTE_ALL, lineterminator="\n")
        self._writer.writerow(row)
        sys.stdout.flush()

    def finish(self) -> None:
        pass


PRINTERS: dict[str, type[Printer]] = {"md": Markdown, "json": Json, "jsonl": JsonLines, "csv": Csv}


def print_profile(title: str, profile: dict[str, Any]) -> None:
    """A table of the kinds of op, the slowest first, and of the waiting."""
    step = profile["step_us"]
    steps = f"{profile['steps']} Steps of {profile['rows']} row{'s' * (profile['rows'] > 1)}"
    print(f"\n{title}: {step:.1f} us a Step, mean of {steps} with a clock around each op\n")
    names = [f"{kind['op']} {kind['weights']}".strip() for kind in profile["kinds"]]
    width = max(map(len, [*names, "waiting for other ranks"]))
    print(f"| {'op':<{width}} | {'count':>5} | {'us':>9} | {'% of Step':>9} | {'GB/s':>7} | {'GOP/s':>7} | {'% of roofline':>13} |")
    print(f"| {'-' * width} | ----: | --------: | --------: | ------: | ------: | ------------: |")
    for name, kind in zip(names, profile["kinds"], strict=True):
        cells = [_number(kind["gbs"], 7), _number(kind["gops"], 7, 0), _number(kind["roofline_percent"], 13)]
        print(
            f"| {name:<{width}} | {kind['count']:5.0f} | {kind['us']:9.1f} | {100 * kind['us'] / step:9.1f} | {' | '.join(cells)} |"
        )
    waits = {"barriers": "barrier_us", "waiting for other ranks": "exchange_wait_us", "start and end": "start_and_end_us"}
    for name, key in waits.items():
        print(f"| {name:<{width}} | {'':5} | {profile[key]:9.1f} | {100 * profile[key] / step:9.1f} | {'':7} | {'':7} | {'':13} |")
    slow = profile["straggler"]
    print(
        f"\nbusiest: thread {slow['thread']} of rank {slow['rank']} on cpu {slow['cpu']}, {slow['above_mean_percent']:.1f} % above "
        f"the mean; it waited {slow['barrier_us']:.1f} us in barriers and {slow['exchange_wait_us']:.1f} us for other ranks"
    )


def _number(value: float | None, width: int, digits: int = 1) -> str:
    return f"{'':{width}}" if value is None else f"{value:{width}.{digits}f}"
