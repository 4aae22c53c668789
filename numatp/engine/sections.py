"""What the ranks of a host share while they run Steps, in bytes: made by engine/window.py, counted by plans, without Numba."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from numatp.engine.cache import num_blocks
from numatp.engine.job import ROWS_UNIT, Job, drafts_of, rows_of, wire_of
from numatp.errors import UserError
from numatp.kernels.layout import TOP_BYTES, slice_columns
from numatp.models.spec import Spec
from numatp.program.step import StepShape
from numatp.weights.splits import SEGMENTS

MOST_MESSAGE_BYTES = 2**31 - 1  # MPI counts them in an int
MOST_DIGESTS_PER_LAYER = 4  # that program/recorder.py makes where ranks compare their bits


@dataclass(frozen=True)
class Sections:
    partial: int  # of every seat two: (max_rows + ROWS_UNIT, width) float32
    scores: int  # of every seat: (max_rows, segments, 4) float32, see kernels/score.py
    tops: int  # of every seat: (max_rows,) of the most probable tokens, see kernels/score.py
    digests: int  # of every seat: int64, of what all must hold alike; 0 if not wanted
    logits: tuple[int, int]  # (max_spans, vocab), both padded, float32, in the part of seat 0
    step: StepShape  # in the part of seat 0
    half: bool = False  # whether sums go between hosts as BF16
    times: int = 1  # how often as much goes from layer to layer as a partial has

    def slice_bytes(self, wire: int, wires: int) -> int:
        """Of the wire-th slice of the columns of a partial, as ranks exchange it with other hosts."""
        return self._slice_bytes(self.partial, wire, wires)

    @property
    def passed(self) -> int:
        """What goes from layer to layer: (max_rows + ROWS_UNIT, Spec.between) float32."""
        return self.times * self.partial

    def passed_bytes(self, wire: int, wires: int) -> int:
        """Of the wire-th slice of its columns, as ranks pass it on to another host."""
        return self._slice_bytes(self.passed, wire, wires)

    def _slice_bytes(self, whole: int, wire: int, wires: int) -> int:
        width = whole // self.step_rows // 4
        size = self.step_rows * slice_columns(width, wire, wires) * (2 if self.half else 4)
        if size > MOST_MESSAGE_BYTES:
            raise UserError(
                f"-ub {self.step.max_rows}: hosts would exchange {size / 2**30:.1f} GiB at once, and MPI's messages have 2 at "
                "most: give fewer"
            )
        return size

    def wire_bytes(self, wire: int, seats: int, wires: int, hosts: int) -> int:
        """Of what the wire-th of so many ranks of a host, which has `seats`, holds of the sums of so many hosts."""
        return self.slice_bytes(wire, wires) * (hosts - 1 + self.kept_apart(seats))

    def kept_apart(self, seats: int) -> bool:
        """Whether the sum of a host with so many ranks has a place of its own; else a rank's partial is what goes out."""
        return seats > 1 or self.half

    def between_hosts(self, seats: Sequence[int], host: int, seat: int, layers: bool) -> int:
        """Bytes in the part of a rank for what goes to other hosts and comes from them. seats: of each host. layers: whether hosts
        hold these instead of slices.
        """
        count, mine = len(seats), seats[host]
        total = (sum(seats) - mine) * (self.scores + self.tops + self.digests) if host == seat == 0 else 0  # that come back
        total += self.step.num_bytes * (seat == 0)  # of a Step in two halves the first
        if layers:
            wires = [min(mine, seats[other]) for other in (host - 1, host + 1) if 0 <= other < count]
            return total + self.passed + sum(self.passed_bytes(seat, each) for each in wires if seat < each)
        wires = [min(seats), *([1] if min(seats) > 1 else [])]  # of many rows, and those that are tried for one
        for sections, each in zip((self, self.of_one_row), wires, strict=False):
            total += sections.wire_bytes(seat, mine, each, count) if seat < each else 0
        if seat < min(seats):
            total += self.wire_bytes(seat, mine, min(seats), count)  # of the first half
        return total + 2 * self.partial

    @property
    def of_one_row(self) -> "Sections":
        """The same where no Step has more."""
        return replace(self, partial=self.partial // self.step_rows * (1 + ROWS_UNIT), step=replace(self.step, max_rows=1))

    @property
    def step_rows(self) -> int:
        """Rows that a partial has room for."""
        return self.step.max_rows + ROWS_UNIT

    def bytes_of(self, seat: int) -> int:
        rows, vocab = self.logits
        own = 2 * self.partial + self.scores + self.tops + self.digests
        return own + (rows * vocab * 4 + self.step.num_bytes if seat == 0 else 0)


def sections_of(spec: Spec, job: Job, context: int, num_tables: int) -> Sections:
    """context: tokens of the cache, which has `num_tables` pools of blocks."""
    max_rows, width = rows_of(job, context), spec.sizes.width
    drafts = drafts_of(job)
    rows, vocab = (-(-size // ROWS_UNIT) * ROWS_UNIT for size in (job.max_sequences + drafts, spec.sizes.vocab))
    return Sections(
        partial=(max_rows + ROWS_UNIT) * width * 4, scores=(SEGMENTS if job.same_bits else 1) * max_rows * 16,
        tops=max_rows * TOP_BYTES,
        digests=MOST_DIGESTS_PER_LAYER * (len(spec.layers) + 1) * 8 * job.check_ranks, logits=(rows, vocab),
        step=StepShape(max_rows, job.max_sequences, num_blocks(context), num_tables, drafts), half=wire_of(job) == "bf16",
        times=spec.between // width,
    )  # fmt: skip
