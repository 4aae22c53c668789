"""Where the pages of all ranks are, counted on every rank at rank 0's word.

The other ranks run Steps and no Python of their own, so the count is an op: a program of one Python function, whose results
rank 0 finds in the window when the Step is done.
"""

import ctypes
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from numatp.engine.load import Loaded
from numatp.errors import MachineError
from numatp.machine import pages
from numatp.program.builder import Op, Program
from numatp.ranks.world import World

REPORT_BYTES = 1 << 16  # of one rank, as JSON
KERNEL = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


class Audit:
    """This rank's part in it. Made by all ranks together."""

    def __init__(self, world: World, node: int, loaded: Loaded):
        self._world, self._node = world, node
        self._regions = [pages.Region(_group(t.name), t.address, t.num_bytes) for t in loaded.weights.tensors.values()]
        self._regions.append(pages.Region("cache", loaded.cache_at, loaded.layout.cache.num_bytes))
        self._reports = world.map_parts([REPORT_BYTES] * world.size)
        op = KERNEL(lambda args, thread, threads: self._report() if thread == 0 else None)
        address = ctypes.cast(op, ctypes.c_void_p).value
        assert address
        self.program = Program("audit", [Op("audit", address, np.zeros(1, np.int64), [], [])], 0, keep=[op])
        self.program.returned = world.returned(self._reports)

    def collect(self, run: Callable[[], None]) -> list[dict[str, Any]]:
        """Every rank's pages (llm.py: RankPages, as JSON), on rank 0; run() makes a Step of the program."""
        run()
        said = [json.loads(report.tobytes().partition(b"\0")[0]) for report in self._reports]
        for one in said:
            if "failed" in one:
                raise MachineError(one["failed"])
        return said

    def _report(self) -> None:
        """On thread 0 of every rank, from C: an exception would go nowhere."""
        rank, host = self._world.rank, self._world.host
        try:
            groups, window = pages.count(self._regions), host.count_pages()
            if groups is None or window is None:
                raise MachineError("the kernel tells neither by move_pages nor in /proc/self/numa_maps where pages are")
            said = {"rank": rank, "node": self._node, "groups": groups | {"window": window}}
        except Exception as error:
            said = {"failed": f"rank {rank}: {error}"}
        text = json.dumps(said).encode()
        if len(text) >= REPORT_BYTES:
            text = json.dumps({"failed": f"rank {rank}: more groups of tensors than a report holds"}).encode()
        self._reports[host.seat][: len(text) + 1] = np.frombuffer(text + b"\0", np.uint8)


def _group(tensor: str) -> str:
    """The tensors of one name in all layers, with all their segments."""
    return re.sub(r" segment \d+$", "", re.sub(r"\.\d+(?=\.)", ".*", tensor))
