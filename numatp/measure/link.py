"""What the link between this job's hosts gives: exchanges of several lengths, as sums make them, with nothing computed beside."""

import statistics

import numpy as np

from numatp.engine.job import Job
from numatp.engine.links import Link
from numatp.engine.start import start_ranks
from numatp.engine.team import Team
from numatp.engine.wires import exchange_seconds
from numatp.errors import UserError
from numatp.machine.launch import read_launch

SIZES = (8, 1 << 10, 1 << 12, 1 << 14, 1 << 16, 1 << 17, 1 << 19, 1 << 21)  # bytes, from each host to each other
SECONDS = 0.002  # of one try, about: short beside what others do on these hosts now and then
TRIES = 25  # of which the median counts


def measure_link() -> Link:
    """Between the first ranks of all hosts; the same on every rank. Collective over the ranks that a launcher started. UserError
    where they are on one host.
    """
    launched = read_launch()
    if not launched or launched.local_size == launched.size:
        raise UserError("--link measured: there is none between ranks of one host: start some on each, or say what the link does")
    started = start_ranks(Job(model="", threads=1), None)
    world = started.world
    assert world.hosts
    started.bind()
    team = Team(world.host, started.placement.cpus[:1], started.placement.l3[:1])
    count, most = len(world.hosts.members.seats), max(SIZES)
    memory = np.zeros((count, most), np.uint8)
    addresses = np.array([row.ctypes.data for row in memory], np.uint64)
    seen = []
    for size in SIZES:
        num_bytes = size if world.hosts.leads else 0
        where = world, team, num_bytes, int(addresses[world.hosts.index]), addresses
        first = exchange_seconds(*where, tries=1, times=4)[0]
        times = max(2, min(100, int(SECONDS / first)))
        seen.append(((count - 1) * size, statistics.median(exchange_seconds(*where, tries=TRIES, times=times))))
    team.close()
    return Link.measured(seen)
