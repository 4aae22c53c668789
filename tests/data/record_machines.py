"""Records the trees of emulated machines: python tests/data/record_machines.py NAME, one of SHAPES, writes machines/NAME*.tree.

What a test expects of them, NAME.txt beside it, is then written by tests/test_machines.py --write and read by a human.
"""

import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from support.machines import emulated_machine  # noqa: E402

RECORD = f"{sys.executable} {HERE.parent / 'support/machines/trees.py'} /"
CHANGED = (
    "echo 0 > /sys/devices/system/cpu/cpu3/online && "
    "echo 64 > /sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages"
)
INSIDE = (
    "mkdir /sys/fs/cgroup/a && echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control && cd /sys/fs/cgroup/a && "
    "echo 0-1 > cpuset.cpus && echo 0 > cpuset.mems && echo $$ > cgroup.procs && cd - >/dev/null"
)
SHAPES = {
    "two_sockets": (
        {"": RECORD, "-cpuset": f"{INSIDE} >/dev/null && {RECORD}", "-changed": f"{CHANGED} >/dev/null && {RECORD}"},
        {"mib_per_node": 1024},
    ),
    "clusters": ({"": RECORD}, {"nodes_per_socket": 2, "mib_per_node": 512}),
    "memory_only": ({"": RECORD}, {"memory_only": 1, "mib_per_node": 1024}),
    "four_sockets": ({"": RECORD}, {"sockets": 4, "cores_per_node": 1, "mib_per_node": 512}),
}


def main():
    (name,) = sys.argv[1:]
    commands, shape = SHAPES[name]
    assert not emulated_machine.missing(), emulated_machine.missing()
    results = emulated_machine.run({f"tree{suffix}": command for suffix, command in commands.items()}, **shape)
    for suffix in commands:
        result = results[f"tree{suffix}"]
        assert result.status == 0, result
        (HERE / "machines" / f"{name}{suffix}.tree").write_text(result.stdout)


if __name__ == "__main__":
    main()
