"""What memory gives on this machine: bandwidth and latency for each node whose threads ask and each node that holds the memory, by
number of threads, and the exchange of two ranks between each pair of nodes.

All in one process: threads pinned to one node measure memory that threads of another node touched first. That is why it is the
same with and without mpirun. Loops are those of the roofline, the product is that of a 4-bit model, the exchange is a rank's own.
"""

import ctypes
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np

from numatp import quants
from numatp.engine.team import Team
from numatp.errors import MachineError, UserError
from numatp.kernels import activation, exchange
from numatp.kernels import roofline as loops
from numatp.kernels.compile import Kernel, specialize
from numatp.machine import native, pages, policy, topology
from numatp.machine.topology import Machine
from numatp.measure.roofline import L3_TIMES, Area, Loops, Meter
from numatp.program.builder import Builder
from numatp.program.values import Access, Buffer
from numatp.quants.table import FORMATS, TILE_ROWS, UNIT
from numatp.ranks.alone import alone
from numatp.ranks.host import Host, make_window

T = TypeVar("T")
SECONDS = 0.1  # of one timing
FORMAT, COLUMNS = "Q4_0", 4096  # of the product
CHAIN_BYTES = 512 << 20  # at most: more than a core's part of any L3 cache
STEPS = 100_000  # of a chain, at first
EXCHANGES = 200  # of one Step
SHORT, LONG = 512, 8192  # floats: 2 and 32 KiB
LOCAL = 99.0  # per cent of the pages that must lie where they are said to be
FILLED = 0x2C  # every byte of the weights that are multiplied: any scale made of it is a normal number


@dataclass(frozen=True)
class Pair:
    """`threads` cores of one node, using memory of another or the same."""

    threads_node: int
    memory_node: int
    threads: int
    read_gbs: float  # 1e9 bytes per second, all threads together
    read_loop: str  # which of the roofline's was the fastest
    copy_gbs: float  # bytes read and bytes written
    gemv_gbs: float  # weights of a matrix-vector product in FORMAT


@dataclass(frozen=True)
class Latency:
    threads_node: int
    memory_node: int
    ns: float  # from one load to the next that needs its result


@dataclass(frozen=True)
class Exchange:
    """Of two ranks with one thread each, both sums included."""

    nodes: tuple[int, int]
    short_us: float  # 2 KiB
    long_us: float  # 32 KiB


@dataclass(frozen=True)
class Bandwidth:
    nodes: tuple[int, ...]  # that hold memory
    cores: dict[int, int]  # of each node that has some
    area_bytes: int  # that all threads together read
    pairs: list[Pair]
    latencies: list[Latency]
    exchanges: list[Exchange]
    together_gbs: float  # reading, all nodes at once, each its own memory
    notes: list[str]

    @property
    def local_gbs(self) -> dict[int, float]:
        """The best that a node reads of its own memory, with any number of threads."""
        best: dict[int, float] = {}
        for pair in self.pairs:
            if pair.threads_node == pair.memory_node:
                best[pair.memory_node] = max(best.get(pair.memory_node, 0.0), pair.read_gbs)
        return best


def thread_counts(cores: int, wanted: Sequence[int] = ()) -> list[int]:
    """Numbers of threads to measure on so many cores: those that are wanted and possible, else powers of two and all."""
    powers = [1 << i for i in range(cores.bit_length()) if 1 << i < cores]
    return sorted({min(count, cores) for count in wanted}) or [*powers, cores]


def measure(
    machine: Machine,
    allowed: frozenset[int],
    *,
    threads: Sequence[int] = (),
    area_bytes: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Bandwidth:
    """All of it, on the cpus in `allowed`. area_bytes: None is eight times a node's L3 caches; at most half of what is free.

    UserError for cpus that no node has, MachineError where threads cannot be pinned or there is no memory.
    """
    cpus = {node.id: _cpus(machine, allowed, node.id) for node in machine.nodes}
    cpus = {node: some for node, some in cpus.items() if some}
    holders = [node.id for node in machine.nodes if node.memory_bytes > 0]
    if not cpus or not holders:
        raise UserError("no node with cores and memory that this job may use: give it more cpus")
    wanted = area_bytes or max(L3_TIMES * sum(map(topology.l3_bytes, {l3 for _, l3 in some})) or 1 << 30 for some in cpus.values())
    size = min(wanted, *(topology.free_bytes(node) // 2 for node in holders))
    counts = {node: thread_counts(len(some), threads) for node, some in cpus.items()}
    nodes = list(cpus)
    neighbours = [(one, two) for i, one in enumerate(nodes) for two in nodes[i:] if one != two or len(cpus[one]) > 1]
    total = len(holders) * (sum(map(len, counts.values())) + len(nodes)) + len(neighbours) + 1
    done, pairs, latencies, notes = 0, list[Pair](), list[Latency](), list[str]()

    def step() -> None:
        nonlocal done
        done += 1
        progress(done, total)

    for holder in holders:
        area, said = _area_on(holder, cpus.get(holder) or cpus[nodes[0]], size)
        notes += said
        reads: dict[tuple[int, int], tuple[float, str, float]] = {}
        for node in nodes:
            for count in counts[node]:
                reads[node, count] = _on(_spread(cpus[node], count), partial(_read_and_copy, area))
                step()
        ctypes.memset(area.address, FILLED, area.num_bytes)
        for (node, count), found in reads.items():
            gemv = _on(_spread(cpus[node], count), partial(_multiply, area))
            pairs.append(Pair(node, holder, count, *found, gemv))
        _make_chain(area)
        for node in nodes:
            latencies.append(Latency(node, holder, _on(cpus[node][:1], partial(_chase, area.address))))
            step()
        area.release()
    together = _on([seat for some in cpus.values() for seat in some], partial(_read_own, size))
    step()
    exchanges = []
    for one, two in neighbours:
        seats = cpus[one][0], cpus[two][1 if one == two else 0]
        short, long = (_exchange(seats, width) for width in (SHORT, LONG))
        exchanges.append(Exchange((one, two), short, long))
        step()
    own = {node: len(some) for node, some in cpus.items()}
    return Bandwidth(tuple(holders), own, size, pairs, latencies, exchanges, together, notes)


Seat = tuple[int, int]  # cpu, its L3 group


def _cpus(machine: Machine, allowed: frozenset[int], node: int) -> list[Seat]:
    """One per core of the node that this job may use."""
    cores = [core for core in machine.cores if core.node == node]
    return sorted((min(allowed & set(core.cpus)), core.l3) for core in cores if allowed & set(core.cpus))


def _spread(seats: Sequence[Seat], count: int) -> list[Seat]:
    """`count` of them over all the L3 caches, as ranks have their threads."""
    return [seats[i * len(seats) // count] for i in range(count)]


def _on(seats: Sequence[Seat], work: Callable[[Team], T], prefer: int | None = None) -> T:
    """work(team) with threads pinned there; on a thread of its own, because that becomes the team's first."""

    def run() -> T:
        if prefer is not None:
            policy.prefer_node(prefer, {})
        host = alone(False).host
        try:
            team = Team(host, [cpu for cpu, _ in seats], [l3 for _, l3 in seats])
            try:
                return work(team)
            finally:
                team.close()
        finally:
            host.close()

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run).result()


def _area_on(node: int, seats: Sequence[Seat], num_bytes: int) -> tuple[Area, list[str]]:
    """Memory on the node, and what is wrong with it. seats: of the node, or any where it has none: then a policy has to do."""
    area = _on(seats, lambda team: Area.reserve(num_bytes, team.threads, team.run), prefer=node)
    counted = pages.count([pages.Region("area", area.address, area.num_bytes)])
    found = sum(counted["area"].values()) if counted and "area" in counted else 0
    if not counted or not found:
        return area, [f"node {node}: nobody knows whether its memory is there: the kernel refuses move_pages"]
    share = 100 * counted["area"][node] / found
    return area, [] if share >= LOCAL else [f"node {node}: only {share:.1f} % of the memory that was measured as its own was there"]


def _timed(run: Callable[[int], None], rounds: int = 1) -> float:
    """Seconds of one round; run(rounds) makes so many, once before it counts: a kernel may have to be compiled."""
    run(1)
    while True:
        began = time.perf_counter()
        run(rounds)
        seconds = time.perf_counter() - began
        if seconds >= SECONDS:
            return seconds / rounds
        rounds = min(max(int(rounds * 1.2 * SECONDS / max(seconds, 1e-9)), rounds + 1), rounds * 1000)


def _view(area: Area, threads: int) -> Area:
    """The same memory, divided among so many threads."""
    return Area(area.address, max(area.num_bytes // threads // loops.UNIT, 1) * loops.UNIT, threads)


def _meter(team: Team, area: Area) -> Meter:
    control, sums = np.zeros(loops.CONTROL_WORDS, np.int64), np.zeros((team.threads, 32), np.int32)
    calls = Loops(area, 0, control, sums).calls
    for _, kernel, record in calls:  # no rounds: compiled before anything is timed
        team.run(kernel, record)
    return Meter(lambda index: team.run(*calls[index][1:]), control, [sums])


def _read_and_copy(area: Area, team: Team) -> tuple[float, str, float]:
    """(GB/s read, by which loop, GB/s copied)."""
    own = _view(area, team.threads)
    rate = _meter(team, own).read(own.part_bytes)
    half = own.part_bytes // (2 * loops.UNIT) * loops.UNIT
    if not half:
        raise MachineError(f"{area.num_bytes} bytes are too few to measure {team.threads} threads with")
    seconds = _timed(lambda rounds: team.run(loops.copy, loops.copy.record(memory=own.address, part_bytes=2 * half, rounds=rounds)))
    return rate.per_second / 1e9, rate.loop, 2 * half * team.threads / seconds / 1e9


def _read_own(num_bytes: int, team: Team) -> float:
    """GB/s of all threads together, each reading memory that it has touched first."""
    area = Area.reserve(num_bytes, team.threads, team.run)
    try:
        return _meter(team, area).read(area.part_bytes).per_second / 1e9
    finally:
        area.release()


def _multiply(area: Area, team: Team) -> float:
    """GB/s of weights in a matrix-vector product, the matrix as large as the area."""
    format = FORMATS[FORMAT]
    tile = format.bytes_of_tile(COLUMNS)
    tiles = max(area.num_bytes // tile, 1)
    x = np.zeros(activation.group_bytes(quants.kernels_of(FORMAT).ACTIVATION, COLUMNS, 1), np.uint8)
    out = np.zeros(tiles * TILE_ROWS, np.float32)
    rows = np.array([1, 0])  # of them none through tile registers
    kernel: Kernel = specialize("matmul", "quant", format.module).matmul
    record = kernel.record(
        weights=area.address, tiles=tiles, tile_bytes=tile, units=COLUMNS // UNIT, rows=rows.ctypes.data, x=x.ctypes.data,
        x_group=len(x), x_thread_stride=0, pitch=1, out=out.ctypes.data, out_stride=out.nbytes, add=0,
        panels=0, panels_thread_stride=0,
    )  # fmt: skip

    def run(rounds: int) -> None:
        for _ in range(rounds):
            team.run(kernel, record)

    return tiles * tile / _timed(run) / 1e9


def _make_chain(area: Area) -> None:
    """Makes the area's beginning one ring of indices through all its cache lines, in an order that nobody can guess."""
    lines = min(area.num_bytes, CHAIN_BYTES) // 64
    words = np.ctypeslib.as_array((ctypes.c_int64 * (lines * 8)).from_address(area.address))
    order = np.random.default_rng(0).permutation(lines) * 8
    words[order] = np.roll(order, -1)


def _chase(address: int, team: Team) -> float:
    """ns of one step."""
    last = np.zeros(1, np.int64)
    run = loops.chase
    return 1e9 * _timed(lambda n: team.run(run, run.record(memory=address, steps=n, last=last.ctypes.data)), STEPS)


def _exchange(seats: tuple[Seat, Seat], width: int) -> float:
    """us of one exchange of `width` floats between two ranks with a thread each."""
    window = make_window()

    def rank(number: int) -> float:
        with _member(number, window if number == 0 else os.dup(window)) as host:
            cpu, l3 = seats[number]
            team = Team(host, [cpu], [l3])
            try:
                return _exchange_as(host, team, width)
            except BaseException as error:
                host.abort(f"rank {number}: {error}")
                raise
            finally:
                team.close()

    with ThreadPoolExecutor(2) as pool:
        ranks = [pool.submit(rank, number) for number in range(2)]
        return max(one.result() for one in ranks)


@contextmanager
def _member(number: int, window: int) -> Iterator[Host]:
    host = Host(number, 2, window, [os.getpid()] * 2, False, lambda: None)
    try:
        yield host
    finally:
        host.close()


def _exchange_as(host: Host, team: Team, width: int) -> float:
    """One of the two ranks; rank 0 returns the time. Every exchange sends what the last one has summed."""
    library = native.library()
    flags = host.map_shared([library.numatp_flag_bytes(1, 1)] * 2)
    library.numatp_ranks_lanes(host.handle, flags[0].ctypes.data, 1)
    buffers = host.map_shared([2 * width * 4] * 2)  # two, by parity, on each rank
    addresses = np.array([part.ctypes.data for part in buffers], np.uint64)
    partials, rows = (addresses, addresses + np.uint64(width * 4)), np.ones(1, np.int64)
    buffers[host.seat][:] = 0
    builder, lane = Builder("exchanges"), Access(Buffer("lane"), "lane")
    for k in range(EXCHANGES):
        builder.sync(team.handle, lane)
        builder.add(
            exchange.sum_partials, [], [], partials=partials[k % 2].ctypes.data, ranks=2, lanes=1, rows=rows.ctypes.data,
            width=width, out=int(partials[(k + 1) % 2][host.seat]), add=0,
        )  # fmt: skip
    team.set_programs([builder.finish([partials, rows]).place()])
    host.meet()
    if host.seat:
        team.serve()
        return 0.0

    def run(rounds: int) -> None:
        for _ in range(rounds):
            team.step(0)

    seconds = _timed(run)
    team.stop()
    return 1e6 * seconds / EXCHANGES
