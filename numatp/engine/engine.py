"""One rank of the engine: loads its part of the model, records its programs, then runs Steps (rank 0) or serves them."""

import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np

from numatp import models
from numatp.engine.audit import Audit
from numatp.engine.cache import Blocks, CacheLayout, num_blocks, pools_of
from numatp.engine.job import MARGIN, ROWS_UNIT, Job, cache_type_of, context_of, quantize_of, rows_of
from numatp.engine.sampler import Sampler
from numatp.engine.start import StartedRank
from numatp.engine.team import Team
from numatp.errors import MachineError, NumatpError, RankError, UserError
from numatp.files.measured import read_bandwidth
from numatp.files.model_file import ModelFile
from numatp.kernels.compile import Kernel, kernel_cache
from numatp.kernels.layout import MAX_HEAD_SIZE
from numatp.machine import limits, native, pages, policy, topology
from numatp.machine.topology import format_cpulist
from numatp.models.spec import Spec
from numatp.program.builder import unset_memory
from numatp.program.ops import Ops
from numatp.program.recorder import MOST_DIGESTS_PER_LAYER, Site
from numatp.program.step import Span, StepShape, StepWindow
from numatp.weights.loader import Weights, notes, plan
from numatp.weights.splits import shares_of, split

MIN_LOCAL = 0.99  # share of the weight pages that must lie on the rank's own node
ONE_ROW, MANY_ROWS, SCORES, AUDIT = 0, 1, 2, 3  # the programs, by index


def read_spec(file: ModelFile, model: ModuleType) -> Spec:
    """UserError for what no kernel computes."""
    spec: Spec = model.read_spec(file)
    sizes = spec.sizes
    if sizes.head_size % 16 or sizes.head_size > MAX_HEAD_SIZE or sizes.width % 32 or sizes.ffn % 32:
        raise UserError(
            f"{file.path}: head size {sizes.head_size}, width {sizes.width} and FFN size {sizes.ffn} must be "
            f"multiples of 16 up to {MAX_HEAD_SIZE}, of 32 and of 32; this model cannot be computed yet"
        )
    return spec


class Engine:
    """Must be made and used by one thread, which becomes thread 0 of the rank's team and is pinned."""

    load_seconds: float
    bytes_per_token: int  # weights that all ranks together read to decode one token
    pages_line: str

    def __init__(self, job: Job, started: StartedRank, progress: Callable[[int, int], None] = lambda done, total: None):
        self.job, self.comm, self.placement = job, started.comm, started.placement
        self._library = native.library()
        self._arenas: list[tuple[int, int]] = []
        self._team: Team | None = None
        started.bind()
        began = time.perf_counter()
        self._nodes = self.comm.gather(self.placement.node)
        self._bandwidth = dict(self.comm.share(list(read_bandwidth().items())))  # rank 0's, so that all cut at the same places
        self.agree(self._prepare)
        self._check_kernels()
        started.notes += self.file.notes + notes(self.slices)
        self._check_room()
        self.agree(self._open_team)
        self.lanes = min(self.comm.gather(self.threads))
        self.agree(lambda: self._load(progress))
        self._map_window()
        self.agree(self._record)
        self.bytes_per_token = sum(self.comm.gather(self.programs[ONE_ROW].weight_bytes))
        self.load_seconds = time.perf_counter() - began
        self.pages_line = self._check_pages()
        self.team.set_programs(self.programs)

    def agree(self, action: Callable[[], None]) -> None:
        """Does something that may fail on one rank alone: then all ranks raise its error."""
        failure: NumatpError | None = None
        try:
            action()
        except RankError:
            raise
        except NumatpError as error:
            failure = error
        except (MemoryError, OSError, RuntimeError) as error:
            line = limits.describe(error)
            if not line:
                raise
            failure = MachineError(f"rank {self.comm.rank}: {line}")
        self.comm.agree(failure)

    def _prepare(self) -> None:
        self._kernels = kernel_cache().name
        self.file, self.model = models.open_model(self.job.model)
        self.spec = read_spec(self.file, self.model)
        quantize = quantize_of(self.job, self.file)
        sizes, comm = self.spec.sizes, self.comm
        self.context = context_of(self.job, self.spec.context)
        self.max_rows = rows_of(self.job, self.context)
        self.split = split(sizes, comm.rank, comm.size, shares_of(self.job.tensor_split, self._nodes, self._bandwidth))
        self.slices, self.weight_bytes = plan(self.file, self.model.rules(self.spec), sizes, self.split, quantize)
        self.pools = pools_of(self.spec, self.context, self.job.max_sequences, self.max_rows)
        cache_type = cache_type_of(self.job, sizes.head_size)
        self.cache = CacheLayout(self.spec, self.split, self.pools, self.job.max_sequences, cache_type)

    def _check_kernels(self) -> None:
        """What every rank computes for itself has the same bits on all only if they run the same kernels."""
        kernels = self.comm.gather(self._kernels)
        for rank, others in enumerate(kernels):
            if others != kernels[0]:
                raise MachineError(
                    f"rank {rank} has other kernels than rank 0: start all ranks with the same numatp, Python packages, NUMATP_ISA "
                    "and NUMBA_ settings"
                )

    def _check_room(self) -> None:
        """Before anything is loaded: MachineError on every rank if a node cannot hold the slices of its ranks."""
        limit, mine = topology.memory_limit_bytes(), self._possible_nodes()
        needed = self.weight_bytes + self.cache.num_bytes + MARGIN
        asked = self.comm.gather([mine, needed, sum(map(topology.free_bytes, mine))])
        wanted_of = {tuple(nodes): sum(size for own, size, _ in asked if set(own) <= set(nodes)) for nodes, _, _ in asked}
        self._short = sum(map(topology.unused_bytes, mine)) < wanted_of[tuple(mine)]
        for nodes, wanted in sorted(wanted_of.items()):
            ranks = [rank for rank, (own, _, _) in enumerate(asked) if set(own) <= set(nodes)]
            free = next(size for own, _, size in asked if tuple(own) == nodes)
            if wanted > free:
                where = f"node {nodes[0]} has" if len(nodes) == 1 else f"nodes {format_cpulist(nodes)} together have"
                outside = policy.from_outside(self.placement.node)
                why = f"; the memory policy {outside} was set from outside" if outside else ""
                raise MachineError(
                    f"{where} {free / 1e9:.1f} GB free and its ranks {ranks} would need {wanted / 1e9:.1f} GB there "
                    f"(weights, cache and a margin{why}): use more nodes, a smaller -c or a smaller model"
                )
        total = sum(bytes_ for _, bytes_, _ in asked)
        if limit is not None and total > limit:
            raise MachineError(
                f"this job's memory limit leaves {limit / 1e9:.1f} GB and the ranks need {total / 1e9:.1f} GB: raise the limit, "
                "or use a smaller -c or model"
            )

    def _possible_nodes(self) -> list[int]:
        """Nodes that this rank's pages may lie on: its own, unless a policy from outside binds them elsewhere or any will do."""
        place = self.placement
        bound = policy.bound_nodes(policy.from_outside(place.node))
        if not (place.spans or self.job.allow_remote or (bound and place.node not in bound)):
            return [place.node]
        machine = topology.with_memory_of(topology.read_machine(), frozenset(bound) or topology.allowed_nodes())
        return [node.id for node in machine.nodes if node.memory_bytes] or [place.node]

    def _open_team(self) -> None:
        self._team = Team(self.comm, self.placement.cpus, self.placement.l3)
        self.threads = self._team.threads

    @property
    def architecture(self) -> str:
        """As GGUF has it."""
        return self.model.__name__.rpartition(".")[2].replace("_", "-")

    @property
    def team(self) -> Team:
        assert self._team
        return self._team

    def _reserve(self, num_bytes: int) -> int:
        address, place = pages.reserve(num_bytes), self.placement
        self.keep(address, num_bytes)
        if not (place.spans or self.job.allow_remote or policy.from_outside(place.node)):
            pages.bind(address, num_bytes, place.node)
        return address

    def keep(self, address: int, num_bytes: int) -> None:
        """Memory of pages.reserve that is given back when the engine is closed."""
        self._arenas.append((address, num_bytes))

    def _load(self, progress: Callable[[int, int], None]) -> None:
        self._weights_at, self._cache_at = self._reserve(self.weight_bytes), self._reserve(self.cache.num_bytes)
        self.weights = Weights(self.slices, self._weights_at)
        files = {info.path for info in self.file.tensors.values()} if self._short else ()
        self.weights.load(self.threads, self.placement.mask, self.team.run_each, progress, files)

    def _map_window(self) -> None:
        comm, sizes = self.comm, self.spec.sizes
        self.shape = StepShape(self.max_rows, self.job.max_sequences, num_blocks(self.context), len(self.pools))
        # Whole pages per rank, so the parts follow each other without gaps, as the C runtime expects.
        self._flags = comm.map_shared([self._library.numatp_flag_bytes(1, self.lanes)] * comm.size)
        self._library.numatp_ranks_lanes(comm.handle, self._flags[0].ctypes.data, self.lanes)
        partial = self.max_rows * sizes.width * 4
        buffers = comm.map_shared([2 * partial] * comm.size)
        addresses = np.array([buffer.ctypes.data for buffer in buffers], np.uint64)
        self.partials = (addresses, addresses + np.uint64(partial))
        self.scores = [part.view(np.float32).reshape(-1, 4) for part in comm.map_shared([self.max_rows * 16] * comm.size)]
        most = MOST_DIGESTS_PER_LAYER * (len(self.spec.layers) + 1)
        self.digests = [part.view(np.int64) for part in comm.map_shared([most * 8 * self.job.check_ranks] * comm.size)]
        others = [0] * (comm.size - 1)
        rows, padded = (-(-size // ROWS_UNIT) * ROWS_UNIT for size in (self.job.max_sequences, sizes.vocab))
        self.logits = comm.map_shared([rows * padded * 4, *others])[0].view(np.float32).reshape(rows, padded)
        self.step_memory = comm.map_shared([self.shape.num_bytes, *others])[0]
        self.step = StepWindow(self.shape, self.step_memory.view(np.int64))
        self._audit = Audit(comm, self.placement.node, self.weights, (self._cache_at, self.cache.num_bytes))

    def _record(self) -> None:
        sizes, comm = self.spec.sizes, self.comm
        caches = self.cache.at(self._cache_at)
        site = Site(
            rank=comm.rank, size=comm.size, threads=self.threads, lanes=self.lanes, team=self.team.handle, width=sizes.width,
            step=self.step, partials=self.partials, logits=self.logits.ctypes.data, logit_stride=self.logits.strides[0],
            scores=self.scores[comm.rank].ctypes.data, digests=self.digests[comm.rank].ctypes.data if self.job.check_ranks else 0,
        )  # fmt: skip
        self.programs, self._digested = [], list[list[str]]()
        for name, rows, scored in (("one row", 1, False), ("many rows", self.max_rows, False), ("scores", self.max_rows, True)):
            ops = Ops(name, site, rows, scored)
            self.model.forward(ops, self.spec, self.split, self.weights, caches)
            self.programs.append(ops.finish())
            self._digested.append(ops.digests)
        memory = unset_memory(max(program.activation_bytes for program in self.programs))  # one program runs at a time
        for program in self.programs:
            program.place(memory)
        self.programs.append(self._audit.program)
        if comm.rank == 0:
            self.blocks = Blocks(self.pools)
            self.sampler = Sampler(self.logits, self.step.num_logits, sizes.vocab)

    def _check_pages(self) -> str:
        """One line that says where the weights are; MachineError on every rank if they are not local."""
        found = pages.count_quickly(pages.Region("weights", self._weights_at, self.weight_bytes))
        mine = [found[self.placement.node], found.total()] if found else None
        parts, told = [], self.comm.gather([self.placement.node, mine, policy.from_outside(self.placement.node)])
        for rank, (node, counts, outside) in enumerate(told):
            if counts is None:
                parts.append(f"rank {rank}: unknown (the kernel tells neither by move_pages nor in numa_maps)")
                continue
            local, total = counts
            parts.append(f"rank {rank}: {100 * local / max(total, 1):.1f} % on node {node}")
            if local < MIN_LOCAL * total and not self.job.allow_remote:
                raise MachineError(
                    f"only {100 * local / total:.1f} % of rank {rank}'s weights are on its node {node}"
                    f"{f', where the memory policy {outside} from outside put them' if outside else ''}: free memory there, "
                    "or run with --allow-remote"
                )
        return "weights " + ", ".join(parts)

    def compiled_kernels(self) -> list[str]:
        """Kernels that this process had to compile because the cache did not hold them."""
        return list(Kernel.compiled)

    # ------------------------------------------------------------ Steps, rank 0

    def run(self, spans: list[Span]) -> None:
        """One Step; the logits of the rows that want them are then in `logits`, in the order of the spans."""
        self.step.write(spans)
        self._run_step(ONE_ROW if self.step.num_rows[0] == 1 else MANY_ROWS)

    def score(self, spans: list[Span]) -> np.ndarray:
        """One Step of spans with targets: the log-probability of each target, float64, in the order of the spans."""
        self.step.write(spans)
        self._run_step(SCORES)
        parts = np.array(self.scores)[:, : self.step.num_logits[0]].astype(np.float64)  # (ranks, targets, 4)
        highest, totals, logits = parts[..., 0], parts[..., 1], parts[..., 2]
        top = highest.max(0)
        return logits.max(0) - top - np.log((totals * np.exp(highest - top)).sum(0))

    def _run_step(self, program: int) -> None:
        self.team.step(program)
        for i, what in enumerate(self._digested[program]):
            for rank, digests in enumerate(self.digests):
                if digests[i] != self.digests[0][i]:
                    name = self.programs[program].name
                    raise MachineError(f"rank {rank} holds other bits than rank 0 in {what} of program '{name}'")

    def audit(self) -> list[dict[str, Any]]:
        """Where the pages of every rank are now: llm.py's RankPages, as JSON."""
        return self._audit.collect(lambda: self.team.step(AUDIT))

    # ------------------------------------------------------------ the other ranks, and the end

    def serve(self) -> None:
        """Runs Steps until rank 0 stops."""
        self.team.serve()

    def close(self) -> None:
        """Ends the service on the other ranks (rank 0) and gives everything back. Safe after an error."""
        if self._team:
            if self.comm.rank == 0:
                self._team.stop()
            self._team.close()
            self._team = None
        for address, num_bytes in self._arenas:
            pages.release(address, num_bytes)
        self._arenas.clear()


def serve(job: Job, started: StartedRank, open_engine: Callable[[Job, StartedRank], Engine] = Engine) -> int:
    """A whole life of a worker process; its exit status."""
    try:
        engine = open_engine(job, started)
        engine.serve()
        engine.close()
    except NumatpError:
        raise
    except BaseException as error:
        started.comm.abort(f"rank {started.comm.rank}: {limits.describe(error) or f'{type(error).__name__}: {error}'}")
        raise
    return 0
