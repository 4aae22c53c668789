"""Connections that a server bounds: how many there are, how long they may say nothing, and how much their bodies are together."""

import socket
from functools import partial

import httpx
import pytest
from support.scripted import ScriptedServer

from numatp.server import body, connection
from numatp.server.body import Room
from numatp.server.connection import Connection
from numatp.server.refusals import Refused
from numatp.server.serve import listen
from numatp.server.settings import Settings

MOST = 4


@pytest.fixture(scope="module")
def server(model_path):
    server = ScriptedServer(model_path, partial(Connection, most=MOST, waiting={}))
    yield server
    server.close()


def connected(server):
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


def has_ended(one):
    try:
        return one.recv(1) == b""
    except ConnectionResetError:
        return True


def test_too_many(server):
    """Those make room that wait the longest for their request, not those that are being answered."""
    server.llm.says = "word " * 300
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        body = {"messages": [{"role": "user", "content": "a"}], "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=body) as answer:
            idle = [connected(server) for _ in range(2 * MOST)]
            for one in idle[: MOST + 1]:  # the last three, and the answer, are left
                assert has_ended(one)
            assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200  # another one makes room
            assert has_ended(idle[MOST + 1])
            assert "[DONE]" in answer.read().decode()
        idle[-1].sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b" 200 " in idle[-1].recv(65536)
    for one in idle:
        one.close()


def test_no_answer_waits_for_an_acknowledgement():
    """Of its first piece, for which others take their time: else a second request on a connection takes 40 ms more."""
    with listen(Settings(port=0)) as listening, socket.create_connection(listening.getsockname()):
        listening.setblocking(True)
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_who_says_nothing(server, monkeypatch):
    """No request, or the beginning of one: closed. An answer may take as long as it takes."""
    monkeypatch.setattr(connection, "SECONDS", 0.05)
    server.llm.says = "word " * 200  # of a millisecond and more each
    with connected(server) as silent, connected(server) as slow:
        slow.sendall(b"GET /health HTTP/1.1\r\nHos")
        assert has_ended(silent) and has_ended(slow)
    asked = {"messages": [{"role": "user", "content": "a"}]}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=asked, trust_env=False, timeout=60)
    assert len(answer.json()["choices"][0]["message"]["content"]) > 900


def test_bodies_together(monkeypatch):
    monkeypatch.setattr(body, "MOST_TOGETHER", 100)
    room = Room()
    with room.share() as take:
        take(60)
        with pytest.raises(Refused) as refused, room.share() as other:
            other(30)
            other(30)
        assert refused.value.status == 429 and refused.value.retry_after
        assert room.taken == 60
    assert room.taken == 0
