"""The C runtime under random exchanges, with sanitizers; and each condition of the protocol taken out once, which must be seen."""

import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from support.commands import TESTS, run

NATIVE = TESTS.parent / "native"
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-pthread"]
HANG = "-DSET_ALARM()=ualarm(500000, 0)"  # half a second in which a broken build makes no Step counts as a hang
PATIENCE = 120  # seconds of a broken build's runs, one after another: some faults are races, which are not lost in every run

pytestmark = [pytest.mark.alone, pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")]


def compile_objects(folder, sources, options):
    """{name of a C file: its object file}."""
    sources = [*sources]
    objects = {source.stem: folder / f"{source.stem}.o" for source in sources}
    with ThreadPoolExecutor(2) as beside:
        compiled = [
            beside.submit(run, "gcc", *FLAGS, *options, f"-I{NATIVE}", "-c", "-o", objects[source.stem], source)
            for source in sources
        ]
    for one in compiled:
        assert one.result().returncode == 0, one.result().stderr
    return objects


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds a stress program with the options of gcc; what does not change is compiled once per options.

    change: (file, old, new) in a copy of the runtime's sources, where old must stand exactly once.
    """
    made, lock = {}, threading.Lock()

    def unchanged(options):
        with lock:
            if options not in made:
                folder = tmp_path_factory.mktemp("objects")
                made[options] = compile_objects(folder, [*NATIVE.glob("*.c"), *(TESTS / "native").glob("[eghs]*.c")], options)
            return made[options]

    def build(*options, change=None, name="exchanges"):
        objects = unchanged(options)
        with lock:  # pytest's folders are not made for several threads
            folder = tmp_path_factory.mktemp("build")
        native = {source.stem: objects[source.stem] for source in NATIVE.glob("*.c")}
        if change:
            sources = shutil.copytree(NATIVE, folder / "native")
            file, old, new = change
            text = (sources / file).read_text()
            assert text.count(old) == 1, f"{file} holds {text.count(old)} of: {old}"
            (sources / file).write_text(text.replace(old, new))
            changed = [sources / file] if file.endswith(".c") else sources.glob("*.c")  # they include a header beside them first
            native |= compile_objects(folder, changed, options)
        program = folder / name
        result = run("gcc", *FLAGS, *options, "-o", program, objects[name], *native.values())
        if "sanitize" in str(options) and "cannot find" in result.stderr:
            pytest.skip("gcc has no sanitizer runtime here")
        assert result.returncode == 0, result.stderr
        return program

    return build


@pytest.fixture(scope="module")
def plain(build):
    return build("-O2")


def test_a_million_exchanges(plain):
    result = run(plain, "processes", "1,1", 1_000_000, 0, timeout=1200)  # on cores that others use too ranks wait for their turn
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("threads", ["2,1,3", "2,3", "4,4"])
def test_more_threads_than_cores(plain, threads):
    result = run(plain, "processes", threads, 10_000, 1)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("threads", ["9,8", "20,18", "64,13"])
def test_barriers_of_several_levels(plain, threads):
    result = run(plain, "processes", threads, 600, 1)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(("threads", "exchanges"), [("1,1", 6_000), ("2,3", 6_000), ("13,1", 300)])
def test_thread_sanitizer(build, threads, exchanges):
    program = build("-O1", "-g", "-fsanitize=thread", "-DNUMATP_AWAKE_NS=200000")
    result = run("setarch", "-R", program, "threads", threads, exchanges, 1)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "WARNING: ThreadSanitizer" not in result.stderr


def test_address_sanitizer(build):
    program = build("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-DNUMATP_AWAKE_NS=200000")
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


def test_lanes_alone(plain):
    result = run(plain, "processes", "2,3", 60_000, 1, "lanes")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("threads", [2, 9])
def test_sums_are_handed_on(build, threads):
    assert run(build("-O2", name="handing"), threads, 10_000).returncode == 0


def test_handing_on_under_the_thread_sanitizer(build):
    options = ("-O1", "-g", "-fsanitize=thread", "-DNUMATP_AWAKE_NS=200000")
    result = run("setarch", "-R", build(*options, name="handing"), 3, 1_000)
    assert result.returncode == 0 and "WARNING: ThreadSanitizer" not in result.stderr, result.stderr[-3000:]
    change = ("runtime.c", "memory_order_relaxed) + 1, memory_order_release", "memory_order_relaxed) + 1, memory_order_relaxed")
    broken = build(*options, change=change, name="handing")
    assert "data race" in run("setarch", "-R", broken, 3, 1_000).stderr


# A use of the runtime, or a change in it: what the stress program is called with.
USES = {
    "no barrier before the sync": ("processes", "2,3", 10_000, 1, "nobarrier"),
    "one buffer instead of two": ("processes", "1,1", 300_000, 0, "onebuffer"),
    "an empty lane does not publish": ("processes", "2,3", 200_000, 1, "skipempty"),
    "one sync in the long form": ("processes", "2,3", 200_000, 1, "onesync"),
    "no barrier between lanes' exchanges": ("processes", "2,3", 200_000, 1, "nolanebarrier"),
}
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
        ("processes", "1,1", 6_000, 0, "kill"),
    ),
    "ranks do not look for an abort": (
        ("wait.c", "    if (numatp_aborted(ranks))\n        return false;\n    if (watch", "    if (watch"),
        ("processes", "1,1", 6_000, 1, "abort"),
    ),
    "threads do not look for an abort": (
        ("runtime.c", "generation + 1, NUMATP_WATCH_ABORT)", "generation + 1, NUMATP_WATCH_NOTHING)"),
        ("processes", "2,3", 6_000, 1, "abort"),
    ),
}
SEVERAL = {
    "sums are taken before they have come": (
        ("crossing.c", "    numatp_land(hosts, ranks, &hosts->sums); /* the", "    numatp_look_out(hosts, &hosts->sums); /* the"),
        ("8", "1,1", 2, 2_000),
    ),
    "sums that travel beside are taken before they have come": (
        ("crossing.c", "        left = numatp_look_out(", "        left = 0 * numatp_look_out("),
        ("8", "1,1", 2, 2_000),
    ),
    "rows of the host before are read before they have come": (
        (
            "crossing.c",
            "    numatp_land(hosts, ranks, &hosts->sums);\n    else",
            "    numatp_look_out(hosts, &hosts->sums);\n    else",
        ),
        ("8", "1,1", 2, 2_000),
    ),
    "results are read before they have come": (
        ("runtime.c", " || (ranks->hosts && !numatp_hosts_collect(ranks))", ""),
        ("8", "1,2", 1, 2_000),
    ),
    "a host answers before its ranks have finished": (
        ("runtime.c", " || !wait_done(ranks, ranks->step) || !numatp_hosts_answer", " || !numatp_hosts_answer"),
        ("8", "1,3", 2, 2_000),
    ),
    "a Step begins before what it needs has come": (
        ("crossing.c", "receive, TAG_TOLD) && numatp_land(ranks->hosts, ranks, &ranks->hosts->step)", "receive, TAG_TOLD)"),
        ("8", "1,1", 1, 2_000),
    ),
    "an abort stays on its host": (
        ("hosts.c", "numatp_abort(hosts->job, hosts->told[other].text);", "{}"),
        ("8", "1,1", 1, 200, "abort"),
    ),
    "nobody minds silence": (
        ("hosts.c", "if (now - hosts->heard_at[other] > NUMATP_SILENCE_NS)", "if (0)"),
        ("8", "1,1", 1, 200, "silent"),
    ),
}


def test_a_relaxed_publish_is_seen_by_the_thread_sanitizer(build):
    change = ("lanes.c", "number, memory_order_release", "number, memory_order_relaxed")
    program = build("-O1", "-g", "-fsanitize=thread", HANG, change=change)
    result = run("setarch", "-R", program, "threads", "1,1", 600, 1)
    assert "data race" in result.stderr or result.returncode != 0


# ---------------------------------------------------------------- falling asleep and being woken

RAISE = "        atomic_store_explicit(&gate->asleep, 1, memory_order_seq_cst);\n"
LOOK = "        if (atomic_load_explicit(&gate->sequence, memory_order_seq_cst) >= sequence)\n            return true;\n"
OPEN = "atomic_store_explicit(&gate->sequence, sequence, memory_order_seq_cst);"
ASLEEP = "atomic_load_explicit(&gate->asleep, memory_order_seq_cst)"
SLOWLY = "for (volatile int turns = 0; turns < 200; turns++)\n        ;\n"  # so that the other one comes in between often
LOST = {
    "the sleeper looks before it says that it sleeps": (RAISE + LOOK, LOOK + SLOWLY + RAISE),
    "the opener looks for sleepers before it opens": (
        f"    {OPEN}\n    NUMATP_TEST_DELAY();\n    if ({ASLEEP})",
        f"    uint32_t asleep = {ASLEEP};\n    {SLOWLY}    {OPEN}\n    if (asleep)",
    ),
    "the sleeper's word can be overtaken": (RAISE, RAISE.replace("seq_cst", "relaxed")),
    "the opener's word can be overtaken": (OPEN, OPEN.replace("seq_cst", "release")),
}


def test_nobody_is_left_asleep(build):
    program = build("-O2", "-DNUMATP_AWAKE_NS=0", name="gates")
    assert run(program, 2_000_000).returncode == 0


# ---------------------------------------------------------------- several hosts, over an MPI made by the test

SHORT = "-DNUMATP_SILENCE_NS=3000000000"


@pytest.fixture(scope="module")
def several(build):
    return build("-O2", SHORT, name="several")


@pytest.mark.parametrize("hosts", [("8", "1,1", 1), ("4", "2,1", 2), ("8", "2,3,2", 2), ("4", "1,1,1", 3)])
def test_several_hosts(several, hosts):
    """Handles of 8 and of 4 bytes, and the seats of each host."""
    result = run(several, *hosts, 1000)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("fault, said", [("abort", "the last rank has had enough"), ("silent", "nothing has come from rank ")])
def test_an_end_reaches_all_hosts(several, fault, said):
    result = run(several, "8", "2,1,2", 2, 200, fault, timeout=60)
    assert result.returncode == 0, result.stderr
    assert said in result.stderr


@pytest.mark.parametrize("handles", ["4", "8"])
def test_thread_sanitizer_over_several_hosts(build, handles):
    program = build("-O1", "-g", "-fsanitize=thread", "-DNUMATP_AWAKE_NS=200000", name="several")
    result = run("setarch", "-R", program, handles, "2,1,1", 2, 300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert "WARNING: ThreadSanitizer" not in result.stderr


# ---------------------------------------------------------------- what must be seen

HANGS = ("-O2", HANG)
AWAKE = (*HANGS, "-DNUMATP_AWAKE_NS=200000")
FAULTS = {name: (HANGS, None, "exchanges", arguments) for name, arguments in USES.items()}
FAULTS |= {name: (AWAKE, change, "exchanges", arguments) for name, (change, arguments) in BROKEN.items()}
FAULTS |= {name: (HANGS, change, "several", arguments) for name, (change, arguments) in SEVERAL.items()}
FAULTS |= {name: ((*HANGS, "-DNUMATP_AWAKE_NS=0"), ("wait.c", *change), "gates", (2_000_000,)) for name, change in LOST.items()}


@pytest.fixture(scope="module")
def broken(request, build):
    """{fault: its program, soon}, of those that are asked for: compilers run side by side, races need the cores for themselves."""
    asked = {item.callspec.params["fault"] for item in request.session.items if "broken" in getattr(item, "fixturenames", ())}
    with ThreadPoolExecutor(2) as beside:
        programs = {}
        for fault in FAULTS:
            if fault in asked:
                options, change, name, _ = FAULTS[fault]
                programs[fault] = beside.submit(build, *options, change=change, name=name)
        wait(programs.values())
        yield programs


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_seen(broken, fault):
    """By a wrong result, or by the alarm that ends a program which makes no Step."""
    program, (*_, arguments) = broken[fault].result(), FAULTS[fault]
    end = time.monotonic() + PATIENCE
    while run(program, *arguments).returncode == 0:
        assert time.monotonic() < end, f"all runs of the broken runtime in {PATIENCE} s ended well"


# ---------------------------------------------------------------- its README


def test_the_readmes_commands(tmp_path):
    """As they stand, with fewer Steps, in a folder that holds the same folders."""
    for folder in (NATIVE, TESTS):
        (tmp_path / folder.name).symlink_to(folder)
    commands = re.findall(r"```sh elsewhere\n(.*?)```", (NATIVE / "README.md").read_text(), re.DOTALL)
    assert len(commands) == 1
    result = run("sh", "-ec", f"cd {tmp_path}\n{commands[0].replace('6000 1', '600 1')}")
    if "cannot find" in result.stderr:
        pytest.skip("gcc has no sanitizer runtime here")
    assert result.returncode == 0, result.stderr[-3000:]
    assert "WARNING: ThreadSanitizer" not in result.stderr


def test_the_readme_names_every_file():
    rows = re.findall(r"^\| `(\w+\.c)` \|", (NATIVE / "README.md").read_text(), re.MULTILINE)
    assert sorted(rows) == sorted(file.name for file in NATIVE.glob("*.c"))
