"""One rank of the engine: runs Steps (rank 0) or serves them (the others), once the model is loaded."""

import time
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from numatp.engine.agree import agree
from numatp.engine.arenas import Arenas
from numatp.engine.audit import Audit
from numatp.engine.blocks import Blocks
from numatp.engine.carry import Carry
from numatp.engine.job import MARGIN, Job
from numatp.engine.layout import lay_out, open_model
from numatp.engine.load import Loaded, check_hosts, check_kernels, check_model, check_pages, place
from numatp.engine.prefixes import Prefixes
from numatp.engine.programs import (
    AUDIT,
    COPIES,
    MANY_ROWS,
    ONE_ROW,
    SCORES,
    activation_bytes,
    give_memory,
    record,
    record_copies,
)
from numatp.engine.room import check_room
from numatp.engine.sampler import Sampler
from numatp.engine.sections import Sections, sections_of
from numatp.engine.start import StartedRank
from numatp.engine.team import Team
from numatp.engine.ways import TwoWays
from numatp.engine.window import Window
from numatp.errors import MachineError, NumatpError
from numatp.files.measured import read_bandwidth
from numatp.files.prompt_cache import open_key
from numatp.kernels.compile import Kernel
from numatp.machine import limits
from numatp.program.builder import Program
from numatp.program.halves import halve
from numatp.program.step import Span
from numatp.weights.rules import notes
from numatp.weights.splits import SEGMENTS


class Engine:
    """Must be made and used by one thread, which becomes thread 0 of the rank's team and is pinned."""

    def __init__(self, job: Job, started: StartedRank, progress: Callable[[int, int], None] = lambda done, total: None):
        world, own = started.world, started.placement
        self.job, self.world, self.placement = job, world, own
        started.bind()
        began = time.perf_counter()
        folder = job.prompt_cache_dir if world.rank == 0 else None
        self.prompt_key = agree(world, lambda: open_key(Path(folder)) if folder else None)
        self.arenas = Arenas(own, job.allow_remote)
        self.loaded = self._place(started)
        self.team = agree(world, lambda: Team(world.host, own.cpus, own.l3))
        layout = self.loaded.layout
        sections = agree(world, lambda: sections_of(self.loaded.spec, job, layout.context, len(layout.pools)))
        between = agree(world, lambda: self._between_hosts(sections))
        carried = max((size for _, size in layout.cache.parts), default=0) if job.prompt_cache_dir else 0
        self._check_room(sections.bytes_of(world.host.seat) + between + carried)  # the window's pages are taken when it is mapped
        self.window = Window(world, sections, self.team, layout)
        started.notes += filter(None, [self.window.said])
        self._audit = Audit(world, own.node, self.loaded)
        self.carry = Carry(world, self.loaded) if job.prompt_cache_dir else None
        self.cuts: list[str] = []  # by rank: which part it has
        if job.prompt_cache_dir:
            self.cuts = world.gather(_digest(str((layout.split, layout.stage))))
        self._recorded, halves = agree(world, lambda: record(world, self.loaded, self.window, self.team, job.check_ranks))
        # By program and by rank, what it must hold alike with another rank, and by rank which other.
        self._compared = [[one.digests] * world.size for one in self._recorded]
        self._pattern = [0] * world.size
        if world.hosts and layout.stage:
            self._compared = [world.of_all_hosts([one.digests] * world.host.seats) for one in self._recorded]
            members = world.hosts.members
            self._pattern = [members.first_rank(members.host_of(rank)) for rank in range(world.size)]
        self._load([one.program for one in self._recorded] + ([halves] if halves else []), progress)
        copies = [record_copies(self.loaded, self.window, self.team)] if self.loaded.layout.cache.recurrent else []
        carries = [self.carry.program] if self.carry else []
        self.programs = [*(one.program for one in self._recorded), self._audit.program, *copies, *carries]  # by index
        self._carry_program, self._halves_program = len(self.programs) - 1, len(self.programs)
        self.programs += [halves] if halves else []
        self._ways = TwoWays() if halves and not job.check_ranks else None
        self.team.set_programs(self.programs)
        read = world.gather([world.name_node(own.node), self.programs[ONE_ROW].weight_bytes])
        self.reads: list[tuple[int | str, int]] = [(node, size) for node, size in read]  # node, weights read for one token; by rank
        self.bytes_per_token = sum(size for _, size in self.reads)
        self.load_seconds = time.perf_counter() - began
        self.pages_line = check_pages(world, own, self.loaded, job.allow_remote)
        if world.rank == 0:
            self.blocks = Blocks(self.loaded.layout.pools, self.loaded.layout.max_rows)
            cache = self.loaded.layout.cache
            checkpoints = range(job.max_sequences, cache.slots if cache.recurrent else 0)
            self.prefixes = Prefixes(self.blocks, checkpoints, job.checkpoint_every, job.prefix_cache, self.prompt_key)
            self.sampler = Sampler(self.window.logits, self.loaded.spec.sizes.vocab, self.team)

    def _place(self, started: StartedRank) -> Loaded:
        """Everything of the model has its address, and nothing was touched yet."""
        world, job = self.world, self.job
        measured = read_bandwidth().get(self.placement.node)
        told = world.gather([world.name_node(self.placement.node), measured])
        nodes = [node for node, _ in told]
        bandwidth = {node: rate for node, rate in reversed(told) if rate}  # as the first rank of a node has it
        model = agree(world, lambda: open_model(job))
        if world.hosts:
            check_model(world, model)
            if job.same_bits:
                agree(world, lambda: check_hosts(world, job))
        seats = world.hosts.members.seats if world.hosts else [world.size]
        layout = agree(world, lambda: lay_out(model, job, world.rank, nodes, bandwidth, seats))
        check_kernels(world)
        if layout.stage:
            layers = layout.stage.layers
            started.notes.append(world.describe(lambda rank: f"layers {layers.start} to {layers.stop - 1}"))
        started.notes += model.file.notes + notes(layout.slices)
        return agree(world, lambda: place(model, layout, self.arenas))

    def _between_hosts(self, sections: Sections) -> int:
        """Bytes of the window for what goes between hosts."""
        hosts, layers = self.world.hosts, bool(self.loaded.layout.stage)
        return sections.between_hosts(hosts.members.seats, hosts.index, self.world.host.seat, layers) if hosts else 0

    def _check_room(self, more: int) -> bool:
        """For weights, cache and `more` bytes, see check_room."""
        layout = self.loaded.layout
        needed = layout.weight_bytes + layout.cache.num_bytes + more + MARGIN
        return agree(self.world, lambda: check_room(self.world, self.placement, self.job.allow_remote, needed))

    def _load(self, programs: list[Program], progress: Callable[[int, int], None]) -> None:
        """Takes the memory, if there is room for it, and reads the weights."""
        world, team = self.world, self.team
        loaded = self.loaded
        short = self._check_room(activation_bytes(programs))
        files = {info.path for info in loaded.model.file.tensors.values()} if short else ()
        agree(world, lambda: give_memory(programs))
        agree(world, lambda: loaded.weights.load(team.threads, self.placement.mask, team.run_each, progress, files))

    def compiled_kernels(self) -> list[str]:
        """Kernels that this process had to compile because the cache did not hold them."""
        return list(Kernel.compiled)

    # ------------------------------------------------------------ Steps, rank 0

    def run(self, spans: list[Span]) -> None:
        """One Step; the logits of the rows that want them are then in `logits`, in the order of the spans."""
        halves = halve(spans) if self._ways else None
        if not halves or not self._ways or not self.window.ahead:
            self.window.step.write(spans)
            self._run_step(ONE_ROW if self.window.step.num_rows[0] == 1 else MANY_ROWS)
            return
        with self._ways.one_step(sum(len(span.tokens) for span in spans)) as in_halves:
            if in_halves:
                first, spans = halves
                self.window.ahead.step.write(first)
            self.window.step.write(spans)
            self._run_step(self._halves_program if in_halves else MANY_ROWS)

    def score(self, spans: list[Span]) -> np.ndarray:
        """One Step of spans with targets: the log-probability of each target, float64, in the order of the spans.

        Not-a-number where some logit of its row is infinite or no number.
        """
        self.window.step.write(spans)
        self._run_step(SCORES)
        return self._parts()[..., 2].max(0) - self._totals()

    def most_probable(self) -> list[tuple[tuple[int, float], ...]]:
        """After a score: for each target the num_top most probable tokens in its place, and their log-probabilities."""
        rows, most = self.window.step.num_logits[0], self.window.step.num_top[0]
        if not most:
            return [()] * rows
        tops = np.array([self.window.tops[rank] for rank in self.window.scoring])[:, :rows]  # (ranks, targets)
        tokens = np.concatenate(tops["tokens"][..., :most], -1)  # (targets, ranks * num_top)
        logprobs = np.concatenate(tops["logits"][..., :most], -1).astype(np.float64) - self._totals()[:, None]
        logprobs[tokens < 0] = -np.inf
        order = np.lexsort((tokens, -logprobs))[:, :most]
        told = zip(np.take_along_axis(tokens, order, -1).tolist(), np.take_along_axis(logprobs, order, -1).tolist(), strict=True)
        return [tuple((t, p) for t, p in zip(*row, strict=True) if p > -np.inf) for row in told]

    def _parts(self) -> np.ndarray:
        """Of the scores of the last Step, float64 (segments of all ranks, targets, 4): kernels/score.py."""
        # Of those who make scores, who may be as many of another host and have other segments than this rank.
        each = SEGMENTS // len(self.window.scoring) if self.loaded.layout.segments else 1
        rows = self.window.step.num_logits[0]
        made = [self.window.scores[rank] for rank in self.window.scoring]
        parts = np.concatenate([part[:rows, :each].swapaxes(0, 1) for part in made])
        return np.ascontiguousarray(parts, np.float64)

    def _totals(self) -> np.ndarray:
        """Of the same targets, float64 (targets,): the logarithm of the sum of the powers of all logits."""
        parts = self._parts()
        highest, totals = parts[..., 0], parts[..., 1]
        with np.errstate(invalid="ignore"):
            top = highest.max(0)
            # One segment after the other, for any number of them and of targets: NumPy's own sum chooses an order by shape.
            found: np.ndarray = top + np.log(sum(totals * np.exp(highest - top)))
        return found

    def copy_states(self, copies: list[tuple[int, int]]) -> None:
        """Of the recurrent layers, on every rank: (from slot, to slot), one after another. The first slots are the places."""
        step = self.window.step
        for i in range(0, len(copies), len(step.copies)):
            some = copies[i : i + len(step.copies)]
            step.copies[: len(some)] = some
            step.num_copies[0] = len(some)
            self.team.step(COPIES)

    def run_carry(self) -> None:
        """A Step of the program of `carry`."""
        self.team.step(self._carry_program)

    def _run_step(self, program: int) -> None:
        self.team.step(program)
        for rank, pattern in enumerate(self._pattern if self.job.check_ranks else ()):
            for i, what in enumerate(self._compared[program][rank]):
                if self.window.digests[rank][i] != self.window.digests[pattern][i]:
                    name = self.programs[program].name
                    raise MachineError(f"rank {rank} holds other bits than rank {pattern} in {what} of program '{name}'")

    def audit(self) -> list[dict[str, Any]]:
        """Where the pages of every rank are now: llm.py's RankPages, as JSON."""
        return self._audit.collect(lambda: self.team.step(AUDIT))

    # ------------------------------------------------------------ the other ranks, and the end

    def serve(self) -> None:
        """Runs Steps until rank 0 stops."""
        self.team.serve()

    def close(self) -> None:
        """Ends the service on the other ranks (rank 0) and gives everything back. Safe after an error."""
        if self.world.rank == 0:
            self.team.stop()
        self.team.close()
        self.arenas.release()


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=16).hexdigest()


def serve(job: Job, started: StartedRank, open_engine: Callable[[Job, StartedRank], Engine] = Engine) -> int:
    """A whole life of a worker process; its exit status."""
    try:
        engine = open_engine(job, started)
        engine.serve()
        engine.close()
    except NumatpError:
        raise
    except BaseException as error:
        started.world.abort(f"rank {started.world.rank}: {limits.describe(error) or f'{type(error).__name__}: {error}'}")
        raise
    return 0
