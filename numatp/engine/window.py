"""What the ranks share while they run Steps: views of sections of the window."""

import numpy as np

from numatp.engine.cache import num_blocks
from numatp.engine.job import ROWS_UNIT, Job
from numatp.engine.load import Loaded
from numatp.machine import native
from numatp.program.recorder import MOST_DIGESTS_PER_LAYER
from numatp.program.step import StepShape, StepWindow
from numatp.ranks.comm import Comm


class Window:
    """Made by all ranks together."""

    def __init__(self, comm: Comm, loaded: Loaded, job: Job, lanes: int):
        """lanes: of an exchange, the smallest number of threads of any rank."""
        library, layout, sizes = native.library(), loaded.layout, loaded.spec.sizes
        self.lanes = lanes
        # Whole pages per rank, so the parts follow each other without gaps, as the C runtime expects.
        self._flags = comm.map_shared([library.numatp_flag_bytes(1, lanes)] * comm.size)
        library.numatp_ranks_lanes(comm.handle, self._flags[0].ctypes.data, lanes)

        partial = layout.max_rows * sizes.width * 4
        buffers = comm.map_shared([2 * partial] * comm.size)
        addresses = np.array([buffer.ctypes.data for buffer in buffers], np.uint64)
        self.partials = (addresses, addresses + np.uint64(partial))  # per parity, of each rank's (max_rows, width) float32

        scores = comm.map_shared([layout.max_rows * 16] * comm.size)
        self.scores = [part.view(np.float32).reshape(-1, 4) for part in scores]  # per rank, (max_rows, 4): kernels/score.py
        most = MOST_DIGESTS_PER_LAYER * (len(loaded.spec.layers) + 1)
        digests = comm.map_shared([most * 8 * job.check_ranks] * comm.size)
        self.digests = [part.view(np.int64) for part in digests]  # per rank, of what all must hold alike; empty if not wanted

        others = [0] * (comm.size - 1)
        rows, padded = (-(-size // ROWS_UNIT) * ROWS_UNIT for size in (job.max_sequences, sizes.vocab))
        logits = comm.map_shared([rows * padded * 4, *others])[0]
        self.logits = logits.view(np.float32).reshape(rows, padded)  # (max_sequences, vocab), both padded
        shape = StepShape(layout.max_rows, job.max_sequences, num_blocks(layout.context), len(layout.pools))
        self.step = StepWindow(shape, comm.map_shared([shape.num_bytes, *others])[0].view(np.int64))
