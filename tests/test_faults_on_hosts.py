"""What can happen to a job on several hosts: a rank, a host or a link that goes, other files, another numatp. All ranks of all
hosts end with a line that names rank and host, and leave nothing behind; the launcher may need longer where a host is silent.
"""

import json
import os
import re
import select
import subprocess
import time
from contextlib import contextmanager

import pytest
from support.commands import BIN, SCRIPTS
from support.hosts import cluster
from support.models.golden import GOLDEN
from support.server import Server

SECONDS = 60  # a hang, on a machine however slow

pytestmark = [pytest.mark.cores, pytest.mark.skipif(bool(cluster.reason()), reason=str(cluster.reason()))]

SILENT = r"numatp: nothing has come from rank 1 on host b for \d+ s: it, its host or the link to it is down"
STATUS = '"$@"; status=$?; echo $status >"$TMPDIR/status"; exit $status'  # of a rank, for us; $TMPDIR is the host's own
TOLD = "sh", "-c", STATUS, "sh"


@pytest.fixture
def hosts():
    with cluster.Cluster("a", "b") as made:
        yield made


def ranks_on(hosts, name):
    """Processes of ranks, as the host numbers them."""
    listed = hosts.run(name, "ps", "-ww", "-eo", "pid=,stat=,args=").stdout.splitlines()
    return [int(line.split()[0]) for line in listed if re.match(r"\s*\d+\s+[^Z]\S*\s+\S*python\S* (?:\S*/numatp|-P) ", line)]


def wait_for_the_end(hosts, names):
    """No rank is left there, and nothing in shared memory."""
    end = time.monotonic() + SECONDS
    while any(ranks_on(hosts, name) for name in names):
        assert time.monotonic() < end
        time.sleep(0.1)


def statuses(hosts, names):
    """Of ranks that were started with TOLD."""
    return [hosts.run(name, "sh", "-c", 'cat "$TMPDIR/status"').stdout.strip() for name in names]


def all_end_without_the_link(hosts, lines):
    """Of ranks that were started with TOLD."""
    hosts.link("b", "down")
    wait_for(SILENT, lines)
    wait_for_the_end(hosts, "ab")
    assert statuses(hosts, "ab") == ["1", "1"]


def kill_the_rank_on(hosts, name):
    (rank,) = ranks_on(hosts, name)
    assert not hosts.run(name, "kill", "-9", rank).returncode


def lines_of(file):
    """Until it ends, or nothing comes for too long."""
    rest = b""
    while select.select([file], [], [], SECONDS)[0] and (more := os.read(file.fileno(), 1 << 16)):
        *lines, rest = (rest + more).split(b"\n")
        yield from (line.decode(errors="replace").strip() for line in lines)


def wait_for(pattern, lines):
    """A line that begins so."""
    said = list[str]()
    for line in lines:
        said.append(line)
        if re.match(pattern, line):
            return
    raise AssertionError(said)


@contextmanager
def running(hosts, bin, *words, stdin=subprocess.DEVNULL):
    """One rank on each host; (the launcher's process, the lines on stderr)."""
    words = hosts.words("a", *hosts.mpirun(bin, 1, *words))
    process = subprocess.Popen(words, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process.stdout, process.stderr:  # not to their ends: a launcher's agent that waits for a silent host keeps them
        try:
            yield process, lines_of(process.stderr)
        finally:
            process.kill()
            process.wait()


@contextmanager
def generating(hosts, bin, model, *before, more=()):
    """A long run, in the middle of it. before: the command; more: options."""
    words = "generate", "-m", model, "-p", "Once upon a time", "-n", 60_000, "-c", 65_536, "--ignore-eos", *more
    with running(hosts, bin, *before, bin / "numatp", *words) as (process, lines):
        wait_for("numatp: weights", lines)
        assert process.stdout.read(30)  # it has begun
        yield process, lines


@pytest.mark.parametrize("more", [(), ("--pipeline",)], ids=["slices", "layers"])
def test_a_host_that_loses_its_power(hosts, words_path, more):
    with generating(hosts, BIN, words_path, *TOLD, more=more) as (_, lines):
        hosts.power_off("b")
        wait_for(SILENT, lines)
        wait_for_the_end(hosts, "a")
        assert statuses(hosts, "a") == ["1"]


def test_a_rank_that_is_killed_under_mpich(hosts, words_path, mpich):
    """Its launcher ends the others, and names host and process."""
    with generating(hosts, mpich, words_path) as (process, _):
        kill_the_rank_on(hosts, "b")
        said = "".join(process.communicate(timeout=SECONDS))
        assert process.returncode and re.search(r"PID \d+ RUNNING AT b\b", said), said[-2000:]
        wait_for_the_end(hosts, "ab")


def test_a_rank_that_is_killed_while_it_serves(hosts, words_path, tmp_path):
    launcher = hosts.words("a", *hosts.mpirun(BIN, 1))
    server = Server(words_path, "--no-auth", "--host", tmp_path / "numatp.sock", launcher=launcher)
    try:
        body = {"prompt": "The capital of France is", "max_tokens": 6, "temperature": 0}
        answer = server.ready().post("/v1/completions", body)
        assert answer.status_code == 200 and answer.json()["choices"][0]["text"].startswith(" Paris"), answer.text
        kill_the_rank_on(hosts, "b")
        assert server.wait() != 0
        assert re.search(r"numatp: rank 1 on host b |rank 1 with PID \d+ on node b ", server.said), server.said
        wait_for_the_end(hosts, "ab")
        assert not [file for name in "ab" for file in hosts.run(name, "ls", "/dev/shm").stdout.split()]
    finally:
        server.close()


def test_a_link_that_goes_down_while_a_server_has_nothing_to_do(hosts, words_path, tmp_path):
    words = *TOLD, BIN / "numatp", "serve", "-m", words_path, "--no-auth", "--host", tmp_path / "numatp.sock"
    with running(hosts, BIN, *words) as (_, lines):
        wait_for("numatp: .*: ready for", lines)
        all_end_without_the_link(hosts, lines)


def test_a_link_that_goes_down_while_a_conversation_waits_for_a_line(hosts, words_path):
    words = *TOLD, BIN / "numatp", "chat", "-m", words_path, "-n", 3
    with running(hosts, BIN, *words, stdin=subprocess.PIPE) as (process, lines):
        process.stdin.write("Hello\n")
        process.stdin.flush()
        assert process.stdout.read(1)  # of the answer
        all_end_without_the_link(hosts, lines)
        process.stdin.close()


# What the rank on host b reads takes forever.
SLOW = """
import os, sys, time
from numatp.weights.load import Weights
load = Weights.load
def slow(*arguments):
    if os.uname().nodename == "b":
        print("loading", file=sys.stderr, flush=True)
        time.sleep(1000)
    load(*arguments)
Weights.load = slow
from numatp.cli.main import main
main()
"""


def test_a_link_that_goes_down_while_they_load(hosts, mpich):
    """Also the rank that is busy with its own part ends."""
    words = *TOLD, mpich / "python", "-P", "-c", SLOW, "audit", "-m", GOLDEN / "llama.gguf", "--threads", 1
    with running(hosts, mpich, *words) as (_, lines):
        wait_for("loading", lines)
        all_end_without_the_link(hosts, lines)


def test_hosts_that_differ(hosts):
    """A file that is not there, one with other weights, and a numatp that is another one: each ends the command on all ranks."""
    content = (GOLDEN / "llama.gguf").read_bytes()
    last = str(len(content) - 1)
    missing, changed, same = (f"{hosts.folder}/own/tmp/{name}.gguf" for name in ("missing", "changed", "same"))
    for name, copies in (("a", (missing, changed, same)), ("b", (changed, same))):
        for copy in copies:
            assert not hosts.run(name, "cp", GOLDEN / "llama.gguf", copy).returncode
    harm = f"printf '\\{content[-1] ^ 1:03o}' | dd of={changed} bs=1 seek={last} conv=notrunc"
    assert not hosts.run("b", "sh", "-c", harm).returncode
    audit = ["audit", "--threads", "1", "-m"]
    commands = {"missing": [*audit, missing], "changed": [*audit, changed], "another": [*audit, same]}
    questions = json.dumps({"commands": commands, "another": "another"})
    result = hosts.run("a", *hosts.mpirun(BIN, 1, BIN / "python", SCRIPTS / "run_many.py", questions))
    assert {"rank 0: 2 2 1", "rank 1: 2 2 1"} <= set(result.stderr.splitlines()), result.stdout + result.stderr
    said = json.loads(result.stdout)
    for name, line in (
        ("missing", f"rank 1 on host b: '{missing}': no such file"),
        ("changed", "rank 1 on host b has another model than rank 0: copy the same files to each host"),
        ("another", "rank 1 on host b has other kernels than rank 0: start all ranks with the same numatp"),
    ):
        _, output, error = said[name]
        assert output == "" and "Traceback" not in error
        about_ranks = [one for one in error.splitlines() if one.startswith("numatp: rank ")]
        assert len(about_ranks) == 1 and about_ranks[0].startswith(f"numatp: {line}"), error
