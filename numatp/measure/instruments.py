"""What an engine that measures has beside its model's programs, on every rank: the roofline's loops, and the programs once more
with a clock around each op. Rank 0 starts them all as Steps.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from numatp.engine.agree import agree
from numatp.engine.arenas import Arenas
from numatp.engine.engine import Engine
from numatp.engine.job import Job
from numatp.engine.start import StartedRank
from numatp.engine.team import Team
from numatp.kernels.roofline import CONTROL_WORDS
from numatp.machine import topology
from numatp.machine.placement import Placement
from numatp.measure.roofline import Area, Loops, Meter, area_bytes
from numatp.program.builder import Op, Program
from numatp.ranks.world import World


@dataclass(frozen=True)
class OpInfo:
    """One op of one rank's program."""

    name: str  # of its kernel
    label: str  # the weights that it reads, "" without
    num_bytes: int  # weights that the rank reads in it
    macs: int  # multiplications with weights that the rank does in it for one row
    head: bool  # makes logits, which few rows of a Step want
    barrier: bool  # before it


@dataclass(frozen=True)
class Timed:
    """A program with a clock, as rank 0 sees it: of every rank."""

    index: int  # for Steps
    ops: list[list[OpInfo]]  # per rank
    times: list[np.ndarray]  # per rank int64 (threads, ops + 1, 2), ns: waited in the barrier before the op, spent in it


class Instruments:
    """Made by all ranks together, after the model's programs."""

    def __init__(self, world: World, own: Placement, team: Team, arenas: Arenas, programs: list[Program], job: Job):
        """programs: of the model. job.measure 0: eight times the L3 caches, if there is room."""
        host = world.host
        described = _tell(world, [team.threads, world.name_node(own.node), own.l3, os.getpid(), own.cpus])
        threads = [count for count, _, _, _, _ in described]
        self.nodes = len({node for _, node, _, _, _ in described})
        self.cpus = [cpus for *_, cpus in described]
        first = world.rank - host.seat
        here = described[first : first + host.seats]
        self._pids = [pid for _, _, _, pid, _ in here]
        # Ranks that share an L3 cache share what has to be larger than it.
        everyone = Counter(group for _, _, groups, _, _ in here for group in groups)
        neighbours = sum(node == world.name_node(own.node) for _, node, _, _, _ in here)
        num_bytes = area_bytes(Counter(own.l3), everyone, topology.free_bytes(own.node) // neighbours)
        if job.measure:
            num_bytes = job.measure * team.threads // sum(threads)
        peaks = host.gather(_peak_bytes(os.getpid()))
        area = agree(world, lambda: Area.reserve(num_bytes, team.threads, team.run))
        arenas.keep(area.address, area.num_bytes)
        self.part_bytes = min(world.gather(area.part_bytes))  # what every thread can read
        self._before = [(peak, area) for peak, area in zip(peaks, host.gather(area.num_bytes), strict=True)]

        others = [0] * (host.seats - 1)
        control = host.map_shared([8 * CONTROL_WORDS, *others])[0].view(np.int64)
        sums = [part.view(np.int32).reshape(-1, 32) for part in world.map_parts([128 * count for count in threads])]
        self._loops = Loops(area, world.rank, control, sums[host.seat])
        loops = len(programs)
        self.programs = self._loops.programs()
        for program in self.programs:
            program.returned = world.returned(sums)
            program.told = world.told(control) + program.returned  # rank 0 sets them to zero
        self.meter = Meter(lambda index: team.step(loops + index), control, sums)

        descriptions = [[_info(op) for op in program.ops] for program in programs]
        told = _tell(world, [[list(info) for info in infos] for infos in descriptions])
        self.timed = []
        for i, program in enumerate(programs):
            ops = [[OpInfo(*info) for info in infos[i]] for infos in told]
            shapes = [(count, len(infos) + 1, 2) for count, infos in zip(threads, ops, strict=True)]
            parts = world.map_parts([8 * int(np.prod(shape)) for shape in shapes])
            whose = shapes if world.rank == host.seat else shapes[first:]
            times = [part.view(np.int64).reshape(shape) for part, shape in zip(parts, whose, strict=False)]
            self.timed.append(Timed(loops + len(self.programs), ops, times))
            back = world.returned(times)
            copy = replace(
                program, name=f"{program.name}, timed", times=times[host.seat], told=program.told + back,
                returned=program.returned + back, own_time=job.rehearse,
            )  # fmt: skip
            self.programs.append(copy)

    def peak_bytes(self) -> int:
        """The most memory that all ranks of this host together have had, without what the roofline reads. Shared memory counts on
        each.
        """
        now = [_peak_bytes(pid) for pid in self._pids]
        return sum(max(before, peak - area) for peak, (before, area) in zip(now, self._before, strict=True))


class MeasuringEngine(Engine):
    def __init__(self, job: Job, started: StartedRank, progress: Callable[[int, int], None] = lambda done, total: None):
        super().__init__(job, started, progress)
        self.instruments = Instruments(self.world, self.placement, self.team, self.arenas, self.programs, job)
        self.team.set_programs([*self.programs, *self.instruments.programs])


def _peak_bytes(pid: int) -> int:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024 if found else 0


def _info(op: Op) -> tuple[str, str, int, int, bool, bool]:
    """As the fields of OpInfo."""
    matrices = [matrix for matrix in op.matrices if matrix.num_bytes]
    weights, held = sum(matrix.rows * matrix.columns for matrix in matrices), sum(matrix.num_bytes for matrix in matrices)
    label = " + ".join(matrix.name.removesuffix(".weight") for matrix in matrices)
    macs = weights * op.num_bytes // max(held, 1)
    return op.name, label, op.num_bytes, macs, any(matrix.head for matrix in matrices), op.barrier


def _tell(world: World, value: object) -> list[Any]:
    """Every rank's value (JSON, of any size), in rank order, on every rank."""
    host = world.host
    text = json.dumps(value).encode()
    parts = host.map_shared(host.gather(len(text)))
    parts[host.seat][:] = np.frombuffer(text, np.uint8)
    host.meet()
    return world.of_all_hosts([json.loads(part.tobytes()) for part in parts])
