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
PROMPT = "The quick brown fox"
TOKENS = f"-p '{PROMPT}' --temp 0 --ignore-eos -t 1"
MPIRUN = BIN / "mpirun"
REFUSED = f"{sys.executable} {TESTS / 'refuse.py'} set_mempolicy,mbind,get_mempolicy,move_pages"
# Runs the rest of its line in a control group that has cpus 0 and 1 and the memory of node 0 only.
HIDE_NODE_1 = (
    "mkdir /sys/fs/cgroup/a && echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control && cd /sys/fs/cgroup/a && "
    "echo 0-1 > cpuset.cpus && echo 0 > cpuset.mems && echo $$ > cgroup.procs && cd - >/dev/null && "
)
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


def generate(folder, options="", before="", tokens=8):
    return numatp("generate", folder / "model.gguf", f"{TOKENS} -n {tokens} {options}", before)


@pytest.fixture(scope="module")
def texts(folder):
    """What one, two and four ranks generate outside."""
    found = {ranks: run("sh", "-c", generate(folder, f"--ranks {ranks}")) for ranks in (1, 2, 4)}
    assert all(result.returncode == 0 and len(result.stdout) > 8 for result in found.values()), found
    return {ranks: result.stdout for ranks, result in found.items()}


def killed(command, victim):
    """Kills a rank while tokens are under way. What is said then: which it was, and which processes and shared files are left."""
    return (
        f"{command} >/tmp/out 2>/tmp/err & job=$!; until grep -q 'pages after load' /tmp/err; do sleep 0.1; done; "
        f"victim=$({victim}); kill -9 $victim; wait $job; status=$?; cat /tmp/err >&2; echo victim $victim; "
        "echo left $(pgrep -x numatp) $(ls /dev/shm); exit $status"
    )


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
    """What starts together saves a start, which takes most of a minute."""
    model = folder / "model.gguf"
    results = emulated_machine.run(
        {
            "refused": generate(folder, "--audit", f"{REFUSED} {MPIRUN} -np 2"),
            "killed": killed(generate(folder, "--audit", f"{MPIRUN} -np 2 --bind-to socket", tokens=8000), RANK_1),
            "script": f"NUMATP_ISA=avx2 {sys.executable} {TESTS / 'run_two_sockets.py'} {model} '{PROMPT}'; "
            "status=$?; pgrep -f '[e]ngine.worker' && exit 9; exit $status",
            "forced": numatp("audit", model, "-n 2 -o json -t 1", "numactl --membind=0"),
            "hidden": HIDE_NODE_1 + generate(folder, "--audit"),
            "full": numatp("generate", folder / "wide.gguf", "-p x -ts 5,1"),
        }
    )
    # Bare mpirun binds both ranks to socket 0, and the kernel refuses memory policies: first touch on cpus of our own choice.
    for way in ("refused", "killed"):
        assert "rank 0 on node 0 (cpus 0), rank 1 on node 1 (cpus 2); 1 thread each" in results[way].stderr, results[way]
    assert_local(results["refused"], [0, 1])
    assert results["refused"].stdout == texts[2]
    assert "the kernel refuses memory policies here" in results["refused"].stderr

    killed_rank = results["killed"]
    assert killed_rank.status and local(killed_rank)[1, 1] >= 99, killed_rank
    victim = re.search(r"^victim (\d+)\nleft$", killed_rank.stdout, re.MULTILINE)
    # Rank 0 or mpirun says it, whoever is faster.
    assert victim and re.search(rf"rank 1 (\(process|with PID) {victim[1]}\b", killed_rank.stderr), killed_rank

    assert results["script"].status == 0, results["script"]
    said = json.loads(results["script"].stdout)
    assert said["text"] + "\n" == texts[2]
    for when in ("loaded", "used"):
        assert [node for node, *_ in said[when]] == [0, 1] and min(share for _, *shares in said[when] for share in shares) >= 99
    (_, first, _), (_, second, alone) = said["moved"]
    assert first >= 99 and second < 50 and alone <= 1
    assert "rank 1 (process PID) " in said["killed"]

    forced = results["forced"]
    assert forced.status == 3, forced
    assert "the memory policy bind:0 was set from outside (numactl?) and is kept" in forced.stderr
    found = json.loads(forced.stdout)
    assert not found["passed"] and [rank["node"] for rank in found["ranks"]] == [0, 1]
    for when in ("after_load", "ranks"):
        assert found[when][0]["percent_local"] >= 99 and found[when][1]["percent_local"] <= 1

    assert_local(results["hidden"], [0])
    assert "1 rank" in results["hidden"].stderr and "node 1" not in results["hidden"].stderr
    assert results["hidden"].stdout == texts[1]

    assert results["full"].status == 1, results["full"]
    room = re.search(r"node 0 has ([\d.]+) GB free and its ranks \[0\] would need ([\d.]+) GB there", results["full"].stderr)
    assert room and float(room[1]) < 2.2 < float(room[2]) < 3.2, results["full"]


def test_sub_numa_nodes_and_memory_alone(folder, texts):
    """Two nodes in each socket, and one that is memory only: four ranks, none on the fifth node."""
    shape = {"nodes_per_socket": 2, "cores_per_node": 1, "mib_per_node": 1024, "memory_only": 1}
    results = emulated_machine.run({"plain": generate(folder, "--audit")}, **shape)
    assert_local(results["plain"], [0, 1, 2, 3])
    assert results["plain"].stdout == texts[4]


def test_many_cores(folder, texts):
    """More than 16 threads of one rank meet in two levels, one group per L3 cache."""
    results = emulated_machine.run({"wide": generate(folder, "--ranks 1 --cpus 0-17 -t 18 --allow-remote")}, cores_per_node=9)
    assert results["wide"].status == 0, results["wide"]
    assert "18 threads" in results["wide"].stderr
    assert results["wide"].stdout == texts[1]
