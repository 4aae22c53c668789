"""The command as users start it: real model, real mpirun; bad input in one line, and faults that must not hang."""

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.commands import BIN, mpirun, numatp, run
from support.models import tiny
from support.shared_memory import nothing_left, shared_files
from support.warm import numatp as warm_numatp

PROMPT = ("-p", "The capital of France is", "-n", "8", "--temp", "0")
NOT_MPIRUN = re.compile(r"^(numatp: .*)$", re.M)  # mpirun adds lines of its own when a rank fails


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_paris_with_local_ranks(model_path, ranks):
    result = numatp("generate", "-m", model_path, *PROMPT, "--ranks", ranks)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(" Paris")
    assert f"{ranks} rank" in result.stderr
    assert result.stderr.count("100.0 % on node") == ranks
    assert "tok/s" in result.stderr


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_paris_under_mpirun(words_path, ranks):
    before = shared_files()
    result = mpirun(ranks, "--oversubscribe", BIN / "numatp", "generate", "-m", words_path, *PROMPT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(" Paris")
    assert result.stdout.count("Paris") == 1
    assert f"{ranks} rank" in result.stderr
    nothing_left(before)


def bad_models(folder, model_path):
    truncated = folder / "truncated.gguf"
    truncated.write_bytes(Path(model_path).read_bytes()[:50_000_000])
    (folder / "text.gguf").write_text("not a model")
    tiny.write(folder / "falcon.gguf", architecture="falcon")
    tiny.write(folder / "q1.gguf", matrix_type="Q1_0", sizes=tiny.SUPER_SIZES)
    tiny.write(folder / "missing.gguf", leave_out=("blk.1.attn_k",))
    return {
        "truncated.gguf": r"truncated",
        "text.gguf": r"not a GGUF file",
        "falcon.gguf": r"architecture 'falcon' is not supported; supported: .*llama",
        "q1.gguf": r"tensor '.*' has type Q1_0, which numatp cannot compute with; supported: .*Q4_1",
        "missing.gguf": r"tensor 'blk.1.attn_k.weight' is missing",
        "absent.gguf": r"no such file",
    }


def test_bad_models_in_one_line_on_every_rank(tmp_path, model_path):
    before = shared_files()
    for name, line in bad_models(tmp_path, model_path).items():
        arguments = ("generate", "-m", tmp_path / name, *PROMPT)
        results = [warm_numatp(*arguments), warm_numatp(*arguments, "--ranks", 2)]
        if name in ("text.gguf", "missing.gguf"):  # seen in the header, and by what is in it
            results.append(mpirun(2, BIN / "numatp", *arguments))
        for result in results:
            ours = [text for text in NOT_MPIRUN.findall(result.stderr) if " rank" not in text[:17]]
            assert len(ours) == 1, result.stderr
            assert re.search(line, ours[0])
            assert "Traceback" not in result.stderr
            assert result.returncode == 2
            assert result.stdout == ""
    nothing_left(before)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "COMMAND"),
        (("generate",), "-m/--model"),
        (("generate", "-m", "nothing", "-p", "x"), "no such file, and no model of that name; known names: smollm2"),
        (("generate", "-m", "MODEL", "-p", ""), "prompt is empty"),
        (("generate", "-m", "MODEL", "-p", "x", "-n", "-3"), "not a whole number"),
        (("generate", "-m", "MODEL", "-p", "x", "-c", "9000"), "trained for 1 to 8192"),
        (("generate", "-m", "MODEL", "-p", "one two three four five six", "-c", "3"), "larger -c"),
        (("generate", "-m", "MODEL", "-p", "x", "--cpus", "4096"), "may not use"),
        (("pull", "nothing"), "known names: smollm2"),
    ],
)
def test_bad_arguments_in_one_line(model_path, arguments, line):
    result = warm_numatp(*(str(model_path) if a == "MODEL" else a for a in arguments))
    assert result.returncode == 2
    assert line in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("ranks", [1, 2])
def test_too_little_memory_is_seen_before_loading(tmp_path, ranks):
    tiny.write_huge(tmp_path / "huge.gguf")
    result = warm_numatp("generate", "-m", tmp_path / "huge.gguf", *PROMPT, "--ranks", ranks, timeout=60)
    assert result.returncode == 1
    line = result.stderr.splitlines()[-1]
    assert re.search(r"numatp: node 0 has [\d.]+ GB free and its ranks \[.*\] would need [\d.]+ GB there", line), result.stderr
    assert "Traceback" not in result.stderr


def shell(line, model):
    return run("sh", "-c", line, env={"NUMATP": f"{BIN / 'numatp'} generate -m {model} --ranks 2 --temp 0"})


PARIS = "$NUMATP -p 'The capital of France is'"


@pytest.mark.parametrize(
    ("line", "status", "out", "error"),
    [
        ("$NUMATP -f - <&-", 2, "", "the prompt is empty"),
        ("$NUMATP -f - </dev/null", 2, "", "the prompt is empty"),
        ("printf 'a\\377' | $NUMATP -f -", 2, "", "cannot read -: not UTF-8 text"),
        (f"{PARIS} -n 2 <&-", 0, " Paris.\n", "tok/s"),
        (f"{PARIS} -n 2 2>&-", 0, " Paris.\n", ""),
        (f"{PARIS} -n 2 >&-", 0, "", "tok/s"),
        (f"{PARIS} -n 99 >/dev/full", 1, "", "No space left on device: make room for the output"),
        (f"{PARIS} -n 999 --ignore-eos | head -c 6", 0, " Paris", "numatp: "),
        (f"{PARIS} -n -1 -c 20 --ignore-eos | sed -n 1p", 0, " Paris.\n", "the context of 20 tokens is full"),
        (f"PYTHONIOENCODING=ascii {PARIS} -n 8 | tr -dc '?' | cut -c1", 0, "?\n", "tok/s"),
    ],
)
def test_streams_that_are_closed_full_or_strange(words_path, line, status, out, error):
    result = shell(line, words_path)
    assert (result.returncode, result.stdout) == (status, out), result.stderr
    assert error in result.stderr and "Traceback" not in result.stderr


class Terminal:
    """A command at a terminal of its own."""

    def __init__(self, *command):
        spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
        words = [sys.executable, "-c", spawn, *map(str, command)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True, bufsize=0)

    def wait_for(self, text, seconds=60):
        """What comes until `text` has come."""
        seen, end = "", time.monotonic() + seconds
        while text not in seen:
            ready, _, _ = select.select([self.process.stdout], [], [], max(end - time.monotonic(), 0))
            piece = self.process.stdout.read(1000).decode(errors="replace") if ready else ""
            assert piece, f"{text!r} did not come after {seen!r}"
            seen += piece
        return seen

    def type(self, text):
        self.process.stdin.write(text.encode())


def test_chat_at_a_terminal(model_path):
    terminal = Terminal(BIN / "numatp", "chat", "-m", model_path, "--ranks", 2, "--temp", 0, "-n", 2000, "--ignore-eos")
    try:
        assert "Ctrl-C ends an answer" in terminal.wait_for("\n> ")
        terminal.type("Tell me a story.\n")
        terminal.wait_for("story.\r\n")  # the echo
        terminal.wait_for(" ")  # of the answer
        terminal.type("\x03")
        assert "tok/s" not in terminal.wait_for("\n> ")
        terminal.type("\x04")
        assert terminal.process.wait(60) == 0
    finally:
        if terminal.process.poll() is None:
            os.killpg(terminal.process.pid, signal.SIGKILL)
        terminal.process.communicate()


def test_version():
    result = numatp("--version")
    assert (result.returncode, result.stdout) == (0, "numatp 0.1.0\n")


LONG = ("-p", "Once upon a time", "-n", 60000, "-c", 65536, "--ignore-eos", "--temp", 0)  # half a minute and more


def start_long_run(model, launcher=(), options=("--ranks", 2)):
    command = [*launcher, BIN / "numatp", "generate", "-m", model, *LONG, *options]
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout and process.stdout.read(20)  # it is generating
    return process


def descendants(pid):
    """(pid, command line) of all processes below pid."""
    found, parents = [], {pid}
    table = subprocess.run(["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [line.split(None, 2) for line in table.splitlines()]
    while new := [row for row in rows if int(row[1]) in parents and row not in found]:
        found += new
        parents |= {int(row[0]) for row in new}
    return [(int(row[0]), row[2]) for row in found]


def finish(process, seconds=15):
    """(standard error, exit status), after making sure that nothing hangs."""
    try:
        error = process.communicate(timeout=seconds)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    return error, process.returncode


def gone(pids, seconds=5):
    end = time.monotonic() + seconds
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def test_killed_local_rank_is_named(words_path):
    process = start_long_run(words_path)
    worker = next(pid for pid, command in descendants(process.pid) if "numatp.engine.worker" in command)
    os.kill(worker, signal.SIGKILL)
    error, status = finish(process)
    assert status == 1
    assert f"rank 1 (process {worker}) died" in error
    assert "Traceback" not in error


def test_killed_rank_0_takes_the_others_along(words_path):
    process = start_long_run(words_path)
    workers = [pid for pid, _ in descendants(process.pid)]
    assert workers
    process.kill()
    finish(process)
    assert gone(workers)


def test_killed_mpi_rank_ends_the_job(words_path):
    before = shared_files()
    process = start_long_run(words_path, (BIN / "mpirun", "-np", "2"), ())
    ranks = [pid for pid, command in descendants(process.pid) if "numatp" in command]
    os.kill(ranks[-1], signal.SIGKILL)
    _, status = finish(process)
    assert status != 0
    assert gone(ranks)
    nothing_left(before)


def test_ctrl_c(words_path):
    process = start_long_run(words_path)
    workers = [pid for pid, _ in descendants(process.pid)]
    process.send_signal(signal.SIGINT)
    error, status = finish(process)
    assert status == 130
    assert "Traceback" not in error
    assert gone(workers)
