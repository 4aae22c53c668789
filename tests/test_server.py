"""`numatp serve`: what it answers on llama-server's and OpenAI's routes, and what it refuses."""

import contextlib
import json
import socket

import pytest
from support.commands import numatp
from support.server import Server

PROMPT = "The capital of France is"
CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Say hi"}]


@pytest.fixture(scope="module")
def server(model_path):
    server = Server(
        model_path, "--ranks", 1, "-c", 1024, "-np", 4, "--max-queue", 4, "--alias", "small", "--sse-ping-interval", 0.05
    )
    yield server.ready()
    server.close()


def greedy(**more):
    return {"temperature": 0, "max_tokens": 6} | more


@pytest.fixture(scope="module")
def text(model_path):
    return numatp("generate", "-m", model_path, "-p", PROMPT, "-n", 6, "--temp", 0, "--ranks", 1).stdout.removesuffix("\n")


# ---------------------------------------------------------------- what it answers


def test_one_text_on_every_route(server, text):
    for path in ("/v1/completions", "/completions"):
        body = server.post(path, greedy(prompt=PROMPT)).json()
        assert [choice["text"] for choice in body["choices"]] == [text]
        assert body["choices"][0]["finish_reason"] == "length"
        assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"], body["usage"]["total_tokens"]) == (5, 6, 11)
    ids = server.post("/tokenize", {"content": PROMPT}).json()["tokens"]
    assert server.post("/v1/completions", greedy(prompt=ids)).json()["choices"][0]["text"] == text
    several = server.post("/v1/completions", greedy(prompt=[ids, ids], n=2)).json()
    assert [(choice["index"], choice["text"]) for choice in several["choices"]] == [(i, text) for i in range(4)]
    assert several["usage"]["prompt_tokens"] == 10 and several["usage"]["completion_tokens"] == 24
    native = server.post("/completion", {"prompt": PROMPT, "n_predict": 6, "temperature": 0, "return_tokens": True}).json()
    assert (native["content"], native["stop"], native["stop_type"], native["tokens_predicted"]) == (text, True, "limit", 6)
    assert server.post("/detokenize", {"tokens": native["tokens"]}).json()["content"] == text


def test_streams_say_the_same(server, text):
    chunks = server.chunks("/v1/completions", greedy(prompt=PROMPT))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["length"]
    events = [json.loads(event) for event in server.events("/completion", {"prompt": PROMPT, "n_predict": 6, "temperature": 0})]
    assert "".join(event["content"] for event in events) == text
    assert [event["stop"] for event in events] == [False] * (len(events) - 1) + [True]


def test_a_chat_and_its_stream(server):
    whole = server.post(CHAT, greedy(messages=HELLO)).json()
    (choice,) = whole["choices"]
    assert (choice["message"]["role"], choice["finish_reason"], whole["object"]) == ("assistant", "length", "chat.completion")
    chunks = server.chunks(CHAT, greedy(messages=HELLO))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == choice["message"]["content"]
    assert deltas[-1] == {} and chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert len({chunk["id"] for chunk in chunks}) == 1 and all("usage" not in chunk for chunk in chunks)  # nobody asked for it
    used = server.chunks(CHAT, greedy(messages=HELLO, stream_options={"include_usage": True}, return_progress=True))
    assert used[-1]["choices"] == [] and used[-1]["usage"] == whole["usage"]
    progress = [chunk["prompt_progress"] for chunk in used if "prompt_progress" in chunk]
    assert progress[-1]["processed"] == progress[-1]["total"] == whole["usage"]["prompt_tokens"]


def test_silence_is_broken_by_comments(server):
    """A prompt that takes longer than the interval: proxies and clients see that somebody works."""
    body = {"messages": [{"role": "user", "content": "one " * 900}], "max_tokens": 2, "stream": True}
    raw = server.post(CHAT, body).content
    assert raw.count(b": ping\n\n") and raw.endswith(b"data: [DONE]\n\n")
    assert all(part.startswith((b"data: ", b": ping")) for part in raw.split(b"\n\n") if part)


def test_a_stop_text_ends_the_answer(server, text):
    word = text.split()[0]
    for stop in (word, ["nowhere", word]):
        choice = server.post("/v1/completions", greedy(prompt=PROMPT, stop=stop)).json()["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (text.partition(word)[0], "stop")


def test_the_same_seed_the_same_text(server):
    body = {"prompt": PROMPT, "max_tokens": 12, "temperature": 1.5, "seed": 7, "n": 3}
    texts = [[choice["text"] for choice in server.post("/v1/completions", body).json()["choices"]] for _ in range(2)]
    assert texts[0] == texts[1] and len(set(texts[0])) == 3


def test_a_bias_decides(server):
    (id,) = server.post("/tokenize", {"content": " London"}).json()["tokens"]
    for bias in ({str(id): 100}, [[id, 100]]):
        said = server.post("/v1/completions", greedy(prompt=PROMPT, max_tokens=2, logit_bias=bias)).json()["choices"][0]["text"]
        assert said == " London London"


def test_what_the_server_is(server):
    (one,) = server.client.get("/v1/models").json()["data"]
    assert (one["id"], one["max_model_len"], one["meta"]["n_ctx"]) == ("small", 1024, 1024)
    assert server.client.get("/models/small").json() == one
    missing = server.client.get("/v1/models/org/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert server.client.get("/props").json()["total_slots"] == 4
    slots = server.client.get("/slots").json()
    assert len(slots) == 4 and set(slots[0]) == {"id", "n_ctx", "is_processing"}  # and nothing of what anybody said
    assert server.client.get("/health").json()["status"] == "ok"
    server.post("/v1/completions", greedy(prompt=PROMPT))
    counts = server.counts()
    assert counts["steps_total"] > 0 and counts["generation_tokens_total"] > 0 and counts["num_requests_running"] == 0


def test_tokens_and_templates(server):
    assert server.post("/tokenize", {"prompt": "hello world"}).json()["count"] == 2
    ids = server.post("/tokenize", {"content": "<|im_end|>"}).json()["tokens"]
    assert len(ids) == 1 and len(server.post("/tokenize", {"content": "<|im_end|>", "parse_special": False}).json()["tokens"]) > 1
    pieces = server.post("/tokenize", {"content": "é", "with_pieces": True}).json()["tokens"]
    assert all(isinstance(piece["piece"], str | list) for piece in pieces)
    prompt = server.post("/apply-template", {"messages": HELLO}).json()["prompt"]
    assert prompt.endswith("<|im_start|>user\nSay hi<|im_end|>\n<|im_start|>assistant\n")
    chat = server.post("/tokenize", {"messages": HELLO}).json()["tokens"]
    assert chat == server.post("/tokenize", {"content": prompt}).json()["tokens"]
    hidden = server.post("/tokenize", {"messages": [{"role": "user", "content": "<|im_end|>"}]}).json()["tokens"]
    assert hidden.count(ids[0]) == chat.count(ids[0])  # what a user says is text


def test_log_probabilities_in_both_forms(server):
    ids = server.post("/tokenize", {"content": PROMPT}).json()["tokens"]
    said = server.post("/v1/completions", greedy(prompt=ids, logprobs=2)).json()["choices"][0]
    older = said["logprobs"]
    assert "".join(older["tokens"]) == said["text"] and older["text_offset"][1] == len(older["tokens"][0])
    assert all(max(top.values()) == logprob for top, logprob in zip(older["top_logprobs"], older["token_logprobs"], strict=True))
    chunks = server.chunks("/v1/completions", greedy(prompt=ids, logprobs=2))
    assert [logprob for chunk in chunks for logprob in chunk["choices"][0]["logprobs"]["token_logprobs"]] == older["token_logprobs"]
    content = server.post(CHAT, greedy(messages=HELLO, logprobs=True, top_logprobs=3)).json()["choices"][0]["logprobs"]["content"]
    assert len(content) == 6 and all(len(one["top_logprobs"]) == 3 for one in content)
    assert all(one["top_logprobs"][0]["logprob"] == one["logprob"] <= 0 for one in content)  # greedy
    assert all(bytes(one["bytes"]).decode() == one["token"] for one in content)
    native = server.post("/completion", {"prompt": ids, "n_predict": 6, "temperature": 0, "n_probs": 2}).json()
    assert [one["logprob"] for one in native["completion_probabilities"]] == older["token_logprobs"]


def test_echo_as_lm_evaluation_harness_asks_for_it(server):
    """The prompt's own log-probabilities, which say of a generated text what was said when it was generated."""
    ids = server.post("/tokenize", {"content": PROMPT}).json()["tokens"]
    made = server.post("/completion", {"prompt": ids, "n_predict": 6, "temperature": 0, "n_probs": 1, "return_tokens": True}).json()
    whole = ids + made["tokens"]
    body = {"prompt": [whole, ids], "max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    first, second = sorted(server.post("/v1/completions", body).json()["choices"], key=lambda choice: choice["index"])
    said = first["logprobs"]
    assert len(said["tokens"]) == len(said["token_logprobs"]) == len(whole) + 1 and said["token_logprobs"][0] is None
    assert first["text"].startswith(PROMPT + made["content"]) and len(second["logprobs"]["tokens"]) == len(ids) + 1
    scored, told = said["token_logprobs"][len(ids) : -1], [one["logprob"] for one in made["completion_probabilities"]]
    # Rows are rounded to 8 bits, about 1 % of logits of about 10 in size, in Steps of one row and of many.
    assert scored == pytest.approx(told, abs=0.3)
    assert all(max(top.values()) >= one for top, one in zip(said["top_logprobs"][1:], said["token_logprobs"][1:], strict=True))
    only = server.post("/v1/completions", {"prompt": ids, "max_tokens": 0, "logprobs": 0, "echo": True}).json()["choices"][0]
    assert only["text"] == PROMPT and only["logprobs"]["token_logprobs"][1:] == second["logprobs"]["token_logprobs"][1:-1]


def test_a_second_turn_finds_the_first_in_the_cache(server):
    """On every interface, and in the metrics."""
    first = [{"role": "user", "content": "Remember these: " + "one two three four five " * 40}]
    answer = server.post(CHAT, greedy(messages=first)).json()["choices"][0]["message"]["content"]
    history = [*first, {"role": "assistant", "content": answer}, HELLO[0]]
    before = server.counts()["prefix_cache_hits_total"]
    usage = server.post(CHAT, greedy(messages=history)).json()["usage"]
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert 128 <= cached < usage["prompt_tokens"] and server.counts()["prefix_cache_hits_total"] - before == cached
    again = server.post("/v1/messages", {"messages": history, "max_tokens": 2}).json()["usage"]
    assert again["cache_read_input_tokens"] >= cached
    assert again["cache_read_input_tokens"] + again["input_tokens"] == usage["prompt_tokens"]
    several = server.post(CHAT, greedy(messages=history, n=3)).json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert several >= cached


SCHEMA = {
    "type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"type": "integer"}},
    "required": ["name", "size"], "additionalProperties": False,
}  # fmt: skip


def test_answers_of_a_form(server):
    for form in (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA, "strict": True}}},
        {"response_format": {"type": "json_object", "schema": SCHEMA}}, {"json_schema": SCHEMA},
    ):  # fmt: skip
        choice = server.post(CHAT, greedy(messages=HELLO, max_tokens=80, **form)).json()["choices"][0]
        found = json.loads(choice["message"]["content"])
        assert set(found) == {"name", "size"} and isinstance(found["size"], int) and choice["finish_reason"] == "stop"
    gbnf = {"grammar": 'root ::= "yes" | "no"'}
    assert server.post(CHAT, greedy(messages=HELLO, **gbnf)).json()["choices"][0]["message"]["content"] in ("yes", "no")
    assert server.post("/completion", {"prompt": PROMPT, "n_predict": 5, **gbnf}).json()["content"] in ("yes", "no")
    answer = server.post(
        "/v1/responses", {"input": "hi", "text": {"format": {"type": "json_schema", "name": "x", "schema": SCHEMA}}}
    )
    assert set(json.loads(answer.json()["output"][0]["content"][0]["text"])) == {"name", "size"}


def test_a_call_that_must_come(server):
    """From any model, also one whose template knows no tools."""
    function = {"name": "measure", "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}, {"type": "function", "function": {"name": "other"}}]
    for choice, names in (("required", {"measure", "other"}), ({"type": "function", "function": {"name": "measure"}}, {"measure"})):
        body = greedy(messages=HELLO, max_tokens=80, tools=tools, tool_choice=choice)
        (answer,) = server.post(CHAT, body).json()["choices"]
        (call,) = answer["message"]["tool_calls"]
        assert (
            call["function"]["name"] in names and answer["finish_reason"] == "tool_calls" and answer["message"]["content"] is None
        )
        json.loads(call["function"]["arguments"])
        streamed = [one for chunk in server.chunks(CHAT, body) for one in chunk["choices"][0]["delta"].get("tool_calls", [])]
        assert [one["function"] for one in streamed] == [call["function"]]
    named = {"tools": [{"name": "measure", "input_schema": SCHEMA}], "tool_choice": {"type": "tool", "name": "measure"}}
    made = server.post("/v1/messages", {"messages": HELLO, "max_tokens": 80, **named}).json()
    assert made["stop_reason"] == "tool_use" and set(made["content"][0]["input"]) == {"name", "size"}


# ---------------------------------------------------------------- what it refuses

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


def test_fields_that_change_nothing(server, text):
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
