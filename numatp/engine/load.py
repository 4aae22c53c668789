"""Load time: from the name of a model to its weights in this rank's memory.

    model = open_model(job)                     what it is (engine/layout.py)
    layout = lay_out(model, job, ...)           which part of it is this rank's, and how large that is (the same)
    loaded = place(model, layout, ...)          where each tensor will lie
    loaded.weights.load(...)                    read and packed there

Step time is engine/programs.py: what the model's forward pass becomes once all places are known.
"""

from dataclasses import dataclass

from numatp import __version__
from numatp.engine.agree import agree
from numatp.engine.arenas import Arenas
from numatp.engine.job import WIRES, Job
from numatp.engine.layout import Layout, Model
from numatp.errors import MachineError, UserError
from numatp.files.identity import identity as model_identity
from numatp.kernels.compile import identity
from numatp.machine import pages, policy
from numatp.machine.placement import Placement
from numatp.models.spec import Spec
from numatp.ranks.world import World
from numatp.weights.load import Weights

MIN_LOCAL = 0.99  # share of the weight pages that must lie on the rank's own node
FEW_HUGE = 0.9  # share of the weights in huge pages below which it is said


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


def place(model: Model, layout: Layout, arenas: Arenas) -> Loaded:
    """Addresses for everything, in memory that nobody has touched yet."""
    weights_at = arenas.reserve(layout.weight_bytes)
    cache_at = arenas.reserve(layout.cache.num_bytes)
    return Loaded(model, layout, Weights(layout.slices, weights_at, layout.elsewhere), weights_at, cache_at)


def check_hosts(world: World, job: Job) -> None:
    """UserError unless the sums of the hosts' ranks are whole branches of the sum of all ranks (kernels/exchange.py), unrounded."""
    assert world.hosts
    if job.wire != WIRES[0]:
        raise UserError(
            f"--same-bits holds where hosts exchange sums as they are, not as {job.wire}: leave out --wire, or --same-bits"
        )
    counts = world.hosts.members.seats
    if len(set(counts)) > 1 and not job.pipeline:
        raise UserError(
            f"--same-bits holds where each host has as many ranks, and these have {', '.join(map(str, counts))}: start as many "
            "on each, or leave it out"
        )


def check_kernels(world: World) -> None:
    """What every rank computes for itself has the same bits on all only if they run the same kernels."""
    if world.size == 1:  # nobody to compare with
        return
    kernels = world.gather(f"{identity()}, numatp {__version__}")
    for rank, others in enumerate(kernels):
        if others != kernels[0]:
            raise MachineError(
                f"{world.place_of(rank)} has other kernels than rank 0: start all ranks with the same numatp, Python packages and "
                "NUMATP_ISA"
            )


def check_model(world: World, model: Model) -> None:
    """Each host may have files of its own: they must be the same model."""
    models = world.gather(agree(world, lambda: model_identity(model.file)).hex())
    for rank, other in enumerate(models):
        if other != models[0]:
            raise UserError(f"{world.place_of(rank)} has another model than rank 0: copy the same files to each host")


def check_pages(world: World, own: Placement, loaded: Loaded, allow_remote: bool) -> str:
    """One line that says where the weights are, and where few of them are in huge pages; MachineError on every rank if they are not
    local.
    """
    region = pages.Region("weights", loaded.weights_at, loaded.layout.weight_bytes)
    found = pages.count_quickly(region)
    mine = [found[own.node], found.total()] if found else None
    parts = []
    for rank, (node, counts, outside, huge) in enumerate(
        world.gather([own.node, mine, policy.from_outside(own.node), pages.huge_share(region)])
    ):
        if counts is None:
            parts.append(f"rank {rank}: unknown (the kernel tells neither by move_pages nor in numa_maps)")
            continue
        local, total = counts
        few = f" ({100 * huge:.0f} % of it in huge pages)" if huge is not None and huge < FEW_HUGE else ""
        parts.append(f"rank {rank}: {100 * local / max(total, 1):.1f} % on node {node}{few}")
        if local < MIN_LOCAL * total and not allow_remote:
            raise MachineError(
                f"only {100 * local / total:.1f} % of rank {rank}'s weights are on its node {node}"
                f"{f', where the memory policy {outside} from outside put them' if outside else ''}: free memory there, "
                "or run with --allow-remote"
            )
    return "weights " + ", ".join(parts)
