"""`numatp bench`: llama-bench's options, tests and output, measured through the engine, beside what the machine could do at most.

Comma lists, ranges (1-8, 1-8+2, 1-8*2) and repeated options sweep. The model is loaded once for all tests that can share it.
"""

import argparse
import itertools
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from numatp.cli import bench_compare, bench_rehearse
from numatp.cli.audit import add_option, audited, report
from numatp.cli.bench_output import PRINTERS, Printer, print_profile, workload_name
from numatp.cli.options import DIFFERENT, add_loading, natural, note, positive
from numatp.cli.progress import Progress
from numatp.cli.session import ended
from numatp.engine.job import Job
from numatp.engine.start import find_model
from numatp.errors import UserError
from numatp.files.gguf import read_gguf
from numatp.kernels.layout import CACHE_BLOCK, CACHE_TYPES
from numatp.llm import count_pages
from numatp.machine.launch import read_launch
from numatp.measure.service import MeasuringService
from numatp.measure.workload import Workload

if TYPE_CHECKING:
    from numatp.measure.bench import Result

DEFAULTS: dict[str, list[Any]] = {
    "n_prompt": [512], "n_gen": [128], "n_prompt_gen": [], "n_depth": [0], "batch_size": [2048], "ubatch_size": [512],
    "threads": [], "cache_type_k": ["f16"], "cache_type_v": ["f16"],
}  # fmt: skip
MIB = 1 << 20


def numbers(text: str) -> list[int]:
    """llama-bench's lists of whole numbers: "512,1024", "1-8", "1-8+2", "1-8*2"."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+)(?:([+*])(\d+))?)?", part)
        if not match:
            raise argparse.ArgumentTypeError(f"'{part}' is not a number or a range like 1-8, 1-8+2 or 1-8*2")
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[4] or 1)
        if last < first or (match[3] and step < (2 if match[3] == "*" else 1)) or (match[3] == "*" and not first):
            raise argparse.ArgumentTypeError(f"'{part}' is not a range that ends")
        while first <= last:
            found.append(first)
            first = first * step if match[3] == "*" else first + step
    return found


def positive_numbers(text: str) -> list[int]:
    found = numbers(text)
    if 0 in found:
        raise argparse.ArgumentTypeError("0 is not a whole number above 0")
    return found


def pair(text: str) -> list[tuple[int, int]]:
    match = re.fullmatch(r"(\d+),(\d+)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"'{text}' is not a pair like 512,128")
    return [(int(match[1]), int(match[2]))]


def words(text: str) -> list[str]:
    return text.split(",")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    def add(short: str, long: str, kind: Callable[[str], list[Any]], text: str, metavar: str = "N") -> None:
        # No default here: values of a repeated option would be appended to it.
        default = ",".join(map(str, DEFAULTS[long[2:].replace("-", "_")]))
        text += f" (default {default})" if default else ""
        parser.add_argument(short, long, type=kind, action="extend", metavar=metavar, help=text)

    text = "names of pulled models, or paths of GGUF files"
    parser.add_argument("-m", "--model", type=words, action="extend", required=True, metavar="MODEL", help=text)
    add("-p", "--n-prompt", numbers, "tokens of a prompt, 0: no such test")
    add("-n", "--n-gen", numbers, "tokens to generate, 0: no such test")
    add("-pg", "--n-prompt-gen", pair, "a prompt and then generation, timed together", "PP,TG")
    add("-d", "--n-depth", numbers, "tokens in the cache before what is timed")
    add("-b", "--batch-size", positive_numbers, "tokens of a prompt between two logits")
    add("-ub", "--ubatch-size", positive_numbers, "tokens of one Step")
    add("-t", "--threads", positive_numbers, "threads per rank (default: one per core)")
    add("-ctk", "--cache-type-k", words, "type of the keys in the cache", "TYPE")
    add("-ctv", "--cache-type-v", words, "type of the values in the cache", "TYPE")
    parser.add_argument("-r", "--repetitions", type=positive, default=5, metavar="N", help="of each test (default 5)")
    parser.add_argument("-o", "--output", choices=list(PRINTERS), default="md", help="what stdout gets (default md)")
    parser.add_argument("--profile", action="store_true", help="where the time goes, op by op")
    parser.add_argument("--plot", metavar="FILE", help="draw the profile (needs matplotlib)")
    text = "memory that all ranks read for the roofline (default: 8 x L3, at most half of what is free; 0: no roofline)"
    parser.add_argument("--roofline", type=natural, metavar="MIB", help=text)
    text = f"the same work in several ways ({','.join(bench_compare.WAYS)}), in alternating order; ends with what tp gained"
    parser.add_argument("--compare", type=bench_compare.parse_ways, metavar="WAYS", help=text)
    text = "how a token's work divides among so many threads per rank, though there be fewer cores; measures nothing else"
    parser.add_argument("--rehearse", type=positive, metavar="THREADS", help=text)
    add_loading(parser)
    add_option(parser)


@dataclass(frozen=True)
class Load:
    """What tests must have in common to share a loaded model."""

    model: str  # path
    cache_type: str
    threads: int | None


def run(given: argparse.Namespace) -> int:
    arguments = _with_defaults(given)
    loads, tests = _loads(arguments), _tests(arguments)
    if arguments.rehearse:
        return _rehearse(arguments, loads)
    _check_lengths(loads, tests)
    plot = None
    if arguments.plot is not None:
        from numatp.cli import bench_plot

        plot = bench_plot.check(arguments.plot)
    if arguments.compare:
        return _compare(arguments, loads, tests)
    status, profiles = _measure(arguments, loads, tests)
    if arguments.output == "md":
        for title, profile in profiles:
            print_profile(title, profile)
    if plot and profiles:
        plot(profiles)
    return status


def _with_defaults(given: argparse.Namespace) -> argparse.Namespace:
    """What was given, and the default of each list that was not."""
    return argparse.Namespace(**vars(given) | {name: getattr(given, name) or default for name, default in DEFAULTS.items()})


def _check_lengths(loads: list[Load], tests: list[Workload]) -> None:
    """UserError for a test that a model is too short for. A folder says so when it is loaded."""
    longest = max(tests, key=lambda test: test.length)
    for file in [read_gguf(load.model) for load in loads if not os.path.isdir(load.model)]:
        trained = file.count(f"{file.text('general.architecture')}.context_length")
        if longest.length > trained:
            raise UserError(
                f"{longest.name} needs {longest.length} tokens, and {file.path} was trained for {trained}: a shorter test"
            )


def _rehearse(arguments: argparse.Namespace, loads: list[Load]) -> int:
    if len(loads) > 1 or loads[0].threads or arguments.compare or arguments.profile or arguments.plot:
        raise UserError("--rehearse takes one model and one cache type, and no -t, --compare, --profile or --plot")
    tests = [Workload(0, CACHE_BLOCK, 0, 1, 1)]
    job = _job(arguments, loads[0], tests, threads=arguments.rehearse, measure=MIB, rehearse=True)
    return bench_rehearse.run(job, arguments.ranks, arguments.output)


def _compare(arguments: argparse.Namespace, loads: list[Load], tests: list[Workload]) -> int:
    if len(loads) > 1:
        raise UserError("--compare takes one model, one -t and one cache type")
    ways = bench_compare.ways_of(arguments.compare, arguments.ranks, loads[0].threads)
    one = partial(_job, arguments, loads[0], tests, measure=MIB)
    min_local = arguments.min_local if arguments.audit else 0
    return bench_compare.run(ways, one, tests, arguments.repetitions, arguments.output, min_local)


def _measure(
    arguments: argparse.Namespace, loads: list[Load], tests: list[Workload]
) -> tuple[int, list[tuple[str, dict[str, Any]]]]:
    """Prints the result of every test of every load: (exit status, (title, profile) of each where that was asked for)."""
    printer: Printer | None = None
    profiles: list[tuple[str, dict[str, Any]]] = []
    status = 0
    for load in loads:
        with Progress("load") as progress:
            service = MeasuringService(_job(arguments, load, tests), arguments.ranks, progress.update)
            if service.rank:
                service.wait()
                return 0, []
        with ended(service.abort):
            service.engine()
            printer = printer or PRINTERS[arguments.output](_swept(arguments))
            results = _results(service, tests, arguments)
            if arguments.audit:
                results, finding = _with_audit(service, results, arguments.min_local)
                status = max(status, finding)
            for result in results:
                printer.add(result)
                if "profile" in result:
                    profiles.append((f"{result['model_type']} {workload_name(result)}", result["profile"]))
            service.close()
    assert printer
    printer.finish()
    return status, profiles


def _with_audit(
    service: MeasuringService, results: Iterator[dict[str, Any]], min_local: float
) -> tuple[Iterator[dict[str, Any]], int]:
    """The results with where the pages were, and the exit status. The audit is complete only after the last test."""
    found = list[dict[str, Any]]()
    before, after, status = audited(partial(count_pages, service), min_local, partial(found.extend, results))
    return iter([result | {"audit": report(before, after, min_local)} for result in found]), status


def _job(arguments: argparse.Namespace, load: Load, tests: list[Workload], **changes: Any) -> Job:
    described = {
        "model": load.model, "context": max(test.length for test in tests), "threads": load.threads, "nodes": arguments.nodes,
        "cpus": arguments.cpus, "keep_binding": arguments.bind == "none", "max_rows": max(test.ubatch for test in tests),
        "allow_remote": arguments.allow_remote or arguments.audit, "tensor_split": arguments.tensor_split,
        "cache_type": load.cache_type, "quantize": arguments.quantize, "wire": arguments.wire,
        "pipeline": arguments.pipeline, "same_bits": arguments.same_bits,
        "measure": MIB if arguments.roofline == 0 else (arguments.roofline or 0) * MIB,
    }  # fmt: skip
    return Job(**(described | changes))


def _results(service: MeasuringService, tests: list[Workload], arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What each test gave, as JSON."""
    from numatp.measure.bench import Bench  # these load numpy
    from numatp.measure.report import describe, profile

    engine, repetitions = service.engine(), arguments.repetitions
    note(service.started.line)
    bench = service.call(partial(Bench, roofline=arguments.roofline != 0))
    if bench.dram:
        rate = bench.dram
        note(f"roofline: {rate.per_second / 1e9:.1f} GB/s over {rate.num_bytes / 1e9:.2f} GB ({rate.loop})")
    for test in tests:
        with Progress(test.name) as progress:
            result = service.call(partial(bench.run, test, repetitions, progress.update))
        described = describe(engine, bench, test, result)
        if arguments.profile or arguments.plot:
            described["profile"] = service.call(partial(profile, bench=bench, test=test, result=result))
        _say_result(test, result)
        if result.doubt:
            note(result.doubt)
        yield described


def _loads(arguments: argparse.Namespace) -> list[Load]:
    for name in (*arguments.cache_type_k, *arguments.cache_type_v):
        if name not in CACHE_TYPES:
            raise UserError(f"the cache cannot be of type {name!r}; choose from {', '.join(CACHE_TYPES)}")
    loads = []
    for model, keys, values, threads in itertools.product(
        arguments.model, arguments.cache_type_k, arguments.cache_type_v, arguments.threads or [None]
    ):
        if keys != values:
            raise UserError(DIFFERENT.format(keys, values))
        loads.append(Load(find_model(model), keys, threads))
    launched = read_launch()
    if launched and launched.size > 1 and len(loads) > 1:
        raise UserError(
            f"under {launched.starter} one model, one -t and one cache type at a time: run it once for each, or use --ranks"
        )
    return loads


def _tests(arguments: argparse.Namespace) -> list[Workload]:
    pairs = [(prompt, 0) for prompt in arguments.n_prompt] + [(0, count) for count in arguments.n_gen] + arguments.n_prompt_gen
    found = [
        Workload(prompt, generated, depth, batch, min(batch, ubatch))
        for batch, ubatch, depth in itertools.product(arguments.batch_size, arguments.ubatch_size, arguments.n_depth)
        for prompt, generated in pairs
        if prompt or generated
    ]
    if not found:
        raise UserError("-p 0 -n 0 leave nothing to measure: give -p, -n or -pg")
    return found


def _swept(arguments: argparse.Namespace) -> list[str]:
    """Options that are no column of their own in llama-bench's table unless they are given."""
    columns = {"n_batch": "batch_size", "n_ubatch": "ubatch_size", "type_k": "cache_type_k", "type_v": "cache_type_v"}
    return [column for column, name in columns.items() if getattr(arguments, name) != DEFAULTS[name]]


def _say_result(test: Workload, result: "Result") -> None:
    line = f"{test.name}: {(test.prompt + test.generated) / result.seconds:.2f} t/s, reading {result.read_gbs:.1f} GB/s"
    if result.ceiling:
        read, dot = result.ceiling.read, result.ceiling.dot
        line += (
            f", {result.roofline_percent:.1f} % of the roofline ({read.per_second / 1e9:.1f} GB/s over "
            f"{read.num_bytes / 1e9:.2f} GB, {dot.per_second / 1e9:.0f} GOP/s)"
        )
    if result.exchange_us is not None:
        line += f", {result.exchange_us:.2f} us per exchange"
    note(line)
