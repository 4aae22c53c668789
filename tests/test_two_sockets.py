"""numatp on an emulated machine with two sockets: each rank on its own node, every weight page there, the same text as outside."""

import json
import re
import sys

import emulated_machine
import pytest
import tiny
from conftest import BIN, TESTS, run

WORDS = json.loads((TESTS / "data/words_tokens.json").read_text())
SIZES = tiny.SIZES | {"width": 512, "heads": 9, "kv_heads": 3, "head_size": 64, "ffn": 1600, "vocab": len(WORDS["bpe"]["tokens"])}
GENERATE = "generate -m {model} -p 'The quick brown fox' -n 24 --temp 0 --ignore-eos"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Some MB of random weights per rank."""
    if reason := emulated_machine.missing():
        pytest.skip(f"no emulated machine: {reason}")
    path = tmp_path_factory.mktemp("numa") / "model.gguf"
    tiny.write(path, "Q8_0", sizes=SIZES, vocabulary=(WORDS, "smollm"))
    return path


def numatp(options, model, before=""):
    """Kernels are compiled outside, for what the emulated CPUs have."""
    return f"NUMATP_ISA=avx2 {before} {BIN / 'numatp'} {GENERATE.format(model=model)} {options}".strip()


@pytest.fixture(scope="module")
def texts(model):
    """What one rank and two generate outside."""
    found = {ranks: run("sh", "-c", numatp(f"--ranks {ranks} -t 1", model)) for ranks in (1, 2)}
    assert all(result.returncode == 0 and len(result.stdout) > 24 for result in found.values()), found
    return {ranks: result.stdout for ranks, result in found.items()}


def local(result, rank, node):
    """Per cent of a rank's weight pages that the kernel says are on that node."""
    found = re.search(rf"rank {rank}: ([\d.]+) % on node {node}", result.stderr)
    assert found, result.stderr
    return float(found[1])


def test_two_nodes(model, texts):
    mpirun, elsewhere = f"{BIN / 'mpirun'} -np 2", f"{sys.executable} {TESTS / 'policy.py'} bind 1"
    results = emulated_machine.run(
        {
            "bare": numatp("", model, mpirun),
            "socket": numatp("", model, f"{mpirun} --bind-to socket"),
            "plain": numatp("", model),
            "remote": numatp("--ranks 1 --nodes 0", model, elsewhere),
            "hidden": f"mkdir /sys/fs/cgroup/a && echo +cpuset > /sys/fs/cgroup/cgroup.subtree_control && cd /sys/fs/cgroup/a && "
            f"echo 0-1 > cpuset.cpus && echo 0 > cpuset.mems && echo $$ > cgroup.procs && cd - >/dev/null && {numatp('', model)}",
        }
    )
    for way in ("bare", "socket", "plain"):
        result = results[way]
        assert result.status == 0, result
        assert "rank 0 on node 0 (cpus 0-1), rank 1 on node 1 (cpus 2-3); 2 threads each" in result.stderr
        assert local(result, 0, 0) >= 99 and local(result, 1, 1) >= 99
        assert result.stdout == texts[2]
    remote = results["remote"]
    assert (remote.status, remote.stdout) == (1, "")
    assert "only 0.0 % of rank 0's weights are on its node 0, where the memory policy bind:1 from outside put them" in remote.stderr
    assert results["hidden"].status == 0, results["hidden"]
    assert "1 rank" in results["hidden"].stderr and "node 1" not in results["hidden"].stderr
    assert results["hidden"].stdout == texts[1]


def test_many_cores(model, texts):
    """More than 16 threads of one rank meet in two levels, one group per L3 cache."""
    results = emulated_machine.run({"wide": numatp("--ranks 1 --cpus 0-17 --allow-remote", model)}, cores_per_node=9)
    assert results["wide"].status == 0, results["wide"]
    assert "18 threads" in results["wide"].stderr
    assert results["wide"].stdout == texts[1]
