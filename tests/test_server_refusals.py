"""What `numatp serve` refuses: requests that make no sense, bodies that are none, and callers that may not ask."""

import contextlib
import http.client
import json
import socket

import pytest
from support.server import Server

PROMPT = "The capital of France is"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Say hi"}]


@pytest.fixture(scope="module")
def server(model_path):
    server = Server(model_path, "--ranks", 1, "-c", 1024, "-np", 4, "--alias", "small")
    yield server.ready()
    server.close()


def greedy(**more):
    return {"temperature": 0, "max_tokens": 6} | more


CHAT_REFUSALS = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({}, "messages"),
    ({"messages": HELLO, "max_tokens": 0}, "max_tokens"),
    ({"messages": HELLO, "max_tokens": -5}, "max_tokens"),
    ({"messages": HELLO, "max_tokens": 10**30}, "max_tokens"),
    ({"messages": HELLO, "n": 100_000}, "n"),
    ({"messages": HELLO, "temperature": "hot"}, "temperature"),
    ({"messages": HELLO, "temperature": -1}, "temperature"),
    ({"messages": HELLO, "top_p": 1.5}, "top_p"),
    ({"messages": HELLO, "presence_penalty": 3}, "presence_penalty"),
    ({"messages": HELLO, "stop": ["x"] * 17}, "stop"),
    ({"messages": HELLO, "stop": "x" * 257}, "stop"),
    ({"messages": HELLO, "logit_bias": {"x": 1}}, "logit_bias"),
    ({"messages": HELLO, "logit_bias": {"1": 1000}}, "logit_bias[...]"),
    ({"messages": HELLO, "logit_bias": {"99999999": 1}}, None),
    ({"messages": HELLO, "top_logprobs": 21}, "top_logprobs"),
    ({"messages": HELLO, "top_logprobs": 2}, "top_logprobs"),
    ({"messages": HELLO, "stream": "yes"}, "stream"),
    ({"messages": HELLO, "functions": [{"name": "f"}]}, "functions"),
    ({"messages": HELLO, "guided_regex": "a*"}, "guided_regex"),
    ({"messages": HELLO, "mirostat": 2}, "mirostat"),
    ({"messages": HELLO, "response_format": {"type": "xml"}}, "response_format"),
    ({"messages": HELLO, "response_format": {"type": "json_schema"}}, "response_format"),
    ({"messages": HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "banana"}}}}, None),
    ({"messages": HELLO, "grammar": "root ::= ("}, None),
    ({"messages": HELLO, "grammar": 'root ::= "a"', "json_schema": {}}, "grammar"),
    ({"messages": HELLO, "tool_choice": "required"}, "tool_choice"),
    ({"messages": HELLO, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
    ({"messages": HELLO, "tools": [{"type": "web_search"}]}, "tools[0]"),
    ({"messages": HELLO, "chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
    ({"messages": HELLO, "chat_template_kwargs": {"a": json.loads("[" * 70 + "]" * 70)}}, None),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://h/"}}]}]},
        "messages[0].content[0]",
    ),
    ({"messages": [{"role": "user", "content": {"text": "a"}}]}, "messages[0].content"),
    ({"messages": [{"content": "a"}]}, "messages[0].role"),
]


@pytest.mark.parametrize("body, param", CHAT_REFUSALS, ids=[f"{i}-{param}" for i, (_, param) in enumerate(CHAT_REFUSALS)])
def test_fields_that_make_no_sense(server, body, param):
    refused = server.post(CHAT, body)
    error = refused.json()["error"]
    assert (refused.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert set(error) == {"message", "type", "param", "code"} and "\n" not in error["message"]


def test_fields_that_change_nothing(server):
    text = server.post("/v1/completions", greedy(prompt=PROMPT)).json()["choices"][0]["text"]
    body = greedy(prompt=PROMPT, mirostat=0, typical_p=1, suffix=None, best_of=1, my_own_field={"a": [1]}, user="me", top_k=None)
    assert server.post("/v1/completions", body).json()["choices"][0]["text"] == text


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b"[]", b"null", b'"a"', b'{"messages": "\xff\xfe"}', b'{"messages": [{"role": "\\ud800"}]}',
        b'{"messages": ' + b"[" * 60_000, b'{"x": ' + b'{"a":' * 60_000, b'{"max_tokens": NaN}', b'\x00{"messages": []}',
    ],
    ids=range(12),
)  # fmt: skip
def test_bodies_that_are_no_request(server, body):
    refused = server.client.post(CHAT, content=body)
    assert refused.status_code == 400 and refused.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "prompt", [[], "", [[]], [1, "a"], [1, [2]], [-1], [1 << 40], [10**6], 5, {"a": 1}, [1.5], ["a"] * 300], ids=str
)
def test_prompts_that_are_none(server, prompt):
    refused = server.post("/v1/completions", greedy(prompt=prompt))
    assert refused.status_code == 400, refused.text


def test_a_prompt_that_is_too_long(server):
    """In the words by which agents know it."""
    error = server.post(CHAT, {"messages": [{"role": "user", "content": "word " * 2000}]}).json()["error"]
    assert error["code"] == "context_length_exceeded"
    assert "This model's maximum context length is 1024 tokens. However, you requested" in error["message"]
    longer = "word " * 100_000  # which cannot fit, whatever words the model knows: it is not read
    for path, body in ((CHAT, {"messages": [{"role": "user", "content": longer}]}), ("/completion", {"prompt": longer})):
        error = server.post(path, body).json()["error"]
        assert error["code"] == "context_length_exceeded" and "requested at least" in error["message"]


def test_routes_that_are_not_there(server):
    assert server.client.get("/v1/nowhere").json()["error"]["type"] == "not_found_error"
    assert server.client.get(CHAT).status_code == 405 and server.client.delete("/v1/models").status_code == 405
    assert server.client.head("/health").status_code == 200


def test_large_bodies_and_headers(server):
    assert server.client.post(CHAT, content=b"x" * ((32 << 20) + 1)).status_code == 413
    chunks = (b"x" * (1 << 20) for _ in range(40))  # without a length
    assert server.client.post(CHAT, content=chunks).status_code == 413
    with contextlib.suppress(OSError):  # it may have hung up while the rest was being sent
        assert (
            b" 200 " not in raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Large: %b\r\n\r\n" % (b"a" * 200_000))[:20]
        )
    assert server.client.get("/health").status_code == 200
    assert server.client.post(CHAT, content=b"{}", headers={"content-encoding": "gzip"}).status_code == 400


def raw(server, request):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(request)
        return connection.recv(65536)


def test_what_is_no_http(server):
    """Before a request, in its body, behind an answer: it is told so or hung up on, and nothing is logged (below)."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: %b\r\nTransfer-Encoding: chunked\r\n\r\n"
    for text in (b"\x16\x03\x01\x00\xc8", b"GET /\xff HTTP/1.1\r\n\r\n", b"\r\n" * 50_000):
        assert b" 400 " in raw(server, text + b"\r\n\r\n").split(b"\r\n")[0]
    for chunks in (b"zz\r\n", b"-1\r\n", b"3\r\nabcdef\r\n", b"f" * 21 + b"\r\n"):
        for host in (b"localhost", b"evil"):
            assert b" 400 " in raw(server, head % host + chunks).split(b"\r\n")[0], chunks
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head % b"evil")
        answer = http.client.HTTPResponse(connection)  # its head and its body may come in two parts
        answer.begin()
        assert (answer.status, json.loads(answer.read())["error"]["type"]) == (403, "permission_error")
        connection.sendall(b"zz\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert connection.recv(65536) == b""
    assert server.client.get("/health").status_code == 200


def test_hosts_and_origins(server):
    for host in ("evil.example", "127.0.0.1.evil.example", "localhost/?", "", "a b", "localhost@evil", "10.0.0.1"):
        assert b" 403 " in raw(server, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).split(b"\r\n")[0], host
    two = raw(server, b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n").split(b"\r\n")[0]
    assert b" 403 " in two or b" 400 " in two
    for host in ("localhost", "localhost:99", "127.0.0.1", "[::1]:8080"):
        assert server.client.get("/v1/models", headers={"host": host}).status_code == 200
    foreign = server.client.post(CHAT, json={"messages": HELLO}, headers={"origin": "http://evil.example"})
    assert foreign.status_code == 403 and "access-control-allow-origin" not in foreign.headers
    assert server.client.get("/v1/models", headers={"origin": server.url}).status_code == 200


def test_nothing_was_logged(server):
    """Of what anybody said, and no mistake of the server's own."""
    server.read()
    assert "Say hi" not in server.said and "mistake" not in server.said and "Traceback" not in server.said, server.said
    assert len(server.said.splitlines()) == 4, server.said
