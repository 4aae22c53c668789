"""What a model is, and what would compute it, without loading it."""

from collections import Counter
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from numatp import models
from numatp.engine.cache import num_blocks
from numatp.engine.job import Job
from numatp.engine.layout import Model, lay_out, name_of
from numatp.errors import UserError
from numatp.models.spec import Spec
from numatp.program.builder import Program
from numatp.program.ops import Ops
from numatp.program.recorder import Site
from numatp.program.step import StepShape, StepWindow
from numatp.weights.load import Weights
from numatp.weights.rules import Slice, notes

ROWS = 16  # of the Step that stands for prompts


@dataclass
class Support:
    """Whether numatp computes a model, and by which kernels."""

    reason: str = ""  # why it does not, one line
    architecture: str = ""
    spec: Spec | None = None
    types: dict[str, str] = field(default_factory=dict)  # of each tensor in memory, by the file's own name
    num_bytes: int = 0  # of all weights in memory
    programs: list[Program] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def support_of(path: Path) -> Support:
    """What one rank would run."""
    support = Support()
    try:
        file, architecture = models.open_model(path)
        support.architecture = name_of(architecture)
        support.spec = spec = architecture.read_spec(file)
        model = Model(file, architecture, spec)
        layout = lay_out(model, Job(str(path), context=min(spec.context, 512), max_rows=ROWS), 0, [0], {})
        slices, support.num_bytes = layout.slices, layout.weight_bytes
        support.types = {piece.info.name: type_name(piece) if piece.rule.in_tiles else "F32" for piece in slices}
        support.notes = file.notes + notes(slices)
        # Addresses that nobody will use.
        shape = StepShape(layout.max_rows, 1, num_blocks(layout.context), len(layout.pools))
        step = StepWindow(shape, np.zeros(shape.num_bytes // 8, np.int64))
        nowhere = np.zeros(1, np.uint64)
        site = Site(
            rank=0, seat=0, seats=1, threads=1, lanes=1, team=0, width=spec.sizes.width, step=step, partials=(nowhere, nowhere),
            logits=0, logit_stride=4 * spec.sizes.vocab, scores=0, tops=0,
        )  # fmt: skip
        for name, rows in (("one row", 1), ("many rows", layout.max_rows)):
            ops = Ops(name, site, rows)
            architecture.forward(ops, spec, layout.split, Weights(slices, 0), layout.cache.at(0))
            support.programs.append(ops.finish())
    except UserError as error:
        support.reason = str(error)
    return support


def type_name(piece: Slice) -> str:
    return piece.format.name


def kernels_of(program: Program) -> dict[str, int]:
    """How often each kernel runs in a Step, in the order of their first ops."""
    return dict(Counter(op.name for op in program.ops))


def summary_of(tensors: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Per type: how many tensors, weights and bytes."""
    found: dict[str, dict[str, int]] = {}
    for info in tensors.values():
        entry = found.setdefault(info.type, {"tensors": 0, "weights": 0, "bytes": 0})
        entry["tensors"] += 1
        entry["weights"] += prod(info.shape)
        entry["bytes"] += info.num_bytes
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))
