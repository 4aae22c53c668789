"""numatp on emulated machines with two sockets: each rank on its own node with all its pages, the same text as outside, and what
must not pass unnoticed: memory forced elsewhere or moved away, slices that do not fit, refused system calls, killed ranks."""

import json
import re
import sys

import emulated_machine
import pytest
import tiny
from conftest import BIN, TESTS, run

WORDS = json.loads((TESTS / "data/words_tokens.json").read_text())
SIZES = tiny.SIZES | {
    "width": 512, "heads": 9, "kv_heads": 3, "head_size": 64, "ffn": 1600, "context": 8192, "vocab": len(WORDS["bpe"]["tokens"]),
}  # fmt: skip
TEXT = "-p 'The quick brown fox' --temp 0 --ignore-eos"
MPIRUN = BIN / "mpirun"
REFUSED = f"{sys.executable} {TESTS / 'refuse.py'} set_mempolicy,mbind,get_mempolicy,move_pages"
# Runs the rest of its line in a control group that has cpus 0 and 1 and the memory of node 0 only.
HIDE_NODE_1 = (
    "mkdir /sys/fs/cgroup/a && echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control && cd /sys/fs/cgroup/a && "
    "echo 0-1 > cpuset.cpus && echo 0 > cpuset.mems && echo $$ > cgroup.procs && cd - >/dev/null && "
)
READY = "numatp: pages after load"
WORKER = "pgrep -f 'engine.worker.*.rank.: 1'"
RANK_1 = "for p in $(pgrep -f numatp.generate); do grep -qz OMPI_COMM_WORLD_RANK=1 /proc/$p/environ && echo $p; done | tail -1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """model.gguf with some MB of random weights per rank, and wide.gguf, 3 GB of zeros."""
    if reason := emulated_machine.missing():
        pytest.skip(f"no emulated machine: {reason}")
    folder = tmp_path_factory.mktemp("numa")
    tiny.write(folder / "model.gguf", "Q8_0", sizes=SIZES, vocabulary=(WORDS, "smollm"))
    tiny.write_huge(folder / "wide.gguf", width=2048, ffn=8192, layers=15)
    return folder


def numatp(command, model, options="", before=""):
    """Kernels are compiled outside, for what the emulated CPUs have."""
    return f"NUMATP_ISA=avx2 {before} {BIN / 'numatp'} {command} -m {model} {options}".strip()


def generate(folder, options="", before=""):
    return numatp("generate", folder / "model.gguf", f"{TEXT} -n 24 {options}", before)


@pytest.fixture(scope="module")
def texts(folder):
    """What one, two and four ranks generate outside."""
    found = {ranks: run("sh", "-c", generate(folder, f"--ranks {ranks} -t 1")) for ranks in (1, 2, 4)}
    assert all(result.returncode == 0 and len(result.stdout) > 24 for result in found.values()), found
    return {ranks: result.stdout for ranks, result in found.items()}


def during(command, victim, deed):
    """Runs a command; does `deed` to process $victim, which is found by the shell command `victim`, once the model is loaded."""
    return (
        f"{command} >/tmp/out 2>/tmp/err & job=$!; until grep -q '{READY}' /tmp/err; do sleep 0.1; done; "
        f"victim=$({victim}); {deed}; wait $job; status=$?; cat /tmp/out; cat /tmp/err >&2; exit $status"
    )


def kill(command, victim):
    """Kills a rank while tokens are under way; says then which processes and shared files are left."""
    left = "echo victim $victim; sleep 3; echo left $(pgrep -f numatp.generate) $(ls /dev/shm)"
    return during(f"{command}", victim, f"kill -9 $victim; {left}").replace("cat /tmp/out; ", "")


def local(result):
    """{(rank, node): the least per cent of its pages that were counted on that node}, from the lines on stderr."""
    found = {}
    for rank, share, node in re.findall(r"rank (\d+): ([\d.]+) % of \d+ on node (\d+)", result.stderr):
        found[int(rank), int(node)] = min(float(share), found.get((int(rank), int(node)), 100.0))
    assert found, result.stderr
    return found


def assert_local(result, nodes):
    """Every rank r has its pages on nodes[r]."""
    assert result.status == 0, result
    found = local(result)
    assert list(found) == list(enumerate(nodes)) and min(found.values()) >= 99, result.stderr


def test_two_nodes(folder, texts):
    long = numatp("generate", folder / "model.gguf", f"{TEXT} -n 8000 --audit")
    audit = numatp("audit", folder / "model.gguf", "-n 1000 -o json --ranks 2")
    results = emulated_machine.run(
        {
            "bare": generate(folder, "--audit", f"{MPIRUN} -np 2"),
            "socket": generate(folder, "--audit", f"{MPIRUN} -np 2 --bind-to socket"),
            "plain": generate(folder, "--audit"),
            "refused": generate(folder, "--audit", REFUSED),
            "hidden": HIDE_NODE_1 + generate(folder, "--audit"),
            "forced": numatp("audit", folder / "model.gguf", "-n 4 -o json --ranks 2", "numactl --membind=0"),
            "stopped": generate(folder, before="numactl --membind=0"),
            "moved": during(audit, WORKER, f"{sys.executable} {TESTS / 'move_pages.py'} $victim 0 >&2"),
            "full": numatp("generate", folder / "wide.gguf", "-p x -ts 5,1"),
            "killed": kill(long, WORKER),
            "killed-mpi": kill(f"{MPIRUN} -np 2 {long}".replace(" NUMATP_ISA=avx2", " env NUMATP_ISA=avx2"), RANK_1),
        }
    )
    for way in ("bare", "socket", "plain", "refused"):
        assert_local(results[way], [0, 1])
        assert "rank 0 on node 0 (cpus 0-1), rank 1 on node 1 (cpus 2-3); 2 threads each" in results[way].stderr
        assert results[way].stdout == texts[2]
    assert "the kernel refuses memory policies here" in results["refused"].stderr

    assert_local(results["hidden"], [0])
    assert "1 rank" in results["hidden"].stderr and "node 1" not in results["hidden"].stderr
    assert results["hidden"].stdout == texts[1]

    assert "the memory policy bind:0 was set from outside (numactl?) and is kept" in results["forced"].stderr
    for way in ("forced", "moved"):
        assert results[way].status == 3, results[way]
        found = json.loads(results[way].stdout)
        assert [rank["node"] for rank in found["ranks"]] == [0, 1] and not found["passed"]
        assert found["ranks"][0]["percent_local"] >= 99 and found["ranks"][1]["percent_local"] <= 1
        assert found["after_load"][1]["percent_local"] <= 1 if way == "forced" else found["after_load"][1]["percent_local"] >= 99
    assert results["stopped"].status == 1, results["stopped"]
    message = "0.0 % of rank 1's weights are on its node 1, where the memory policy bind:0 from outside put them"
    assert message in results["stopped"].stderr

    assert results["full"].status == 1, results["full"]
    assert re.search(r"node 0 has 1\.\d GB free and its ranks \[0\] would need 2\.\d GB there", results["full"].stderr)
    for way in ("killed", "killed-mpi"):
        result = results[way]
        assert result.status, result
        victim = re.search(r"^victim (\d+)$", result.stdout, re.MULTILINE)
        assert victim and f"rank 1 (process {victim[1]}) died" in result.stderr, result
        assert re.search(r"^left$", result.stdout, re.MULTILINE), result


def test_sub_numa_nodes_and_memory_alone(folder, texts):
    """Two nodes in each socket, and one that is memory only: four ranks, or two on different sockets; none on the fifth node."""
    results = emulated_machine.run(
        {
            "plain": generate(folder, "--audit"),
            "bare": generate(folder, "--audit", f"{MPIRUN} -np 4"),
            "two": generate(folder, "--audit", f"{MPIRUN} -np 2"),
        },
        nodes_per_socket=2, cores_per_node=1, mib_per_node=1024, memory_only=1,
    )  # fmt: skip
    for way in ("plain", "bare"):
        assert_local(results[way], [0, 1, 2, 3])
        assert results[way].stdout == texts[4]
    assert_local(results["two"], [0, 2])
    assert results["two"].stdout == texts[2]


def test_many_cores(folder, texts):
    """More than 16 threads of one rank meet in two levels, one group per L3 cache."""
    results = emulated_machine.run({"wide": generate(folder, "--ranks 1 --cpus 0-17 --allow-remote")}, cores_per_node=9)
    assert results["wide"].status == 0, results["wide"]
    assert "18 threads" in results["wide"].stderr
    assert results["wide"].stdout == texts[1]
