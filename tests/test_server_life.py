"""A server from its start to its end: loading, keys, clients that hang up, full queues, signals and ranks that die."""

import asyncio
import contextlib
import importlib.util
import json
import os
import random
import re
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
from support.commands import BIN
from support.server import Server
from support.warm import numatp

from numatp import UserError
from numatp.cli.serve import settings_of
from numatp.engine.counts import Counts
from numatp.server.refusals import Refused
from numatp.server.settings import Settings
from numatp.server.state import State

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Say hi"}]
ENDLESS = {"messages": HELLO, "ignore_eos": True, "temperature": 0}  # until the context is full


@pytest.fixture(scope="module", params=[1, 2])
def server(model_path, request):
    server = Server(model_path, "--ranks", request.param, "-c", 2048, "-np", 4, "--max-queue", 300, "--hang-timeout", 1)
    yield server.ready()
    server.close()


def until(condition, what, timeout=60):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def is_quiet(server):
    counts = server.counts()
    return not (counts["num_requests_running"] or counts["num_requests_waiting"] or counts["kv_cache_usage_perc"])


def begun(server, body):
    """A connection on which a request was sent, and nothing read."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)))
    content = json.dumps(body).encode()
    connection.sendall(
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (CHAT.encode(), len(content), content)
    )
    return connection


def test_who_hangs_up_is_forgotten(server):
    """Streamed and not, while waiting and while running: a client that has gone costs nothing."""
    connections = [begun(server, ENDLESS | {"stream": bool(i % 2)}) for i in range(8)]
    until(
        lambda: server.counts()["num_requests_running"] == 4 and server.counts()["num_requests_waiting"] == 4, "not all have begun"
    )
    for connection in connections:
        connection.close()
    until(lambda: is_quiet(server), "a client that hung up is still being answered")
    steps = server.counts()["steps_total"]
    time.sleep(0.2)
    assert server.counts()["steps_total"] == steps


def test_who_hangs_up_in_the_middle_of_a_body(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n{"messages"')
    assert server.client.get("/health").status_code == 200 and is_quiet(server)


def test_two_hundred_clients_that_come_wait_and_hang_up(server):
    """Afterwards all blocks are free, memory is flat, and a new request gets the same answer as before."""
    question = {"messages": HELLO, "temperature": 0, "max_tokens": 8}
    before = server.post(CHAT, question).json()["choices"]
    process = psutil.Process(server.process.pid)
    resident = []
    for seed in (1, 2):
        asyncio.run(chaos(server.url, random.Random(seed)))
        until(lambda: is_quiet(server), "something is still running")
        resident.append(process.memory_info().rss)
    assert resident[1] - resident[0] < 16 << 20  # bytes: each answer kept would be a few thousand, each connection's buffers more
    assert server.post(CHAT, question).json()["choices"] == before
    assert server.client.get("/health").status_code == 200


async def chaos(url, chances, clients=100):
    async def one(client, patience, size, stream):
        body = {"messages": [{"role": "user", "content": "word " * size}], "max_tokens": chances.randint(1, 24), "stream": stream}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                async with client.stream("POST", CHAT, json=body) as answer:
                    assert answer.status_code == 200, await answer.aread()
                    async for _ in answer.aiter_bytes():
                        pass

    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False, limits=limits) as client:
        waits = [chances.choice((0.01, 0.1, 0.5, 1.5)) for _ in range(clients)]
        await asyncio.gather(*(one(client, wait, chances.randint(1, 120), chances.random() < 0.7) for wait in waits))


def test_a_step_that_hangs_is_seen(server):
    """By /health, which asks no engine, and only as long as it hangs."""
    others = psutil.Process(server.process.pid).children()
    if not others:
        pytest.skip("one rank cannot be stopped without the server")
    os.kill(others[0].pid, signal.SIGSTOP)
    try:
        with begun(server, ENDLESS):
            until(lambda: server.client.get("/health").status_code == 503, "a hanging Step was not seen")
            assert server.client.get("/health").json()["status"] == "hanging"
            os.kill(others[0].pid, signal.SIGCONT)
            until(lambda: server.client.get("/health").status_code == 200, "the Step has ended")
    finally:
        os.kill(others[0].pid, signal.SIGCONT)
    until(lambda: is_quiet(server), "the client has gone")


def test_an_idle_server_sleeps(server):
    """A second after the last request no rank computes or wakes up."""
    server.post(CHAT, {"messages": HELLO, "max_tokens": 4})
    until(lambda: is_quiet(server), "something is running")
    process = psutil.Process(server.process.pid)
    ranks = [process, *process.children()]
    time.sleep(1)
    before = sum(process.num_ctx_switches()), sum(map(cpu_ns, ranks)), time.monotonic()
    time.sleep(1)
    switches, used, seconds = (
        now - then
        for now, then in zip((sum(process.num_ctx_switches()), sum(map(cpu_ns, ranks)), time.monotonic()), before, strict=True)
    )
    assert switches / seconds < 10
    assert used / seconds < 5e6 * len(ranks)  # ns a second: half a percent of a core for each


def cpu_ns(process):
    """That all threads of a process have run."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{process.pid}/task").iterdir())


# ---------------------------------------------------------------- start


# numatp, whose load waits for a file.
WAITING = """
import os, sys, time
from numatp.weights.load import Weights
load, file = Weights.load, sys.argv[1]
def after_file(*arguments):
    while not os.path.exists(file):
        time.sleep(0.01)
    load(*arguments)
Weights.load = after_file
from numatp.cli.main import main
del sys.argv[1:3]
main()
"""


def test_a_port_that_answers_before_the_model_is_there(model_path, tmp_path):
    launcher = (sys.executable, "-c", WAITING, tmp_path / "loads")
    server = Server(model_path, "--ranks", 1, "-c", 512, "--api-key", "a-key,another", "-to", 0.2, launcher=launcher)
    try:
        first = server.client.get("/health")
        assert first.status_code == 503 and first.json()["status"] == "loading"
        for_all = {"authorization": "Bearer a-key"}
        early = server.post(CHAT, {"messages": HELLO}, headers=for_all)
        assert early.status_code == 503 and early.json()["error"]["message"] == "Loading model" and early.headers["retry-after"]
        (tmp_path / "loads").touch()
        server.ready()
        check_keys(server)
        late = server.post(CHAT, ENDLESS, headers=for_all)
        assert late.status_code == 408 and late.headers["x-should-retry"] == "false"
        late = server.events(CHAT, ENDLESS, headers=for_all)
        assert late[-1] == "[DONE]" and json.loads(late[-2])["error"]["type"] == "timeout_error"
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0
    finally:
        server.close()


def check_keys(server):
    """Every route but /health asks for one."""
    for method, path in (
        ("GET", "/"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/slots"), ("GET", "/props"), ("POST", CHAT),
        ("POST", "/tokenize"), ("GET", "/nowhere"), ("GET", "/health/"), ("GET", "//health"), ("GET", "/v1/health"),
    ):  # fmt: skip
        refused = server.client.request(method, path)
        assert refused.status_code == 401 and "Basic" in refused.headers["www-authenticate"], path
    assert server.client.get("/health").status_code == 200
    assert server.client.post("/v1/messages").json()["type"] == "error"
    for headers in ({"authorization": "Bearer another"}, {"x-api-key": "a-key"}, {"authorization": "Basic OmEta2V5"}):  # ":a-key"
        assert server.client.get("/v1/models", headers=headers).status_code == 200
    for headers in (
        {"authorization": "Bearer a-ke"},
        {"authorization": "Bearer"},
        {"x-api-key": ""},
        {"authorization": "Basic ***"},
    ):
        assert server.client.get("/v1/models", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "arguments, environment, line",
    [
        (["--host", "0.0.0.0"], {}, "--host 0.0.0.0 lets others in: give --api-key-file"),
        (["--host", "no.such.host.invalid"], {}, "lets others in"),
        (["--host", "no.such.host.invalid", "--no-auth"], {}, "cannot listen there"),
        (["--host", "a..b", "--no-auth"], {}, "--host a..b: neither an address, nor a name, nor a path that ends in .sock"),
        (["--api-key-file", "/absent/keys"], {}, "--api-key-file /absent/keys: No such file"),
        (["--api-key-file", os.devnull], {}, "it holds no key"),
        (["--port", "70000"], {}, "no port"),
        ([], {"LLAMA_ARG_PORT": "high"}, "LLAMA_ARG_PORT: 'high' is not a whole number"),
        ([], {"LLAMA_ARG_CACHE_TYPE_K": "q3"}, "LLAMA_ARG_CACHE_TYPE_K: .*q3"),
    ],
    ids=str,
)
def test_settings_that_make_no_sense(model_path, arguments, environment, line):
    refused = numatp("serve", "-m", model_path, "--ranks", 1, "-c", 64, *arguments, env=environment)
    assert refused.returncode == 2, refused.stderr
    said = [text for text in refused.stderr.splitlines() if "rank" not in text or "lets" in text]
    assert len(said) == 1, refused.stderr
    assert re.search(line, said[0]), said


def test_a_port_that_is_taken(model_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        refused = numatp("serve", "-m", model_path, "--ranks", 2, "-c", 64, "--port", taken.getsockname()[1])
    assert refused.returncode == 2 and "cannot listen there: Address already in use" in refused.stderr.splitlines()[-1]


def test_without_its_libraries(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"^serve needs starlette: pip install 'numatp\[server\]'$"):
        settings_of(None)


def test_help_says_everything():
    said = numatp("serve", "--help").stdout
    for option in ("--host", "--port", "--api-key-file", "--alias", "-np", "-ctk", "-b", "-ub", "--timeout", "[LLAMA_ARG_HOST]"):
        assert option in said


def test_a_unix_socket(model_path, tmp_path):
    """At a path, as llama-server tells one; keys keep their users' prompts apart, and so does cache_salt."""
    path = tmp_path / "numatp.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))  # by a server that was killed
    server = Server(model_path, "--ranks", 1, "-c", 1024, "--host", path, "--api-key", "one,two", "--max-queue-tokens", 300)
    try:
        server.ready()
        refused = numatp("serve", "-m", model_path, "--ranks", 1, "-c", 64, "--host", path)
        assert refused.returncode == 2 and refused.stderr.splitlines()[-1].endswith("cannot listen there: Address already in use")
        question = {"messages": [{"role": "user", "content": "word " * 200}], "max_tokens": 1}
        cached = []
        for key, more in (
            ("one", {}), ("two", {}), ("two", {"cache_salt": "s"}), ("two", {"cache_salt": "s"}),
            ("one", {"cache_prompt": False}), ("one", {}),
        ):  # fmt: skip
            answer = server.post(CHAT, question | more, headers={"authorization": f"Bearer {key}"}).json()
            cached.append(answer["usage"]["prompt_tokens_details"]["cached_tokens"] > 0)
        assert cached == [False, False, False, True, False, True]
        wrong = server.post(CHAT, question | {"cache_salt": ""}, headers={"authorization": "Bearer one"})
        assert wrong.status_code == 400 and "cache_salt" in wrong.text
        several = question | {"n": 2, "cache_salt": "fresh"}  # 2 x 230 tokens: what is alone may wait, however long it is
        assert server.post(CHAT, several, headers={"authorization": "Bearer one"}).status_code == 200
        server.process.send_signal(signal.SIGTERM)
        assert server.wait() == 0 and not path.exists()
    finally:
        server.close()


def test_a_queue_of_tokens():
    """Prompts wait until they have their first token; of one that comes first any length may."""
    state = State(SimpleNamespace(counts=Counts(), model="m"), Settings(max_queue_tokens=100), places=1)
    state.phase = "ready"
    state.enter([90, 90])
    with pytest.raises(Refused, match="180 tokens of prompts wait to be computed") as refused:
        state.enter([1])
    assert refused.value.status == 429 and refused.value.retry_after
    state.computed(90)
    state.enter([10])
    with pytest.raises(Refused):
        state.enter([1])


# ---------------------------------------------------------------- queue and end


def test_a_full_queue_and_a_stop(model_path):
    """With environment names for options: one place, one who waits."""
    names = {"LLAMA_ARG_MODEL": str(model_path), "LLAMA_ARG_N_PARALLEL": "1", "LLAMA_ARG_CTX_SIZE": "1024", "LLAMA_ARG_ALIAS": "x"}
    server = Server(model_path, "--ranks", 1, "--max-queue", 1, env=names).ready()
    try:
        assert server.client.get("/props").json()["total_slots"] == 1
        with begun(server, ENDLESS), begun(server, ENDLESS):
            until(lambda: server.counts()["num_requests_waiting"] == 1, "nobody waits")
            full = server.post(CHAT, ENDLESS)
            assert full.status_code == 429 and full.json()["error"]["type"] == "rate_limit_error"
            assert 1 <= int(full.headers["retry-after"]) <= 120
            assert server.post(CHAT, ENDLESS | {"n": 2}).status_code == 429
        until(lambda: is_quiet(server), "the clients have gone")
        drains(server)
    finally:
        server.close()


def drains(server):
    """SIGTERM: what runs is finished, what comes is refused."""
    said = []
    body = ENDLESS | {"max_tokens": 400}
    running = threading.Thread(target=lambda: said.extend(server.events(CHAT, body)))
    running.start()
    until(lambda: server.counts()["num_requests_running"] == 1, "it does not run")
    server.process.send_signal(signal.SIGTERM)
    until(lambda: server.client.get("/health").status_code == 503, "it still says that it is well")
    assert server.client.get("/health").json()["status"] == "draining"
    assert server.post(CHAT, ENDLESS).status_code == 503
    assert server.wait() == 0, server.said
    running.join()
    assert said[-1] == "[DONE]" and json.loads(said[-2])["choices"][0]["finish_reason"] == "length"


def test_prompts_outlive_the_server(model_path, tmp_path):
    """After SIGTERM, and after a kill while it answers others; the text is the same."""
    arguments = ("--ranks", 1, "-c", 1024, "-np", 2, "--prompt-cache-dir", tmp_path / "kept")
    question = {
        "messages": [{"role": "user", "content": "Tell me of the sea and its ships. " * 20}],
        "temperature": 0,
        "max_tokens": 8,
    }
    said = []
    for end in (signal.SIGTERM, signal.SIGKILL, signal.SIGTERM):
        server = Server(model_path, *arguments).ready()
        try:
            answer = server.post(CHAT, question).json()
            cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"]
            said.append((answer["choices"], cached, answer["usage"]["prompt_tokens"]))
            if end == signal.SIGKILL:
                killed_while_it_works(server, tmp_path / "kept")
            server.process.send_signal(end)
            assert server.wait() == (0 if end == signal.SIGTERM else -signal.SIGKILL)
        finally:
            server.close()
    assert said[0][0] == said[1][0] == said[2][0]
    assert said[0][1] == 0 and said[1][1] == said[2][1] >= said[0][2] - 65
    refused = numatp("serve", "-m", model_path, "--prompt-cache-dir", tmp_path / "kept", "--no-prefix-cache")
    assert refused.returncode == 2 and refused.stderr.splitlines()[-1].endswith("leave out --no-prefix-cache")


def killed_while_it_works(server, folder):
    """What it has computed of a prompt meanwhile is in files before it rests."""
    files = len(list(folder.glob("*/*")))
    with begun(server, ENDLESS):
        until(lambda: server.counts()["num_requests_running"] == 1, "it does not run")
        server.post(CHAT, {"messages": [{"role": "user", "content": "Something else. " * 40}], "max_tokens": 1})
        until(lambda: len(list(folder.glob("*/*"))) > files, "nothing is saved")
        assert server.counts()["num_requests_running"] == 1


def test_a_second_signal_ends_it(model_path):
    server = Server(model_path, "--ranks", 2, "-c", 2048).ready()
    try:
        with begun(server, ENDLESS):
            until(lambda: server.counts()["num_requests_running"] == 1, "it does not run")
            ranks = psutil.Process(server.process.pid).children()
            server.process.send_signal(signal.SIGTERM)
            until(lambda: server.client.get("/health").status_code == 503, "it still says that it is well")
            server.process.send_signal(signal.SIGTERM)
            assert server.wait() == 128 + signal.SIGTERM
            assert not psutil.wait_procs(ranks, timeout=20)[1]
    finally:
        server.close()


def test_a_rank_that_dies_ends_every_stream_and_the_server(model_path):
    server = Server(model_path, "--ranks", 2, "-c", 2048).ready()
    try:
        (other,) = psutil.Process(server.process.pid).children()
        said = [[], []]
        streams = [threading.Thread(target=lambda i=i: said[i].extend(server.events(CHAT, ENDLESS))) for i in range(2)]
        for stream in streams:
            stream.start()
        until(lambda: server.counts()["num_requests_running"] == 2, "they do not run")
        other.kill()
        assert server.wait() == 1, server.said
        for stream in streams:
            stream.join()
        for events in said:
            assert events[-1] == "[DONE]" and json.loads(events[-2])["error"]["type"] == "server_error", events[-2:]
        assert "rank 1" in server.said.splitlines()[-1] and "died" in server.said.splitlines()[-1], server.said
    finally:
        server.close()


def test_a_rank_that_dies_while_nobody_asks(model_path):
    server = Server(model_path, "--ranks", 2, "-c", 512)
    try:
        server.ready()
        (other,) = psutil.Process(server.process.pid).children()
        other.kill()
        assert server.wait() == 1 and "rank 1" in server.said.splitlines()[-1], server.said
    finally:
        server.close()


def listening_ports(process):
    return [one.laddr.port for one in process.net_connections("tcp") if one.status == "LISTEN"]


def test_under_mpirun(model_path):
    """Rank 0 answers, the other one serves it, and both end when rank 0 is asked to stop."""
    server = Server(model_path, "-c", 512, launcher=(BIN / "mpirun", "-np", 2, "--bind-to", "socket"))
    try:
        server.ready()
        assert server.post(CHAT, {"messages": HELLO, "max_tokens": 3}).json()["usage"]["completion_tokens"] == 3
        ranks = [p for p in psutil.Process(server.process.pid).children(recursive=True) if "serve" in p.cmdline()]
        port = int(server.url.rpartition(":")[2])
        (first,) = [rank for rank in ranks if port in listening_ports(rank)]
        assert len(ranks) == 2
        first.send_signal(signal.SIGTERM)
        assert server.wait() == 0, server.said
    finally:
        server.close()
