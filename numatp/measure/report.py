"""What `numatp bench` says of a test, as JSON: llama-bench's fields and ours."""

import re
import time
from math import prod
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from numatp import __version__
from numatp.engine.layout import name_of
from numatp.measure.bench import Bench, Result
from numatp.measure.instruments import MeasuringEngine
from numatp.measure.profile import describe as describe_profile
from numatp.measure.workload import Workload

PROMPT_STEPS, GENERATION_STEPS = 3, 32  # that are profiled
MIB = 1 << 20


def describe(engine: MeasuringEngine, bench: Bench, test: Workload, result: Result) -> dict[str, Any]:
    """llama-bench's fields and ours."""
    tokens = test.prompt + test.generated
    rates = [1e9 * tokens / ns for ns in result.samples_ns]
    tensors = engine.loaded.model.file.tensors.values()
    params = sum(prod(tensor.shape) for tensor in tensors)
    ceiling, dram = result.ceiling, bench.dram
    return {
        "build_commit": __version__, "build_number": 0, "cpu_info": _cpu(), "gpu_info": "", "backends": "CPU",
        "model_filename": engine.job.model, "model_type": _model_type(engine, params),
        "model_size": sum(tensor.num_bytes for tensor in tensors),
        "model_n_params": params, "n_batch": test.batch, "n_ubatch": test.ubatch, "n_threads": engine.team.threads,
        "type_k": engine.job.cache_type, "type_v": engine.job.cache_type, "n_prompt": test.prompt, "n_gen": test.generated,
        "n_depth": test.depth, "test_time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "avg_ns": round(mean(result.samples_ns)), "stddev_ns": round(_deviation(result.samples_ns)),
        "avg_ts": mean(rates), "stddev_ts": _deviation(rates),
        "ranks": engine.world.size, "nodes": engine.instruments.nodes, "read_gbs": result.read_gbs,
        "roofline_percent": result.roofline_percent, "exchange_us": result.exchange_us,
        "peak_rss_mib": engine.instruments.peak_bytes() / MIB,
        "roofline_gbs": ceiling.read.per_second / 1e9 if ceiling else None,
        "roofline_bytes": ceiling.read.num_bytes if ceiling else None,
        "roofline_gops": ceiling.dot.per_second / 1e9 if ceiling else None,
        "memory_gbs": dram.per_second / 1e9 if dram else None, "memory_bytes": dram.num_bytes if dram else None,
        "load_seconds": engine.load_seconds, "samples_ns": result.samples_ns, "samples_ts": rates,
    }  # fmt: skip


def _model_type(engine: MeasuringEngine, params: int) -> str:
    """Architecture, size and the format of most of its bytes: llama 1B Q4_0."""
    file, by_type = engine.loaded.model.file, dict[str, int]()
    for tensor in file.tensors.values():
        by_type[tensor.type] = by_type.get(tensor.type, 0) + tensor.num_bytes
    size = f"{params / 1e9:.1f}B" if params >= 999.5e6 else f"{params / 1e6:.0f}M"
    size = file.text("general.size_label", size)
    return f"{name_of(engine.loaded.model.architecture)} {size} {max(by_type, key=lambda kind: by_type[kind])}"


def _cpu() -> str:
    match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return match[1].strip() if match else ""


def _deviation(values: list[Any]) -> float:
    """Of a sample; 0 of one value, as llama-bench has it."""
    return stdev(values) if len(values) > 1 else 0.0


def profile(engine: MeasuringEngine, bench: Bench, test: Workload, result: Result) -> dict[str, Any]:
    """Of the Step that the test is made of: a row where it generates, else a whole -ub or what there is of the prompt."""
    rows = 1 if test.generated else min(test.prompt, test.ubatch)
    steps = PROMPT_STEPS if rows > 1 else GENERATION_STEPS
    timed, taken = bench.timed(rows, steps, test)
    cache = bench.cache_bytes(test.depth + steps // 2) if rows == 1 else 0
    return describe_profile(timed, taken, rows, result.ceiling, cache, engine.instruments.cpus)
