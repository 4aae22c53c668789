"""Pulling from the Hugging Face hub: its own library against a small server of ours that speaks the hub's protocol."""

import hashlib
import json
import random
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.commands import run
from support.warm import numatp

from numatp.errors import UserError
from numatp.files import hub

CONTENT = random.Random(2).randbytes(3_000_000)
LARGE = random.Random(3).randbytes(20_000_000)
FILES = {
    "org/large": {"large.gguf": LARGE},
    "org/one": {"README.md": b"x", "one-Q4_K_M.gguf": CONTENT, "mmproj-one.gguf": b"y"},
    "org/many": {"m-Q4_K_M.gguf": CONTENT, "m-Q4_K_S.gguf": CONTENT[:9], "m-Q8_0.gguf": CONTENT[:99]},
    "org/split": {f"Q8/big-0000{part}-of-00003.gguf": CONTENT[part:] for part in (1, 2, 3)},
    "org/none": {"model.safetensors": b"x"},
    "org/folder": {
        "README.md": b"x",
        "config.json": b"{}",
        "model-00001-of-00002.safetensors": CONTENT,
        "tokenizer.json": b"{ }",
        "model-00002-of-00002.safetensors": CONTENT[1:],
        "model.safetensors.index.json": b"{}",
        "original/other.safetensors": b"x",
    },
    "org/damaged": {"d.gguf": CONTENT},
}


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked: list = []  # noqa: RUF012
    cuts: list = []  # noqa: RUF012 - after how many bytes the next answers end

    def log_message(self, *args):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in ({"Content-Length": len(body)} | headers).items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/"):
            repo = "/".join(path.split("/")[3:5])
            if repo == "org/gated":
                return self.answer(403, X_Error_Code="GatedRepo")
            if repo not in FILES:
                return self.answer(404, X_Error_Code="RepoNotFound")
            entries = []
            for name, data in FILES[repo].items():
                lfs = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
                entries.append({"type": "file", "path": name, "size": len(data), "oid": "0" * 40, "lfs": lfs})
            return self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
        if path.count("/") < 5:
            return self.answer(404)
        org, name, _, _, *rest = path.strip("/").split("/")
        data = FILES[f"{org}/{name}"]["/".join(rest)]
        tag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": "1" * 40}
        if name == "damaged":
            data = data[:-1] + b"?"
        start = int(self.headers.get("Range", "bytes=0-")[6:].partition("-")[0])
        if self.command == "GET":
            self.asked.append((path, start))
            if self.cuts and not start:
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[: self.cuts.pop()])
                self.close_connection = True
                return None
        extra = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        return self.answer(206 if start else 200, data[start:], Accept_Ranges="bytes", **tag, **extra)


@pytest.fixture
def environ(tmp_path):
    """A cache of its own, and our hub."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Hub.asked.clear()
    Hub.cuts.clear()
    yield {
        "NUMATP_CACHE_DIR": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "home"),
        "HF_ENDPOINT": f"http://127.0.0.1:{server.server_address[1]}",
    }
    server.shutdown()
    server.server_close()


@pytest.fixture
def pull(environ):
    """pull(NAME): `numatp pull`."""
    return lambda name: numatp("pull", name, env=environ, timeout=60)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("hf:org/one", "one-Q4_K_M.gguf"),
        ("hf:org/many:m-Q8_0.gguf", "m-Q8_0.gguf"),
        ("hf:org/many:q4_k_s", "m-Q4_K_S.gguf"),
        ("hf:org/split", "Q8/big-00001-of-00003.gguf"),
    ],
)
def test_pull_and_find(pull, tmp_path, monkeypatch, name, file):
    monkeypatch.setenv("NUMATP_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=f"not there yet: numatp pull {name}"):
        hub.find(name)
    result = pull(name)
    repo = name.split(":")[1]
    folder = tmp_path / "cache" / "models" / "hf" / repo
    assert (result.returncode, result.stderr, result.stdout) == (0, "", f"{folder / file}\n")
    assert hub.find(name) == folder / file
    for path in folder.rglob("*.gguf"):
        assert path.read_bytes() == FILES[repo][path.relative_to(folder).as_posix()]
    assert len(list(folder.rglob("*.gguf"))) == (3 if "split" in name else 1)
    Hub.asked.clear()
    assert pull(name).stdout == result.stdout
    assert Hub.asked == []  # it was there


def test_a_folder(pull, tmp_path, monkeypatch):
    monkeypatch.setenv("NUMATP_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "cache" / "models" / "hf" / "org" / "folder"
    result = pull("hf:org/folder")
    assert (result.returncode, result.stderr, result.stdout) == (0, "", f"{folder}\n")
    needed = {name: data for name, data in FILES["org/folder"].items() if name[0] != "R" and "/" not in name}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == needed
    assert Hub.asked[-1][0].endswith("config.json") and hub.find("hf:org/folder") == folder
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match="not there yet"):
        hub.find("hf:org/folder")


def test_mistrals_tokenizer_where_there_is_no_other():
    there = ["tekken.json", "consolidated.safetensors", "config.json", "model.safetensors"]
    assert hub.choose("hf:org/a", there) == ["model.safetensors", "tekken.json", "config.json"]
    assert hub.choose("hf:org/a", [*there, "tokenizer.json"]) == ["model.safetensors", "tokenizer.json", "config.json"]


def test_a_cut_download_goes_on(pull, tmp_path):
    Hub.cuts += [15_000_000]
    result = pull("hf:org/large")
    assert result.returncode == 0, result.stderr
    assert Hub.asked[-1][1] >= 10_000_000  # what the hub's library had written by then
    (file,) = (tmp_path / "cache").rglob("*.gguf")
    assert file.read_bytes() == LARGE


def test_a_pull_after_one_that_was_killed_goes_on(pull, tmp_path):
    folder = tmp_path / "cache" / "models" / "hf" / "org" / "one"
    folder.mkdir(parents=True)
    (folder / "one-Q4_K_M.gguf.part").write_bytes(CONTENT[:1_000_000])
    assert pull("hf:org/one").returncode == 0
    assert [start for _, start in Hub.asked] == [1_000_000]
    assert (folder / "one-Q4_K_M.gguf").read_bytes() == CONTENT
    assert not list(folder.rglob("*.part"))


def test_a_damaged_beginning_is_not_gone_on_with_twice(pull, tmp_path):
    folder = tmp_path / "cache" / "models" / "hf" / "org" / "one"
    folder.mkdir(parents=True)
    (folder / "one-Q4_K_M.gguf.part").write_bytes(b"?" * 1_000_000)
    assert "came damaged" in pull("hf:org/one").stderr
    assert pull("hf:org/one").returncode == 0


def test_a_file_damaged_on_disk_comes_anew(pull, tmp_path):
    pull("hf:org/one")
    (file,) = (tmp_path / "cache").rglob("*.gguf")
    file.write_bytes(CONTENT[:-1] + b"?")
    assert pull("hf:org/one").returncode == 0
    assert file.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("name", "status", "line"),
    [
        ("hf:nonsense", 2, "named hf:ORG/REPO or hf:ORG/REPO:FILE"),
        ("hf:org/none", 2, "org/none has no GGUF file"),
        ("hf:org/absent", 2, "the Hugging Face hub has no model org/absent"),
        ("hf:org/gated", 2, "org/gated asks for a login"),
        ("hf:org/many", 2, "org/many has 3 GGUF files: name one as hf:org/many:FILE; there are m-Q4_K_M.gguf, m-Q4_K_S.gguf"),
        ("hf:org/many:q4", 2, "2 GGUF files that match 'q4'"),
        ("hf:org/many:iq2", 2, "0 GGUF files that match 'iq2'"),
        ("hf:org/damaged", 1, "came damaged"),
    ],
)
def test_refusals_in_one_line(pull, tmp_path, name, status, line):
    result = pull(name)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (status, "", 1), result.stderr
    assert line in result.stderr
    assert not list(tmp_path.rglob("*.gguf"))


# The hub's library tries again, and waits in between for half a minute.
WITHOUT_PAUSES = "import time; time.sleep = lambda seconds: None; from numatp.cli.main import main; main()"


@pytest.mark.parametrize(
    ("env", "line"),
    [({"HF_ENDPOINT": "http://127.0.0.1:1"}, "is there a network"), ({"HF_HUB_OFFLINE": "1"}, "HF_HUB_OFFLINE is set")],
)
def test_offline_in_one_line(environ, env, line):
    result = run(sys.executable, "-c", WITHOUT_PAUSES, "pull", "hf:org/one", env=environ | env)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1), result.stderr
    assert line in result.stderr
