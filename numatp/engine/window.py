"""What the ranks share while they run Steps: views of sections of the window."""

import numpy as np

from numatp.engine.sections import Sections
from numatp.kernels.layout import MOST_TOP
from numatp.kernels.rows import MANY
from numatp.machine import native
from numatp.program.step import StepWindow
from numatp.ranks.host import Host

TOP = np.dtype([("logits", "f4", MOST_TOP), ("tokens", "i4", MOST_TOP)])


class Window:
    """Made by all ranks of a host together, by seat."""

    def __init__(self, host: Host, sections: Sections, lanes: int):
        """lanes: of an exchange, the smallest number of threads of any rank."""
        library, partial = native.library(), sections.partial
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

        scores = host.map_shared([sections.scores] * host.seats)
        self.scores = [part.view(np.float32).reshape(-1, 4) for part in scores]  # per seat, (max_rows, 4): kernels/score.py
        tops = host.map_shared([sections.tops] * host.seats)
        self.tops = [part.view(TOP).reshape(-1) for part in tops]  # per seat, (max_rows,), likewise
        digests = host.map_shared([sections.digests] * host.seats)
        self.digests = [part.view(np.int64) for part in digests]  # per seat, of what all must hold alike; empty if not wanted

        others = [0] * (host.seats - 1)
        rows, padded = sections.logits
        logits = host.map_shared([rows * padded * 4, *others])[0]
        self.logits = logits.view(np.float32).reshape(rows, padded)  # (max_spans, vocab), both padded, in the part of seat 0
        memory = host.map_shared([sections.step.num_bytes, *others])[0].view(np.int64)
        self.step = StepWindow(sections.step, memory, MANY)
