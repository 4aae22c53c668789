"""A rank's part of a model, from headers alone: what it is, where it is cut, and how large it is. No kernel is looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

from numatp import models
from numatp.engine.cache import CacheLayout, Pool, pools_of
from numatp.engine.job import Job, cache_type_of, context_of, quantize_of, rows_of, slots_of
from numatp.engine.pipeline import stage_of
from numatp.errors import UserError
from numatp.files.model_file import ModelFile
from numatp.models.spec import Spec
from numatp.weights.rules import Rule, Slice, cut
from numatp.weights.splits import Node, Split, segments, shares_of, split
from numatp.weights.stages import Stage


@dataclass(frozen=True)
class Model:
    """What its files say."""

    file: ModelFile
    architecture: ModuleType  # the model's file in models/
    spec: Spec

    @cached_property
    def rules(self) -> list[Rule]:
        """Of all its tensors."""
        rules: list[Rule] = self.architecture.rules(self.spec)
        return rules


@dataclass(frozen=True)
class Layout:
    """One rank's part of a model, and how large it is."""

    context: int  # tokens of all sequences in the cache
    max_rows: int  # of one Step
    split: Split
    segments: tuple[Split, ...]  # of it, each summed for itself (weights/splits.py); (): it is one
    slices: list[Slice]
    weight_bytes: int
    pools: list[Pool]
    cache: CacheLayout
    stage: Stage | None = None  # the layers of this host, where hosts hold layers; None: all
    elsewhere: tuple[Slice, ...] = ()  # of tensors that other hosts have

    @property
    def vocab(self) -> range:
        """Whose logits this rank makes."""
        return self.split.vocab if self.stage is None or self.stage.last else range(0)


def open_model(job: Job) -> Model:
    """UserError for what cannot be read or computed."""
    file, architecture = models.open_model(job.model)
    return Model(file, architecture, architecture.read_spec(file))


def name_of(architecture: ModuleType) -> str:
    """As GGUF has it."""
    return architecture.__name__.rpartition(".")[2].replace("_", "-")


def lay_out(
    model: Model, job: Job, rank: int, nodes: Sequence[Node], bandwidth: Mapping[Node, float], seats: Sequence[int] = ()
) -> Layout:  # fmt: skip
    """nodes: of all ranks. bandwidth: of the nodes, the same on all ranks, so that all cut at the same places. seats: ranks of each
    host.
    """
    spec = model.spec
    context = context_of(job, spec.context)
    if job.same_bits and job.tensor_split:
        raise UserError("--same-bits holds where all ranks have equal shares, and -ts gives them others: leave one of them out")
    max_rows = rows_of(job, context)
    shares = shares_of(job.tensor_split, nodes, bandwidth)
    pools = pools_of(spec, context, job.max_sequences, max_rows, job.prefix_cache)
    together = range(len(nodes))  # the ranks that cut the same
    stage: Stage | None = None
    if job.pipeline:
        together, stage = stage_of(model, job, pools, rank, seats, shares)
    place = rank - together.start, len(together)
    mine = split(spec.sizes, *place, shares[together.start : together.stop] if shares else None)
    parts = segments(spec.sizes, *place) if job.same_bits else ()
    own = (model.file, model.rules, spec.sizes, mine, quantize_of(job, model.file), parts)
    slices, weight_bytes = cut(*own, held=lambda rule: stage is None or stage.holds(rule, spec.tied))
    elsewhere = cut(*own, held=lambda rule: not stage.holds(rule, spec.tied))[0] if stage else []
    kept_as, held = cache_type_of(job, spec.layers), stage.layers if stage else None
    cache = CacheLayout(spec, mine, pools, slots_of(job, context), kept_as, held)
    return Layout(context, max_rows, mine, parts, slices, weight_bytes, pools, cache, stage, tuple(elsewhere))
