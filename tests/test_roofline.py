"""The loops that everything is compared with: do they read what they claim, and is a wrong measurement an error?"""

import numpy as np
import pytest

from numatp.engine.team import Team
from numatp.errors import MachineError
from numatp.kernels import roofline as loops
from numatp.machine import pages, topology
from numatp.measure import roofline
from numatp.ranks.alone import alone

THREADS = 2


@pytest.fixture(scope="module")
def measured():
    """(team, area, the arguments of each loop, what tells the loops what to do, their sums) on threads that are pinned nowhere."""
    host = alone(True).host
    team = Team(host, [-1] * THREADS, [0] * THREADS)
    area = roofline.Area.reserve(1 << 20, THREADS, team.run)
    control, sums = np.zeros(loops.CONTROL_WORDS, np.int64), np.zeros((THREADS, 32), np.int32)
    yield team, area, roofline.Loops(area, 0, control, sums), control, sums
    area.release()
    team.close()
    host.close()


def meter(measured, spoil=lambda: None):
    team, _, calls, control, sums = measured

    def go(index):
        spoil()
        team.run(*calls.calls[index][1:])

    return roofline.Meter(go, control, [sums])


def test_every_loop_reads_everything_on_every_thread(measured):
    area = measured[1]
    for name, _, _ in roofline.READS:
        rate = meter(measured).read(area.part_bytes, loop=name)
        assert rate.loop == name
        assert rate.num_bytes == area.num_bytes
        assert rate.per_second > 0
    assert meter(measured).dot().per_second > 0


def test_one_thread_alone(measured):
    _, area, _, _, sums = measured
    rate = meter(measured).read(area.part_bytes, threads=1)
    assert rate.num_bytes == area.part_bytes
    assert sums[0].any() and not sums[1].any()


def test_a_loop_that_reads_less_is_an_error(measured):
    area, control = measured[1], measured[3]

    def less():
        control[loops.NUM_BYTES] = area.part_bytes - loops.UNIT

    with pytest.raises(MachineError, match="did not read"):
        meter(measured, less).read(area.part_bytes)


def test_memory_is_first_touched_by_the_threads(measured):
    area = measured[1]
    counted = pages.count([pages.Region("area", area.address, area.num_bytes)])
    assert counted is None or counted["area"].total() * 4096 == area.num_bytes


def test_l3_size(tmp_path):
    for index, (level, size) in enumerate([(1, "48K"), (2, "2048K"), (3, "480M")]):
        folder = tmp_path / f"sys/devices/system/cpu/cpu3/cache/index{index}"
        folder.mkdir(parents=True)
        (folder / "level").write_text(f"{level}\n")
        (folder / "size").write_text(f"{size}\n")
    assert topology.l3_bytes(3, tmp_path) == 480 << 20
    assert topology.l3_bytes(4, tmp_path) == 0


def test_area_keeps_half_of_the_free_memory(monkeypatch):
    monkeypatch.setattr(topology, "l3_bytes", lambda cpu: 32 << 20)
    assert roofline.area_bytes({0: 2, 4: 1}, {0: 2, 4: 2, 8: 2}, 1 << 40) == 8 * (32 << 20) * 3 // 2
    assert roofline.area_bytes({0: 2}, {0: 2}, 1 << 20) == 1 << 19
