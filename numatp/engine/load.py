"""Load time: from the name of a model to its weights in this rank's memory.

    model = open_model(job)                     what it is
    layout = lay_out(model, job, ...)           which part of it is this rank's, and how large that is
    loaded = place(model, layout, ...)          where each tensor will lie
    loaded.weights.load(...)                    read and packed there

Step time is engine/programs.py: what the model's forward pass becomes once all places are known.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType

from numatp import models
from numatp.engine.arenas import Arenas
from numatp.engine.cache import CacheLayout, Pool, pools_of
from numatp.engine.job import Job, cache_type_of, context_of, quantize_of, rows_of, slots_of
from numatp.errors import MachineError
from numatp.files.model_file import ModelFile
from numatp.kernels.compile import identity
from numatp.machine import pages, policy
from numatp.machine.placement import Placement
from numatp.models.spec import Spec
from numatp.ranks.world import World
from numatp.weights.load import Weights
from numatp.weights.rules import Slice, cut
from numatp.weights.splits import Split, shares_of, split

MIN_LOCAL = 0.99  # share of the weight pages that must lie on the rank's own node


@dataclass(frozen=True)
class Model:
    """What its files say."""

    file: ModelFile
    architecture: ModuleType  # the model's file in models/
    spec: Spec


@dataclass(frozen=True)
class Layout:
    """One rank's part of a model, and how large it is."""

    context: int  # tokens of all sequences in the cache
    max_rows: int  # of one Step
    split: Split
    slices: list[Slice]
    weight_bytes: int
    pools: list[Pool]
    cache: CacheLayout


@dataclass(frozen=True)
class Loaded:
    """A model in this rank's memory; `weights` hold their values once they are loaded."""

    model: Model
    layout: Layout
    weights: Weights
    weights_at: int  # address
    cache_at: int  # address

    @property
    def spec(self) -> Spec:
        return self.model.spec


def open_model(job: Job) -> Model:
    """UserError for what cannot be read or computed."""
    file, architecture = models.open_model(job.model)
    return Model(file, architecture, architecture.read_spec(file))


def name_of(architecture: ModuleType) -> str:
    """As GGUF has it."""
    return architecture.__name__.rpartition(".")[2].replace("_", "-")


def lay_out(model: Model, job: Job, rank: int, nodes: Sequence[int], bandwidth: Mapping[int, float]) -> Layout:
    """nodes: of all ranks. bandwidth: of the nodes, the same on all ranks, so that all cut at the same places."""
    spec = model.spec
    context = context_of(job, spec.context)
    max_rows = rows_of(job, context)
    mine = split(spec.sizes, rank, len(nodes), shares_of(job.tensor_split, nodes, bandwidth))
    slices, weight_bytes = cut(model.file, model.architecture.rules(spec), spec.sizes, mine, quantize_of(job, model.file))
    pools = pools_of(spec, context, job.max_sequences, max_rows, job.prefix_cache)
    cache = CacheLayout(spec, mine, pools, slots_of(job, context), cache_type_of(job, spec.layers))
    return Layout(context, max_rows, mine, slices, weight_bytes, pools, cache)


def place(model: Model, layout: Layout, arenas: Arenas) -> Loaded:
    """Addresses for everything, in memory that nobody has touched yet."""
    weights_at = arenas.reserve(layout.weight_bytes)
    cache_at = arenas.reserve(layout.cache.num_bytes)
    return Loaded(model, layout, Weights(layout.slices, weights_at), weights_at, cache_at)


def check_kernels(world: World) -> None:
    """What every rank computes for itself has the same bits on all only if they run the same kernels."""
    kernels = world.gather(identity())
    for rank, others in enumerate(kernels):
        if others != kernels[0]:
            raise MachineError(
                f"rank {rank} has other kernels than rank 0: start all ranks with the same numatp, Python packages and NUMATP_ISA"
            )


def check_pages(world: World, own: Placement, loaded: Loaded, allow_remote: bool) -> str:
    """One line that says where the weights are; MachineError on every rank if they are not local."""
    found = pages.count_quickly(pages.Region("weights", loaded.weights_at, loaded.layout.weight_bytes))
    mine = [found[own.node], found.total()] if found else None
    parts = []
    for rank, (node, counts, outside) in enumerate(world.gather([own.node, mine, policy.from_outside(own.node)])):
        if counts is None:
            parts.append(f"rank {rank}: unknown (the kernel tells neither by move_pages nor in numa_maps)")
            continue
        local, total = counts
        parts.append(f"rank {rank}: {100 * local / max(total, 1):.1f} % on node {node}")
        if local < MIN_LOCAL * total and not allow_remote:
            raise MachineError(
                f"only {100 * local / total:.1f} % of rank {rank}'s weights are on its node {node}"
                f"{f', where the memory policy {outside} from outside put them' if outside else ''}: free memory there, "
                "or run with --allow-remote"
            )
    return "weights " + ", ".join(parts)
