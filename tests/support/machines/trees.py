"""Recorded /sys and /proc trees: one line per file, its path and its content as JSON texts."""

import json
import sys
from pathlib import Path

# What numatp.machine reads of them.
CPU, NODE = "sys/devices/system/cpu", "sys/devices/system/node/node[0-9]*"
PATTERNS = (
    *(f"{CPU}/{name}" for name in ("online", "present")),
    *(f"{CPU}/cpu[0-9]*/topology/{name}" for name in ("core_cpus_list", "thread_siblings_list", "physical_package_id")),
    *(f"{CPU}/cpu[0-9]*/cache/index*/{name}" for name in ("level", "type", "shared_cpu_list")),
    *(f"{NODE}/{name}" for name in ("cpulist", "meminfo", "distance", "hugepages/*/nr_hugepages", "hugepages/*/free_hugepages")),
    *("sys/kernel/mm/transparent_hugepage/enabled", "proc/sys/kernel/numa_balancing", "proc/meminfo", "proc/cpuinfo"),
    *("proc/self/status", "proc/self/cgroup"),
)


def record(root):
    """The lines; of /proc/cpuinfo the first cpu only, and /proc/self as /proc/1."""
    for pattern in PATTERNS:
        for file in sorted(Path(root).glob(pattern)):
            try:
                text = file.read_text()
            except OSError:
                continue
            path = str(file.relative_to(root)).replace("proc/self", "proc/1")
            yield f"{json.dumps(path)} {json.dumps(text.split(chr(10) * 2)[0] if path == 'proc/cpuinfo' else text)}"


def unpack(archive, root):
    for line in archive.read_text().splitlines():
        path, end = json.JSONDecoder().raw_decode(line)
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.loads(line[end:]))
    return root


if __name__ == "__main__":
    print("\n".join(record(sys.argv[1])))
