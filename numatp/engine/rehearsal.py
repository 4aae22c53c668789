"""The programs of a rank that is not there: recorded from headers alone, to be looked at and never run."""

import numpy as np

from numatp.engine.layout import Layout, Model
from numatp.engine.load import Loaded
from numatp.engine.programs import record_one
from numatp.engine.sections import Sections
from numatp.program.builder import Program
from numatp.program.recorder import Site
from numatp.program.step import StepWindow
from numatp.weights.load import Weights

NOWHERE = 0  # the address of what is not there
APART = 1 << 40  # bytes between weights and cache, which must not seem to follow each other


class Unread(Weights):
    """Tensors of a file that may not be there."""

    def floats(self, name: str) -> np.ndarray:
        """float32 ones: what a program holds of values changes no size of it."""
        return np.ones(self.vector(name).length, np.float32)


def rehearse(
    kind: int, model: Model, layout: Layout, sections: Sections, seat: int, seats: int, threads: int, lanes: int
) -> Program:  # fmt: skip
    """ONE_ROW, MANY_ROWS or SCORES (engine/programs.py) of the rank at `seat`. lanes: the fewest threads of a rank."""
    step = StepWindow(sections.step, np.zeros(sections.step.num_bytes // 8, np.int64))
    partials = np.zeros(seats, np.uint64)
    site = Site(
        rank=seat, seat=seat, seats=seats, threads=threads, lanes=lanes, team=NOWHERE, width=model.spec.sizes.width,
        segments=layout.segments, step=step, partials=(partials, partials), logits=NOWHERE,
        logit_stride=4 * sections.logits[1], scores=NOWHERE, tops=NOWHERE,
    )  # fmt: skip
    loaded = Loaded(model, layout, Unread(layout.slices, NOWHERE), NOWHERE, APART)
    return record_one(site, loaded, kind).program
