"""numatp on emulated machines with two sockets: each rank on its own node with all its pages, the same text as outside, and what
must not pass unnoticed: memory forced elsewhere or moved away, slices that do not fit, refused system calls, killed ranks."""

import json
import re
import sys

import pytest
from support.commands import BIN, SCRIPTS, run
from support.machines import emulated_machine
from support.models import tiny
from support.models.vocabularies import WORDS

pytestmark = pytest.mark.emulated

SIZES = tiny.SIZES | {
    "width": 512, "heads": 9, "kv_heads": 3, "head_size": 64, "ffn": 1600, "context": 8192, "vocab": len(WORDS["bpe"]["tokens"]),
}  # fmt: skip
PROMPT = "fox"
TOKENS = f"-p '{PROMPT}' --temp 0 --ignore-eos -t 1"
MPIRUN = BIN / "mpirun"
REFUSED = f"{sys.executable} -IS {SCRIPTS / 'refuse.py'} set_mempolicy,mbind,get_mempolicy,move_pages"
# A control group that has cpus 0 and 1 and the memory of node 0 only.
GROUP = "/sys/fs/cgroup/a"
MAKE_GROUP = (
    f"mkdir {GROUP} && echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control && cd {GROUP} && "
    "echo 0-1 > cpuset.cpus && echo 0 > cpuset.mems"
)
ON_NODE_0 = ("bind", 0)  # as numactl --membind=0
# When it has begun, and its process, where mpirun has started `numatp audit` or `numatp generate`.
AFTER_RANK_1 = "until grep -q 'rank 1 on node 1' /tmp/err; do sleep 0.5; done"
RANK_1 = "for p in $(pgrep -f numatp); do grep -qz OMPI_COMM_WORLD_RANK=1 /proc/$p/environ && echo $p; done | tail -1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """model.gguf with some MB of random weights per rank, and wide.gguf, 3 GB of zeros."""
    if reason := emulated_machine.missing():
        pytest.skip(f"no emulated machine: {reason}")
    folder = tmp_path_factory.mktemp("numa")
    tiny.write(folder / "model.gguf", "Q8_0", sizes=SIZES, vocabulary=(WORDS, "smollm"))
    tiny.write_huge(folder / "wide.gguf", width=2048, ffn=8192, layers=15)
    return folder


# The one task of a batch step of srun.
SRUN = dict.fromkeys(("SLURM_STEP_ID", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID"), "0")
SRUN |= {"SLURM_JOB_ID": "7", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1"}


def numatp(command, model, options="", before="", bin=BIN):
    """Kernels are compiled outside, for what the emulated CPUs have."""
    return f"NUMATP_ISA=avx2 {before} {bin / 'numatp'} {command} -m {model} {options}".strip()


def forked(command, script="numatp.cli.main", **options):
    """numatp() in a fork."""
    return emulated_machine.forked(script, command, NUMATP_ISA="avx2", **options)


def generate(folder, options="", before="", tokens=8):
    return numatp("generate", folder / "model.gguf", f"{TOKENS} -n {tokens} {options}", before)


@pytest.fixture(scope="module")
def texts(folder):
    """What one, two and four ranks generate outside. All kernels are compiled then."""
    measured = f"NUMATP_ISA=avx2 {BIN / 'numatp'} bandwidth --size 1 -t 1 --no-keep"
    benched = numatp("bench", folder / "model.gguf", "--ranks 2 -t 1 -p 0 -n 1 -r 1 --roofline 0")
    assert run("sh", "-c", f"{measured} && {benched}", timeout=1200).returncode == 0
    found = {ranks: run("sh", "-c", generate(folder, f"--ranks {ranks}")) for ranks in (1, 2, 4)}
    assert all(result.returncode == 0 and len(result.stdout) > 8 for result in found.values()), found
    return {ranks: result.stdout for ranks, result in found.items()}


def killed(command, seen):
    """Kills rank 1 when more bytes than `seen` were written. Said then: which it was, and which processes and files are left.

    What waits here starts few processes, each of which the emulator would rather give to the ranks.
    """
    return (
        f"export LC_ALL=C; {command} >/tmp/out 2>/tmp/err & job=$!; {AFTER_RANK_1}; victim=$({RANK_1}); "
        f"until read -rd '' -N {seen + 1} text </tmp/out; do sleep 0.5; done; "
        "kill -9 $victim; wait $job; status=$?; cat /tmp/out; cat /tmp/err >&2; echo; echo victim $victim; "
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


def test_two_nodes(folder, texts, mpich):
    """What starts together saves a start, which takes most of a minute."""
    model = folder / "model.gguf"
    compared = "--compare one-node,interleave,tp -ts auto -p 0 -n 2 -r 1 -t 1 -o json --audit"
    results = emulated_machine.run(
        {
            "killed": killed(
                generate(folder, "--audit", f"{REFUSED} {MPIRUN} -np 2 --bind-to socket", tokens=800), len(texts[2].encode())
            ),
            "moved": forked(f"audit -m {model} -n 8 -o json -t 1 --ranks 2", "run_moved"),
            "forced": forked(f"audit -m {model} -n 2 -o json -t 1", policy=ON_NODE_0),
            "unbound": numatp("audit", model, "-n 2 -t 1", f"{REFUSED} {MPIRUN} -np 2 --bind-to none"),
            "mpiexec": numatp("audit", model, "-n 2 -t 1", f"{mpich / 'mpiexec'} -n 2 -bind-to core", mpich),
            "srun": forked(f"generate -m {model} {TOKENS} -n 8 --audit", **SRUN),
            "remote": forked(f"generate -m {model} {TOKENS} -n 8 --ranks 2", policy=ON_NODE_0),
            "group": MAKE_GROUP,
            "hidden": forked(f"generate -m {model} {TOKENS} -n 8 --audit", cgroup=GROUP),
            "full": forked(f"generate -m {folder / 'wide.gguf'} -p x -ts 5,1"),
            "full_where_bound": forked(f"generate -m {folder / 'wide.gguf'} -p x", policy=ON_NODE_0),
            # From here on the bandwidth of the nodes is known.
            "bandwidth": forked("bandwidth --size 2 -t 1 -o json", "run_bandwidth"),
            "plan": forked(f"plan -m {model} --ranks 2 -ts auto -o json"),
            "doctor": forked("doctor -o json"),
            "script": forked(f"{model} '{PROMPT}'", "run_two_sockets"),
            "left": "pgrep -cf '[s]erve.py'",
            "compared": forked(f"bench -m {model} {compared}", "run_compared"),
        }
    )
    # mpirun and mpiexec bind both ranks to socket 0, or to a core of it each.
    for way in ("killed", "moved", "forced"):
        assert "rank 0 on node 0 (cpus 0), rank 1 on node 1 (cpus 2); 1 thread each" in results[way].stderr, results[way]

    killed_rank = results["killed"]
    # The kernel refuses memory policies: first touch on cpus of our own choice has to do.
    assert "the kernel refuses memory policies here" in killed_rank.stderr
    shares = local(killed_rank)
    assert killed_rank.status and list(shares) == [(0, 0), (1, 1)] and min(shares.values()) >= 99, killed_rank
    assert killed_rank.stdout.startswith(texts[2].rstrip("\n")), killed_rank
    victim = re.search(r"^victim (\d+)\nleft$", killed_rank.stdout, re.MULTILINE)
    # Rank 0 or mpirun says it, whoever is faster.
    assert victim and re.search(rf"rank 1 (\(process|with PID) {victim[1]}\b", killed_rank.stderr), killed_rank

    forced, (first, second) = results["forced"], audits(results["forced"])
    assert "the memory policy bind:0 was set from outside (numactl?) and is kept" in forced.stderr
    for when in ("after_load", "ranks"):
        assert first[when] >= 99 and second[when] <= 1, forced

    remote = results["remote"]
    assert remote.status == 1 and not remote.stdout, remote
    assert "only 0.0 % of rank 1's weights are on its node 1, where the memory policy bind:0 from outside put them" in remote.stderr

    first, second = audits(results["moved"])  # the window is shared and stays, and new tokens have new pages in the cache
    assert min(first.values()) >= 99 and second["after_load"] >= 99 and second["ranks"] < 60, results["moved"]
    groups = json.loads(results["moved"].stdout)["ranks"][1]["groups"]
    weights = [group for name, group in groups.items() if name.endswith("weight")]
    assert sum(group["local"] for group in weights) <= 0.01 * sum(group["pages"] for group in weights), groups

    for way in ("unbound", "mpiexec", "srun"):
        assert_local(results[way], [0, 1])
        assert re.search(r"pages after load.*\n(.*\n)*.*pages after the work", results[way].stderr), results[way]
    assert "the kernel refuses memory policies here" in results["unbound"].stderr
    assert results["srun"].stdout == texts[2]

    assert_local(results["hidden"], [0])
    assert "1 rank" in results["hidden"].stderr and "node 1" not in results["hidden"].stderr
    assert results["hidden"].stdout == texts[1]

    assert_full(results["full"], [0], (2.2, 3.2))
    assert_full(results["full_where_bound"], [0, 1], (3.2, 4.2))  # each slice would fit its own node
    assert "the memory policy bind:0 was set from outside" in results["full_where_bound"].stderr

    assert_kept_bandwidth(*(results[name] for name in ("bandwidth", "plan", "doctor")))

    assert results["script"].status == 0, results["script"]
    assert results["left"].stdout == "1\n", "forks of serve.py, its rank's processes, are left"
    said = json.loads(results["script"].stdout)
    rates = ",".join(map(str, local_rates(results["bandwidth"])))
    assert said["text"] + "\n" == run("sh", "-c", generate(folder, f"--ranks 2 -ts {rates}")).stdout
    for when in ("loaded", "used"):
        assert [node for node, _ in said[when]] == [0, 1] and min(share for _, share in said[when]) >= 99
    assert "rank 1 (process PID) " in said["killed"]

    assert_compared(results["compared"])


def audits(result):
    """An audit that found something: of each of the two ranks, {"after_load" and "ranks": per cent on its own node}."""
    assert result.status == 3, result
    found = json.loads(result.stdout)
    assert not found["passed"] and [rank["node"] for rank in found["ranks"]] == [0, 1]
    return [{when: found[when][rank]["percent_local"] for when in ("after_load", "ranks")} for rank in (0, 1)]


def assert_full(result, ranks, between):
    """Refused before loading, with the numbers: what these ranks need on node 0, which has not even 2.2 GB."""
    assert result.status == 1, result
    room = re.search(r"node 0 has ([\d.]+) GB free and its ranks (\[.*\]) would need ([\d.]+) GB there", result.stderr)
    assert room and json.loads(room[2]) == ranks and float(room[1]) < 2.2, result
    assert between[0] < float(room[3]) < between[1], result


def local_rates(bandwidth):
    """GB/s of each node's own memory, as they are kept."""
    pairs = json.loads(bandwidth.stdout)["pairs"]
    return [round(pair["read_gbs"], 2) for pair in pairs if pair["threads_node"] == pair["memory_node"]]


def assert_kept_bandwidth(bandwidth, plan, doctor):
    """A complete matrix, each area on the node that it is said to be on; plan and doctor go by it afterwards."""
    found = json.loads(bandwidth.stdout)
    pairs = [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert [(pair["threads_node"], pair["memory_node"]) for pair in found["pairs"]] == pairs
    assert [(one["threads_node"], one["memory_node"]) for one in found["latency"]] == pairs
    assert [one["nodes"] for one in found["exchange"]] == [[0, 0], [0, 1], [1, 1]]
    assert found["notes"] == [] and min(pair["read_gbs"] for pair in found["pairs"]) > 0, bandwidth
    rates, planned = local_rates(bandwidth), json.loads(plan.stdout)
    assert planned["bandwidth_source"] == "measured here by numatp bandwidth"
    reads = [rank["read_bytes"] for rank in planned["ranks"]]
    assert reads[0] / sum(reads) == pytest.approx(rates[0] / sum(rates), abs=0.06)  # a KV head is a ninth of the heads
    (line,) = (one["what"] for one in json.loads(doctor.stdout)["findings"] if one["name"] == "roofline")
    said = re.fullmatch(r"node 0: ([\d.]+) GB/s, node 1: ([\d.]+) GB/s", line)
    assert said and [float(rate) for rate in said.groups()] == pytest.approx(rates, abs=0.06)  # of 0.01 and then of 0.1


def assert_compared(result):
    """Pages where each way should have them: all on one node, spread over both, each rank's on its own."""
    assert result.status == 0, result
    found = json.loads(result.stdout)
    there = ["one-node", "interleave", "tp"]
    assert [one["way"] for one in found["rounds"]] == [*there, *there[::-1]]  # a third round is test_bench.py's
    for one in found["rounds"]:
        places = [rank["by_node"] for rank in one["pages"]]
        shares = [[nodes.get(node, 0) / sum(nodes.values()) for node in ("0", "1")] for nodes in places]
        if one["way"] == "one-node":
            assert len(shares) == 1 and shares[0][0] >= 0.99, one
        elif one["way"] == "interleave":
            assert len(shares) == 1 and min(shares[0]) > 0.25, one
        else:
            assert len(shares) == 2 and shares[0][0] >= 0.99 and shares[1][1] >= 0.99, one
    assert found["gains"]["tg2"].startswith("tg2, warm: tp ")


@pytest.fixture(scope="module")
def many(folder):
    """What ran on a machine of 18 cores with two nodes in each socket, and one that is memory only."""
    commands = {
        "plain": forked(f"generate -m {folder / 'model.gguf'} {TOKENS} -n 8 --audit"),
        "wide": forked(f"generate -m {folder / 'model.gguf'} {WIDE} --cpus 0-17 -t 18 --allow-remote"),
    }
    return emulated_machine.run(commands, nodes_per_socket=2, cores_per_socket=9, mib_per_node=1024, memory_only=1)


def test_sub_numa_nodes_and_memory_alone(many, texts):
    """Four ranks, none on the fifth node."""
    assert_local(many["plain"], [0, 1, 2, 3])
    assert many["plain"].stdout == texts[4]


WIDE = "-p a --temp 0 --ignore-eos -n 3 --ranks 1"


def test_many_cores(folder, many):
    """More than 16 threads of one rank meet in two levels, one group per L3 cache. They spin, so a Step takes seconds."""
    outside = run("sh", "-c", numatp("generate", folder / "model.gguf", WIDE))
    assert many["wide"].status == 0, many["wide"]
    assert "18 threads" in many["wide"].stderr
    assert many["wide"].stdout == outside.stdout and len(outside.stdout) > 3
