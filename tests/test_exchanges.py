"""The C runtime under random exchanges, with sanitizers; and each condition of the protocol taken out once, which must be seen."""

import shutil
from pathlib import Path

import pytest
from support.commands import TESTS, run

NATIVE = TESTS.parent / "native"
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pthread"]
HANG = 10  # seconds until a hang of a broken build ends

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")


def build(folder, *options, change=None, name="exchanges"):
    """A stress program; change: (file, old, new) in a copy of the runtime's sources, where old must stand exactly once."""
    sources = folder / "native"
    shutil.copytree(NATIVE, sources, dirs_exist_ok=True)
    if change:
        file, old, new = change
        text = (sources / file).read_text()
        assert text.count(old) == 1, f"{file} holds {text.count(old)} of: {old}"
        (sources / file).write_text(text.replace(old, new))
    program = folder / name
    files = [TESTS / "native" / f"{name}.c", *sorted(sources.glob("*.c"))]
    result = run("gcc", *FLAGS, *options, f"-I{sources}", "-o", program, *files)
    if "sanitize" in str(options) and "cannot find" in result.stderr:
        pytest.skip("gcc has no sanitizer runtime here")
    assert result.returncode == 0, result.stderr
    return program


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("plain"), "-O2")


def test_a_million_exchanges(plain):
    result = run(plain, "processes", "1,1", 1_000_000, 0)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("threads", ["2,1,3", "2,3", "4,4"])
def test_more_threads_than_cores(plain, threads):
    result = run(plain, "processes", threads, 10_000, 1)
    assert result.returncode == 0, result.stderr


def test_two_level_barrier(plain):
    result = run(plain, "processes", "20,18", 600, 1)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("threads", ["1,1", "2,3"])
def test_thread_sanitizer(tmp_path, threads):
    program = build(tmp_path, "-O1", "-g", "-fsanitize=thread", "-DNUMATP_AWAKE_NS=200000")
    result = run("setarch", "-R", program, "threads", threads, 6_000, 1)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "WARNING: ThreadSanitizer" not in result.stderr


def test_address_sanitizer(tmp_path):
    program = build(tmp_path, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DNUMATP_AWAKE_NS=200000")
    result = run(program, "processes", "2,1,3", 6_000, 1)
    assert result.returncode == 0, result.stderr[-3000:]


def test_a_killed_rank_is_named(plain):
    result = run(plain, "processes", "1,1", 60_000, 0, "kill", timeout=30)
    assert result.returncode == 0, result.stderr
    assert "rank 1 (process" in result.stderr


def test_an_abort_ends_all_ranks(plain):
    result = run(plain, "processes", "2,3", 60_000, 1, "abort", timeout=30)
    assert result.returncode == 0, result.stderr
    assert "rank 1 has had enough" in result.stderr


def test_without_the_barrier_before_the_sync(plain):
    assert run(plain, "processes", "2,3", 10_000, 1, "nobarrier").returncode != 0


def test_with_one_buffer_instead_of_two(plain):
    assert run(plain, "processes", "1,1", 300_000, 0, "onebuffer").returncode != 0


def test_lanes_alone(plain):
    result = run(plain, "processes", "2,3", 60_000, 1, "lanes")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("fault", ["skipempty", "onesync", "nolanebarrier"])
def test_a_broken_use_is_seen(tmp_path, fault):
    program = build(tmp_path, "-O2", f"-DSECONDS={HANG}")
    assert run(program, "processes", "2,3", 200_000, 1, fault, timeout=60).returncode != 0


BROKEN = {
    "wait for exactly the number": (
        ("internal.h", "while (atomic_load_explicit(word, memory_order_acquire) < value)", "while (atomic_load(word) != value)"),
        ("processes", "1,1", 1_000_000, 0),
    ),
    "done before the last thread": (
        ("runtime.c", "    return pass_barrier(team, thread);\n}\n\nstatic void *work", "    return true;\n}\n\nstatic void *work"),
        ("processes", "2,3", 250_000, 1),  # a race that 60,000 do not lose in one of ten runs
    ),
    "sleepers are not woken": (
        ("wait.c", "if (atomic_load_explicit(&gate->asleep, memory_order_seq_cst))", "if (0)"),
        ("processes", "2,2", 60_000, 1),
    ),
    "nobody looks for dead ranks": (
        ("wait.c", "patience->dead = numatp_dead_peer(ranks);", "patience->dead = 0;"),
        ("processes", "1,1", 60_000, 0, "kill"),
    ),
    "ranks do not look for an abort": (
        ("wait.c", "    if (numatp_aborted(ranks))\n        return false;\n    if (watch", "    if (watch"),
        ("processes", "1,1", 60_000, 1, "abort"),
    ),
    "threads do not look for an abort": (
        ("runtime.c", "generation + 1, NUMATP_WATCH_ABORT)", "generation + 1, NUMATP_WATCH_NOTHING)"),
        ("processes", "2,3", 60_000, 1, "abort"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_runtime_is_seen(tmp_path, name):
    change, arguments = BROKEN[name]
    program = build(tmp_path, "-O2", f"-DSECONDS={HANG}", "-DNUMATP_AWAKE_NS=200000", change=change)
    assert run(program, *arguments, timeout=60).returncode != 0


def test_a_relaxed_publish_is_seen_by_the_thread_sanitizer(tmp_path):
    change = ("lanes.c", "number, memory_order_release", "number, memory_order_relaxed")
    program = build(tmp_path, "-O1", "-g", "-fsanitize=thread", f"-DSECONDS={HANG}", change=change)
    result = run("setarch", "-R", program, "threads", "1,1", 600, 1)
    assert "data race" in result.stderr or result.returncode != 0


# ---------------------------------------------------------------- falling asleep and being woken

RAISE = "        atomic_store_explicit(&gate->asleep, 1, memory_order_seq_cst);\n"
LOOK = "        if (atomic_load_explicit(&gate->sequence, memory_order_seq_cst) >= sequence)\n            return true;\n"
OPEN = "atomic_store_explicit(&gate->sequence, sequence, memory_order_seq_cst);"
ASLEEP = "atomic_load_explicit(&gate->asleep, memory_order_seq_cst)"
LOST = {
    "the sleeper looks before it says that it sleeps": (RAISE + LOOK, LOOK + RAISE),
    "the opener looks for sleepers before it opens": (
        f"    {OPEN}\n    NUMATP_TEST_DELAY();\n    if ({ASLEEP})",
        f"    uint32_t asleep = {ASLEEP};\n    {OPEN}\n    if (asleep)",
    ),
    "the sleeper's word can be overtaken": (RAISE, RAISE.replace("seq_cst", "relaxed")),
    "the opener's word can be overtaken": (OPEN, OPEN.replace("seq_cst", "release")),
}


def test_nobody_is_left_asleep(tmp_path):
    program = build(tmp_path, "-O2", "-DNUMATP_AWAKE_NS=0", name="gates")
    assert run(program, 2_000_000).returncode == 0


@pytest.mark.parametrize("fault", LOST)
def test_a_lost_wake_up_is_seen(tmp_path, fault):
    program = build(tmp_path, "-O2", "-DNUMATP_AWAKE_NS=0", f"-DSECONDS={HANG}", change=("wait.c", *LOST[fault]), name="gates")
    assert run(program, 2_000_000).returncode != 0
