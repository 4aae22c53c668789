"""Made-up machines: a /sys and /proc tree in a folder, as far as numatp.machine reads them."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from numatp.machine.topology import format_cpulist

GIB = 1 << 30
GIB_IN_KB = 1 << 20
AVX2 = "fpu sse2 avx avx2 fma f16c bmi1 bmi2 abm movbe popcnt"
AVX512 = f"{AVX2} avx512f avx512bw avx512vl avx512dq avx512cd"


def write(root: Path, path: str, text: object) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{text}\n")


def make_machine(
    root: Path,
    cores: Sequence[tuple[int, ...]],
    *,
    packages: Sequence[int],
    nodes: Sequence[int] | None,
    l3: Sequence[int] | None = None,
    memory_gib: dict[int, int] | None = None,
    distances: dict[int, str] | None = None,
    offline: Iterable[int] = (),
    flags: str = AVX512,
) -> Path:
    """`cores` lists each core's cpus; packages, nodes and l3 say for each core where it is; nodes=None leaves out the folder.

    `memory_gib` by node (64 each if not given) also makes nodes that have no cores; a node's distances are the file's text.
    """
    offline = set(offline)
    online = sorted({cpu for cpus in cores for cpu in cpus} - offline)
    write(root, "sys/devices/system/cpu/online", format_cpulist(online))
    write(root, "sys/devices/system/cpu/present", format_cpulist({cpu for cpus in cores for cpu in cpus}))
    for index, cpus in enumerate(cores):
        for cpu in set(cpus) - offline:
            here = f"sys/devices/system/cpu/cpu{cpu}"
            write(root, f"{here}/topology/core_cpus_list", format_cpulist(set(cpus) - offline))
            write(root, f"{here}/topology/physical_package_id", packages[index])
            write(root, f"{here}/cache/index0/level", 1)
            write(root, f"{here}/cache/index0/type", "Data")
            write(root, f"{here}/cache/index0/shared_cpu_list", format_cpulist(cpus))
            if l3 is not None:
                group = {c for other, its in zip(l3, cores, strict=True) if other == l3[index] for c in its}
                write(root, f"{here}/cache/index3/level", 3)
                write(root, f"{here}/cache/index3/type", "Unified")
                write(root, f"{here}/cache/index3/shared_cpu_list", format_cpulist(group - offline))
    sizes = dict.fromkeys(nodes or [0], 64) | (memory_gib or {})
    write(root, "proc/meminfo", f"MemTotal: {sum(sizes.values()) * GIB_IN_KB} kB\nMemFree: 1048576 kB\nMemAvailable: 2097152 kB")
    write(root, "proc/cpuinfo", f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n")
    for node, size in sizes.items() if nodes is not None else ():
        here = f"sys/devices/system/node/node{node}"
        mine = {c for owner, cpus in zip(nodes or (), cores, strict=True) if owner == node for c in cpus}
        write(root, f"{here}/cpulist", format_cpulist(mine - offline))
        write_node_memory(root, node, total_kb=size * GIB_IN_KB, free_kb=size * GIB_IN_KB * 3 // 4)
        default = " ".join("10" if other == node else "21" for other in sorted(sizes))
        write(root, f"{here}/distance", (distances or {}).get(node, default))
    return root


def write_node_memory(root: Path, node: int, **kb: int) -> None:
    """total_kb, free_kb, file_pages_kb, shmem_kb, active_file_kb, inactive_file_kb."""
    names = {"total_kb": "MemTotal", "free_kb": "MemFree", "file_pages_kb": "FilePages", "shmem_kb": "Shmem"}
    names |= {"active_file_kb": "Active(file)", "inactive_file_kb": "Inactive(file)"}
    text = "\n".join(f"Node {node} {names[key]}: {value} kB" for key, value in kb.items())
    write(root, f"sys/devices/system/node/node{node}/meminfo", text)


def hybrid(root: Path) -> Path:
    """One node: 4 fast cores of two siblings (cpus 0-7), 8 slow ones (8-15); Linux tells them apart by the events they count."""
    cores: list[tuple[int, ...]] = [*((cpu, cpu + 1) for cpu in range(0, 8, 2)), *((cpu,) for cpu in range(8, 16))]
    make_machine(root, cores, packages=[0] * 12, nodes=[0] * 12, l3=[0] * 12)
    write(root, "sys/devices/cpu_core/cpus", "0-7")
    write(root, "sys/devices/cpu_atom/cpus", "8-15")
    return root


def desktop(root: Path) -> Path:
    """One node, two cores."""
    return make_machine(root, [(0,), (1,)], packages=[0, 0], nodes=[0, 0], l3=[0, 0])


def xeon(root: Path, nodes_per_package: int = 1, **more: object) -> Path:
    """Two packages of 32 cores with two siblings each: cpus 0-31 and 64-95 on the first."""
    cores = [(c, c + 64) for c in range(64)]
    packages = [c // 32 for c in range(64)]
    nodes = [c * 2 * nodes_per_package // 64 for c in range(64)]
    return make_machine(root, cores, packages=packages, nodes=nodes, l3=packages, **more)  # type: ignore[arg-type]


def epyc(root: Path) -> Path:
    """Two packages of 32 cores, cpu numbers alternating between them, four L3 groups of 8 cores per package."""
    packages = [c % 2 for c in range(64)]
    l3 = [c % 2 * 4 + c // 2 // 8 for c in range(64)]
    return make_machine(root, [(c, c + 64) for c in range(64)], packages=packages, nodes=packages, l3=l3)


def write_huge_pages(root: Path, node: int, mib: int, total: int, free: int) -> None:
    here = f"sys/devices/system/node/node{node}/hugepages/hugepages-{mib * 1024}kB"
    write(root, f"{here}/nr_hugepages", total)
    write(root, f"{here}/free_hugepages", free)


def write_settings(root: Path, numa_balancing: int = 0, huge_page_mode: str = "madvise") -> None:
    write(root, "proc/sys/kernel/numa_balancing", numa_balancing)
    modes = " ".join(f"[{mode}]" if mode == huge_page_mode else mode for mode in ("always", "madvise", "never"))
    write(root, "sys/kernel/mm/transparent_hugepage/enabled", modes)


def write_process(root: Path, pid: int, name: str, parent: int, cpus: str, mems: str = "0") -> None:
    write(root, f"proc/{pid}/stat", f"{pid} ({name[:15]}) S {parent} 1 1 0")
    write(root, f"proc/{pid}/status", f"Name:\t{name}\nCpus_allowed:\tff\nCpus_allowed_list:\t{cpus}\nMems_allowed_list:\t{mems}")
