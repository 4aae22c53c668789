"""How fast the engine is: prompts and generation of random tokens as llama-bench has them, beside the least time that they need.

That least time is what the roofline (measure/roofline.py) gives for the weights and cache that have to be read, or for the products
that have to be made, whichever is longer. A result above it has no share of it: the machine's speed changed.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from math import prod
from random import Random

from numatp.engine.blocks import Tables
from numatp.engine.programs import MANY_ROWS, ONE_ROW
from numatp.measure.instruments import MeasuringEngine, Timed
from numatp.measure.roofline import Rate
from numatp.measure.workload import Workload
from numatp.models.layers import InBlocks, parts_of
from numatp.models.spec import Spec
from numatp.program.step import Span
from numatp.weights.rules import Rule, whole_shape
from numatp.weights.splits import split

EXCHANGE_STEPS = 8
MORE_CEILINGS = 3  # measured after a result that is above the first


@dataclass(frozen=True)
class Ceiling:
    """What this machine could do, measured around a test; None: not measured."""

    read: Rate
    dot: Rate

    def least_seconds(self, num_bytes: int, num_ops: int) -> float:
        return max(num_bytes / self.read.per_second, num_ops / self.dot.per_second)


@dataclass(frozen=True)
class Result:
    samples_ns: list[int]
    # Of the prompt and of the generation: bytes of weights and cache that one repetition reads at least, and the multiplications
    # and additions with weights that it needs.
    needed: list[tuple[int, int]]
    ceiling: Ceiling | None
    exchange_us: float | None  # of one exchange between ranks, until its sum is there; None with one rank
    doubt: str = ""  # why there is no ceiling, one line

    @property
    def seconds(self) -> float:
        return sum(self.samples_ns) / len(self.samples_ns) / 1e9

    @property
    def read_gbs(self) -> float:
        return sum(num_bytes for num_bytes, _ in self.needed) / self.seconds / 1e9

    @property
    def roofline_percent(self) -> float | None:
        """Of the speed that the machine allows."""
        if self.ceiling is None:
            return None
        return 100 * sum(self.ceiling.least_seconds(*part) for part in self.needed) / self.seconds

    @property
    def above_roofline(self) -> bool:
        percent = self.roofline_percent
        return percent is not None and percent > 100


def products(spec: Spec, rules: Iterable[Rule]) -> tuple[int, int]:
    """(multiplications with weights that a row needs, those that its logits need in addition)."""
    body = head = 0
    for rule in rules:
        weights = prod(whole_shape(rule, spec.sizes)) // rule.part[1]
        if rule.kind == "head":
            head = weights
        elif rule.in_tiles and rule.kind != "embedding":
            body += weights // spec.sizes.experts * spec.experts_used if rule.stack == "experts" else weights
    return body, head


class Bench:
    """On rank 0 of an engine with instruments, on the engine's thread."""

    def __init__(self, engine: MeasuringEngine, roofline: bool, seed: int = 0):
        self._engine, self._instruments, self._roofline = engine, engine.instruments, roofline
        self._random = Random(seed)
        model = engine.loaded.model
        self._row_products, self._logit_products = products(model.spec, model.architecture.rules(model.spec))
        self._tables: Tables | None = None
        self._depth = -1  # tokens in the cache; -1: unknown
        self._loop: str | None = None
        # Read rate of the whole area: of memory, where that is larger than the caches.
        self.dram: Rate | None = self._instruments.meter.read(self._instruments.part_bytes) if roofline else None

    # ------------------------------------------------------------ one test

    def run(self, test: Workload, repetitions: int, progress: Callable[[int, int], None], engine: MeasuringEngine) -> Result:
        """A result above the roofline shows that the roofline came out too low: then that is measured again."""
        self._go_to(test)
        self._prompt(test.depth, test.prompt, test)  # to warm up, as llama-bench does
        self._generate(test.depth + test.prompt, min(test.generated, 1))
        before = self.ceiling()
        samples = []
        for i in range(repetitions):
            self._go_to(test)
            samples.append(self._once(test))
            progress(i + 1, repetitions)
        result = Result(samples, self._needed(test), best(before, self.ceiling()), self._exchange_us(test))
        tries = 0
        while result.above_roofline and tries < MORE_CEILINGS:
            result = replace(result, ceiling=best(result.ceiling, self.ceiling()))
            tries += 1
        if not result.above_roofline:
            return result
        doubt = (
            f"{test.name} came out at {result.roofline_percent:.0f} % of the roofline, which is impossible: the machine's speed "
            "changed while it was measured, so its share is left empty; run it again, with nothing else running"
        )
        return replace(result, ceiling=None, doubt=doubt)

    def _go_to(self, test: Workload) -> None:
        """Makes the cache hold `depth` tokens: what lies behind them is written anew."""
        if self._depth != test.depth or not self._engine.loaded.spec.rewinds:
            if self._tables:
                self._tables.release()
            self._tables = Tables(self._engine.blocks)
            self._prompt(0, test.depth, test)
            self._depth = test.depth

    def _once(self, test: Workload) -> int:
        began = time.perf_counter_ns()
        self._prompt(test.depth, test.prompt, test)
        self._generate(test.depth + test.prompt, test.generated)
        return time.perf_counter_ns() - began

    def _prompt(self, position: int, count: int, test: Workload) -> None:
        for start in range(0, count, test.batch):
            end = min(start + test.batch, count)
            for first in range(start, end, test.ubatch):
                rows = min(test.ubatch, end - first)
                self._step(position + first, rows, first + rows == end, count)

    def _generate(self, position: int, count: int) -> None:
        for i in range(count):
            self._step(position + i, 1, True, 0)

    def _span(self, position: int, rows: int, logits: bool, prompt: int) -> Span:
        """prompt: tokens of the prompt that they belong to."""
        assert self._tables
        vocab = self._engine.loaded.spec.sizes.vocab
        tokens = [self._random.randrange(vocab) for _ in range(rows)]
        tables = self._tables.prepare(position, rows)
        return Span(0, tokens, position, tables, want_logits=logits, prompt=prompt if rows > 1 else 0)

    def _step(self, position: int, rows: int, logits: bool, prompt: int) -> None:
        self._engine.run([self._span(position, rows, logits, prompt)])

    # ------------------------------------------------------------ what it needs at least

    def _needed(self, test: Workload) -> list[tuple[int, int]]:
        """As Result has it."""
        weights, row, head = self._engine.bytes_per_token, self._row_products, self._logit_products
        batches = -(-test.prompt // test.batch)
        steps = sum(-(-min(test.batch, test.prompt - i * test.batch) // test.ubatch) for i in range(batches))
        first = test.depth + test.prompt
        cache = sum(self.cache_bytes(position) for position in range(first, first + test.generated))
        return [
            (steps * weights, 2 * (test.prompt * row + batches * head)),
            (test.generated * weights + cache, 2 * test.generated * (row + head)),
        ]

    def cache_bytes(self, position: int) -> int:
        """Keys and values that the token at `position` reads, on all ranks, each KV head once."""
        spec = self._engine.loaded.spec
        everything = split(spec.sizes, 0, 1)
        kept = (kept for kept in parts_of(spec.layers) if isinstance(kept, InBlocks))
        return sum(one.read_bytes(everything, self._engine.job.cache_type, position + 1) for one in kept)

    def ceiling(self) -> Ceiling | None:
        """Read rate of as much memory as a token reads, at most the roofline's area; and the products' rate."""
        if not self._roofline:
            return None
        threads = sum(len(cpus) for cpus in self._instruments.cpus)
        part = min(self._engine.bytes_per_token // threads, self._instruments.part_bytes)
        meter = self._instruments.meter
        read = meter.read(part, loop=self._loop)
        if self._loop is None:  # the best one is known now
            self._loop = read.loop
            read = max(read, meter.read(part, loop=self._loop), key=lambda rate: rate.per_second)
        return Ceiling(read, meter.dot())

    # ------------------------------------------------------------ op by op

    def timed(self, rows: int, steps: int, test: Workload) -> tuple[Timed, list[int]]:
        """Runs so many Steps of `rows` rows at the test's depth with the clock: their sums, and the ns of each on rank 0.

        One row moves on from Step to Step as far as the context reaches.
        """
        self._go_to(test)
        program = ONE_ROW if rows == 1 else MANY_ROWS
        timed = self._instruments.timed[program]
        taken = []
        for i in range(steps + 1):
            if i == 1:  # the first one warmed up
                for times in timed.times:
                    times[:] = 0
            if rows > 1:
                self._go_to(test)
            position = test.depth if rows > 1 else min(test.depth + i, self._engine.loaded.layout.context - 1)
            self._engine.window.step.write([self._span(position, rows, True, rows)])
            began = time.perf_counter_ns()
            self._engine.team.step(timed.index)
            taken.append(time.perf_counter_ns() - began)
        return timed, taken[1:]

    def _exchange_us(self, test: Workload) -> float | None:
        """Of Steps of one row: the meeting, what goes to other hosts and the sum, mean over lanes and ranks."""
        if self._engine.world.size == 1:
            return None
        timed, spent, count = self.timed(1, EXCHANGE_STEPS, test)[0], 0.0, 0
        for ops, times in zip(timed.ops, timed.times, strict=True):
            for i, op in enumerate(ops):
                if op.name in ("sync", "cross") or op.name.startswith("exchange."):
                    lanes = 1 if op.name == "cross" else self._engine.window.lanes
                    spent += float(times[:lanes, i, 1].mean())
                    count += op.name in ("exchange.sum_partials", "exchange.sum_hosts")
        return spent / max(count * EXCHANGE_STEPS, 1) / 1e3


def best(*ceilings: Ceiling | None) -> Ceiling | None:
    """The highest rate of each kind."""
    known = [ceiling for ceiling in ceilings if ceiling]
    if not known:
        return None
    read = max((ceiling.read for ceiling in known), key=lambda rate: rate.per_second)
    return Ceiling(read, max((ceiling.dot for ceiling in known), key=lambda rate: rate.per_second))
