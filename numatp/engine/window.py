"""What the ranks share while they run Steps: views of sections of the window."""

import numpy as np

from numatp import quants
from numatp.engine.layout import Layout
from numatp.engine.sections import Sections
from numatp.engine.team import Team
from numatp.engine.wires import faster_for_one_row, wires_of
from numatp.kernels.layout import MOST_TOP
from numatp.machine import native
from numatp.program.recorder import Passage, Passages, Wires
from numatp.program.step import StepWindow
from numatp.ranks.world import World
from numatp.weights.stages import Stage

TOP = np.dtype([("logits", "f4", MOST_TOP), ("tokens", "i4", MOST_TOP)])


class Window:
    """Made by all ranks together. What ranks of other hosts write into their parts comes to rank 0's host after a Step."""

    def __init__(self, world: World, sections: Sections, team: Team, layout: Layout):
        library, partial, host = native.library(), sections.partial, world.host
        self.lanes = lanes = min(host.gather(team.threads))  # of an exchange
        # Whole pages per rank, so the parts follow each other without gaps, as the C runtime expects.
        self._flags = host.map_shared([library.numatp_flag_bytes(1, lanes)] * host.seats)
        library.numatp_ranks_lanes(host.handle, self._flags[0].ctypes.data, lanes)

        buffers = host.map_shared([2 * partial] * host.seats)
        addresses = np.array([buffer.ctypes.data for buffer in buffers], np.uint64)
        # Per parity, of each seat's (max_rows + ROWS_UNIT, width) float32.
        self.partials = addresses, addresses + np.uint64(partial)
        self.passages = passages_of(world, sections, layout, layout.stage) if layout.stage else None
        self.wires = self.one_row_wires = None
        self.said = ""  # of the wires, worth showing
        if world.hosts and not layout.stage:
            self.wires = wires_of(world, sections, self.partials, world.hosts.members.wires)
            self.one_row_wires, self.said = faster_for_one_row(world, team, sections, self.partials, self.wires)

        scores = world.map_parts([sections.scores] * world.size)
        row_bytes = sections.scores // sections.step.max_rows
        # Per rank, (max_rows, segments, 4): kernels/score.py.
        self.scores = [part.view(np.float32).reshape(-1, row_bytes // 16, 4) for part in scores]
        tops = world.map_parts([sections.tops] * world.size)
        self.tops = [part.view(TOP).reshape(-1) for part in tops]  # per rank, (max_rows,), likewise
        digests = world.map_parts([sections.digests] * world.size)
        self.digests = [part.view(np.int64) for part in digests]  # per rank, of what all must hold alike; empty if not wanted

        others = [0] * (host.seats - 1)
        rows, padded = sections.logits
        logits = host.map_shared([rows * padded * 4, *others])[0]
        self.logits = logits.view(np.float32).reshape(rows, padded)  # (max_spans, vocab), both padded, in the part of seat 0
        memory = host.map_shared([sections.step.num_bytes, *others])[0].view(np.int64)
        self.step = StepWindow(sections.step, memory)
        self.ahead = Ahead(world, sections, bool(layout.stage)) if world.hosts else None

        columns = [range(*bounds) for bounds in world.gather([layout.vocab.start, layout.vocab.stop])]
        makers = world.hosts.members.seats[-1] if world.hosts and layout.stage else world.size
        self.scoring = range(world.size - makers, world.size)  # ranks that make logits: where hosts hold layers the last host's
        count = self.step.num_logits.ctypes.data
        compared = world.returned(digests)
        self.told = world.told(memory)
        self.returned_rows = world.returned_columns(self.logits, columns, count)
        self.returned_logits = self.returned_rows + compared
        self.returned_scores = world.returned(scores, row_bytes, count) + world.returned(tops, TOP.itemsize, count) + compared


class Ahead:
    """What the first half of a Step in two has for itself (program/halves.py)."""

    def __init__(self, world: World, sections: Sections, layers: bool):
        """layers: whether hosts hold these; then one half is done before the other begins, and no sums cross. Collective."""
        host = world.host
        memory = host.map_shared([sections.step.num_bytes] + [0] * (host.seats - 1))[0].view(np.int64)
        self.step, self.told = StepWindow(sections.step, memory), world.told(memory)
        self.sums: tuple[tuple[np.ndarray, np.ndarray], Wires] | None = None  # partials and wires as those of the window
        if not layers:
            assert world.hosts
            buffers = host.map_shared([2 * sections.partial] * host.seats)
            addresses = np.array([buffer.ctypes.data for buffer in buffers], np.uint64)
            partials = addresses, addresses + np.uint64(sections.partial)
            self.sums = partials, wires_of(world, sections, partials, world.hosts.members.wires)


def passages_of(world: World, sections: Sections, layout: Layout, mine: Stage) -> Passages:
    """How rows come from the host before this one and go to the next, and memory for them. Collective."""
    host, hosts = world.host, world.hosts
    assert hosts
    seats, index = hosts.members.seats, hosts.index

    def passage(other: int) -> Passage:
        count = min(host.seats, seats[other])
        sizes = [sections.passed_bytes(wire, count) for wire in range(count)]
        parts = host.map_shared(sizes + [0] * (host.seats - count))
        return Passage(other, count, sections.half, np.array([part.ctypes.data for part in parts[:count]], np.uint64))

    residuals = host.map_shared([sections.passed] * host.seats)
    before, after = None if mine.first else passage(index - 1), None if mine.last else passage(index + 1)
    earlier = {
        piece.format.name for piece in layout.elsewhere
        if piece.rule.in_tiles and piece.rule.layer is not None and piece.rule.layer < mine.layers.start
    }  # fmt: skip
    tiled = any(quants.kernels_of(name).expand is not None for name in earlier)
    width = sections.passed // sections.step_rows // 4
    return Passages(mine.layers, before, after, width, residuals[host.seat].ctypes.data, tiled)
