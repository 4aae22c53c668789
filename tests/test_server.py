"""`numatp serve`: what it answers on llama-server's and OpenAI's routes."""

import json

import pytest
from support.server import Server
from support.warm import numatp

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


def test_how_fast_everything_was(server):
    """llama-server's `timings`, of a chat, a completion and its own route, whole and streamed."""
    prompt = PROMPT + " big." * 80
    took = [
        server.post("/completion", {"prompt": prompt, "n_predict": 3}).json(),
        server.chunks("/v1/completions", greedy(prompt=prompt))[-1],
        server.post(CHAT, greedy(messages=HELLO)).json(),
    ]  # fmt: skip
    timings = [answer["timings"] for answer in took]
    assert [one["predicted_n"] for one in timings] == [3, 6, 6]
    assert timings[0]["prompt_n"] == timings[1]["prompt_n"] + timings[1]["cache_n"] and timings[1]["cache_n"] >= 64
    for one in timings:
        assert one["prompt_per_second"] * one["prompt_ms"] == pytest.approx(1e3 * one["prompt_n"])
        assert one["predicted_per_second"] * one["predicted_ms"] == pytest.approx(1e3 * (one["predicted_n"] - 1))
    asked = greedy(prompt=PROMPT, messages=HELLO, timings_per_token=True)
    for path in ("/v1/completions", CHAT, "/completion"):
        events = [json.loads(event) for event in server.events(path, asked) if event != "[DONE]"]
        counted = [event["timings"]["predicted_n"] for event in events if "timings" in event]
        assert counted[-1] == 6 and 1 <= counted[0] < 6 and counted == sorted(counted), path


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
    info = server.client.get("/v1/tokenizer_info").json()  # as lm-evaluation-harness asks for it
    assert info["chat_template"] and server.post("/tokenize", {"content": info["eos_token"]}).json()["tokens"] == ids
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


def test_tools_that_the_template_tells_nothing_of(server):
    body = greedy(messages=HELLO, tools=[{"type": "function", "function": {"name": "measure", "parameters": SCHEMA}}])
    refused = server.post(CHAT, body)
    assert refused.status_code == 400 and "tells it of no tools" in refused.json()["error"]["message"]
