"""A rank's part of a model, from headers alone: what it is, where it is cut, and how large it is. No kernel is looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

from numatp import models
from numatp.engine.cache import CacheLayout, Pool, pools_of
from numatp.engine.job import Job, cache_type_of, context_of, quantize_of, rows_of, slots_of
from numatp.errors import UserError
from numatp.files.model_file import ModelFile
from numatp.models.spec import Spec
from numatp.weights.rules import Rule, Slice, cut
from numatp.weights.splits import Node, Split, segments, shares_of, split


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


def open_model(job: Job) -> Model:
    """UserError for what cannot be read or computed."""
    file, architecture = models.open_model(job.model)
    return Model(file, architecture, architecture.read_spec(file))


def name_of(architecture: ModuleType) -> str:
    """As GGUF has it."""
    return architecture.__name__.rpartition(".")[2].replace("_", "-")


def lay_out(model: Model, job: Job, rank: int, nodes: Sequence[Node], bandwidth: Mapping[Node, float]) -> Layout:
    """nodes: of all ranks. bandwidth: of the nodes, the same on all ranks, so that all cut at the same places."""
    spec = model.spec
    context = context_of(job, spec.context)
    if job.same_bits and job.tensor_split:
        raise UserError("--same-bits holds where all ranks have equal shares, and -ts gives them others: leave one of them out")
    max_rows = rows_of(job, context)
    mine = split(spec.sizes, rank, len(nodes), shares_of(job.tensor_split, nodes, bandwidth))
    parts = segments(spec.sizes, rank, len(nodes)) if job.same_bits else ()
    slices, weight_bytes = cut(model.file, model.rules, spec.sizes, mine, quantize_of(job, model.file), parts)
    pools = pools_of(spec, context, job.max_sequences, max_rows, job.prefix_cache)
    cache = CacheLayout(spec, mine, pools, slots_of(job, context), cache_type_of(job, spec.layers))
    return Layout(context, max_rows, mine, parts, slices, weight_bytes, pools, cache)
