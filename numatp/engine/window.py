"""What the ranks share while they run Steps: views of sections of the window."""

import numpy as np

from numatp import quants
from numatp.engine.layout import Layout
from numatp.engine.sections import Sections
from numatp.kernels.layout import MOST_TOP
from numatp.kernels.rows import MANY
from numatp.machine import native
from numatp.program.recorder import Passage, Stage, Wires
from numatp.program.step import StepWindow
from numatp.ranks.world import World
from numatp.weights import stages

TOP = np.dtype([("logits", "f4", MOST_TOP), ("tokens", "i4", MOST_TOP)])


class Window:
    """Made by all ranks together. What ranks of other hosts write into their parts comes to rank 0's host after a Step."""

    def __init__(self, world: World, sections: Sections, lanes: int, layout: Layout):
        """lanes: of an exchange, the smallest number of threads of any rank of this host."""
        library, partial, host = native.library(), sections.partial, world.host
        self.lanes = lanes
        # Whole pages per rank, so the parts follow each other without gaps, as the C runtime expects.
        self._flags = host.map_shared([library.numatp_flag_bytes(1, lanes)] * host.seats)
        library.numatp_ranks_lanes(host.handle, self._flags[0].ctypes.data, lanes)

        buffers = host.map_shared([2 * partial] * host.seats)
        addresses = np.array([buffer.ctypes.data for buffer in buffers], np.uint64)
        self.partials = (
            addresses,
            addresses + np.uint64(partial),
        )  # per parity, of each seat's (max_rows + ROWS_UNIT, width) float32
        self.stage = stage_between(world, sections, layout, layout.stage) if layout.stage else None
        self.wires = wires_of(world, sections, self.partials) if world.hosts and not layout.stage else None

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
        self.step = StepWindow(sections.step, memory, MANY)

        columns = [range(*bounds) for bounds in world.gather([layout.vocab.start, layout.vocab.stop])]
        makers = world.hosts.members.seats[-1] if world.hosts and layout.stage else world.size
        self.scoring = range(world.size - makers, world.size)  # ranks that make logits: where hosts hold layers the last host's
        count = self.step.num_logits.ctypes.data
        compared = world.returned(digests)
        self.told = world.told(memory)
        self.returned_logits = world.returned_columns(self.logits, columns, count) + compared
        self.returned_scores = world.returned(scores, row_bytes, count) + world.returned(tops, TOP.itemsize, count) + compared


def wires_of(world: World, sections: Sections, partials: tuple[np.ndarray, np.ndarray]) -> Wires:
    """Memory for the sums that go between hosts, on each rank that exchanges some. Collective."""
    host, hosts = world.host, world.hosts
    assert hosts
    wires, count = hosts.members.wires, len(hosts.members.names)
    sizes = [sections.slice_bytes(wire, wires) for wire in range(wires)]
    own = host.seats > 1 or sections.half  # whether the sum of this host has a place of its own, after those of the others
    parts = host.map_shared([size * (count - 1 + own) for size in sizes] + [0] * (host.seats - wires))
    sums = np.zeros((2, wires, count), np.uint64)
    for wire, size in enumerate(sizes):
        for place, other in enumerate(hosts.others):
            sums[:, wire, other] = parts[wire].ctypes.data + place * size
        for parity in (0, 1):
            sums[parity, wire, hosts.index] = parts[wire].ctypes.data + (count - 1) * size if own else partials[parity][host.seat]
    mine = sums[0, host.seat] if host.seat < wires else np.zeros(count, np.uint64)
    return Wires(wires, count, sections.half, int(mine[hosts.index]) if own else 0, mine, (sums[0], sums[1]))


def stage_between(world: World, sections: Sections, layout: Layout, mine: stages.Stage) -> Stage:
    """How rows come from the host before this one and go to the next, and memory for them. Collective."""
    host, hosts = world.host, world.hosts
    assert hosts
    seats, index = hosts.members.seats, hosts.index

    def passage(other: int) -> Passage:
        count = min(host.seats, seats[other])
        sizes = [sections.slice_bytes(wire, count) for wire in range(count)]
        parts = host.map_shared(sizes + [0] * (host.seats - count))
        return Passage(other, count, sections.half, np.array([part.ctypes.data for part in parts[:count]], np.uint64))

    residuals = host.map_shared([sections.partial] * host.seats)
    before, after = None if mine.first else passage(index - 1), None if mine.last else passage(index + 1)
    earlier = {
        piece.format.name for piece in layout.elsewhere
        if piece.rule.in_tiles and piece.rule.layer is not None and piece.rule.layer < mine.layers.start
    }  # fmt: skip
    tiled = any(quants.kernels_of(name).expand is not None for name in earlier)
    return Stage(mine.layers, before, after, residuals[host.seat].ctypes.data, tiled)
