"""The clients that people use, beside the server: openai's and anthropic's. What a model says is given, so that it calls tools."""

import importlib
import json

import pytest
from support.scripted import ScriptedServer

from numatp.errors import RankError, UserError

HELLO = [{"role": "user", "content": "How warm is it in Paris?"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "of a city", "parameters": SCHEMA}}]
THINKS, ANSWERS, ASKS = "I need a tool.", "Let me see. ", {"city": "Paris <|im_end|>"}
CALL = f'<tool_call>\n{{"name": "weather", "arguments": {json.dumps(ASKS)}}}\n</tool_call>'
SAYS = f"<think>\n{THINKS}\n</think>\n\n{ANSWERS}{CALL}"


@pytest.fixture(scope="module")
def server(model_path):
    server = ScriptedServer(model_path)
    yield server
    server.close()


@pytest.fixture(autouse=True)
def says(server):
    server.llm.says, server.llm.error = SAYS, None


@pytest.fixture(scope="module")
def openai():
    """As anthropic loaded where it is used: each takes a second, and every worker collects this file."""
    return importlib.import_module("openai")


@pytest.fixture(scope="module")
def anthropic():
    return importlib.import_module("anthropic")


@pytest.fixture(scope="module", params=["/v1", ""])
def client(openai, server, request):
    return openai.OpenAI(base_url=server.url + request.param, api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def claude(anthropic, server):
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0)


# ---------------------------------------------------------------- openai


def test_openai_a_tool_is_called(client, server):
    (choice,) = client.chat.completions.create(model="x", messages=HELLO, tools=TOOLS).choices
    (call,) = choice.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments), choice.finish_reason) == ("weather", ASKS, "tool_calls")
    assert choice.message.reasoning_content.strip() == THINKS and choice.message.content.strip() == ANSWERS.strip()
    assert '"name": "weather"' in server.llm.prompt  # the model was told of it
    after = [*HELLO, choice.message.to_dict(), {"role": "tool", "tool_call_id": call.id, "content": "20 degrees"}]
    server.llm.says = "It is 20 degrees."
    (choice,) = client.chat.completions.create(model="x", messages=after, tools=TOOLS).choices
    assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == ("It is 20 degrees.", None, "stop")
    assert f'"arguments": {json.dumps(ASKS)}' in server.llm.prompt and "20 degrees<|im_end|>" in server.llm.prompt


def test_openai_a_stream_with_everything(client):
    said = {"content": "", "reasoning_content": "", "calls": [], "reasons": [], "usage": []}
    options = {"include_usage": True}
    for chunk in client.chat.completions.create(model="x", messages=HELLO, tools=TOOLS, stream=True, stream_options=options):
        if chunk.usage:
            said["usage"].append((chunk.choices, chunk.usage))
            continue
        (choice,) = chunk.choices
        said["content"] += choice.delta.content or ""
        said["reasoning_content"] += getattr(choice.delta, "reasoning_content", None) or ""
        said["calls"] += choice.delta.tool_calls or []
        said["reasons"].append(choice.finish_reason)
    assert said["content"].strip() == ANSWERS.strip() and said["reasoning_content"].strip() == THINKS
    ((call,),) = [said["calls"]]
    assert call.index == 0 and call.id and json.loads(call.function.arguments) == ASKS
    assert [reason for reason in said["reasons"] if reason] == ["tool_calls"] and said["reasons"][-1] == "tool_calls"
    ((choices, usage),) = said["usage"]
    assert choices == [] and usage.prompt_tokens_details.cached_tokens == 3 and usage.completion_tokens_details.reasoning_tokens > 0


def test_openai_no_tools_no_calls(client, server):
    """tool_choice "none": the model is not told of tools, and its words stay words."""
    (choice,) = client.chat.completions.create(model="x", messages=HELLO, tools=TOOLS, tool_choice="none").choices
    assert choice.message.tool_calls is None and "weather" not in server.llm.prompt and choice.finish_reason == "stop"


def test_openai_one_call_at_most(client, server):
    server.llm.says = CALL + "\n" + CALL
    tokens = []
    for parallel, count in ((True, 2), (False, 1)):
        made = client.chat.completions.create(model="x", messages=HELLO, tools=TOOLS, parallel_tool_calls=parallel)
        assert len(made.choices[0].message.tool_calls) == count and made.choices[0].finish_reason == "tool_calls"
        tokens.append(made.usage.completion_tokens)
    assert tokens[1] < tokens[0]  # what would come after it is not waited for


def test_openai_a_call_that_must_come(client, server):
    """As JSON whatever format the model would write calls in, by a grammar of the tools that may be called."""
    server.llm.says = json.dumps({"name": "weather", "arguments": ASKS})
    other = {"type": "function", "function": {"name": "other"}}
    named = {"type": "function", "function": {"name": "weather"}}
    for choice, known in (("required", {"weather", "other"}), (named, {"weather"})):
        body = {"model": "x", "messages": HELLO, "tools": [*TOOLS, other], "tool_choice": choice}
        (answer,) = client.chat.completions.create(**body).choices
        (call,) = answer.message.tool_calls
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", ASKS)
        assert answer.finish_reason == "tool_calls" and answer.message.content is None
        schema = json.loads(server.llm.params.grammar.text)
        found = {one["properties"]["name"]["const"] for one in schema.get("anyOf", [schema])}
        assert found == known and SCHEMA in [one["properties"]["arguments"] for one in schema.get("anyOf", [schema])]
        chunks = list(client.chat.completions.create(**body, stream=True))
        streamed = [one for chunk in chunks for one in chunk.choices[0].delta.tool_calls or []]
        assert [one.function.arguments for one in streamed] == [call.function.arguments]
        (cut,) = client.chat.completions.create(**body, max_tokens=4).choices
        assert cut.finish_reason == "length" and cut.message.tool_calls is None and cut.message.content.startswith('{"name')
    server.llm.says = f"<think>Warm?</think>\n{json.dumps({'name': 'weather', 'arguments': ASKS})}"
    (answer,) = client.chat.completions.create(**body).choices
    assert answer.message.reasoning_content == "Warm?" and answer.message.content is None
    assert json.loads(answer.message.tool_calls[0].function.arguments) == ASKS


def test_openai_an_answer_that_was_begun(client, server):
    server.llm.says = " and four"
    begun = [*HELLO, {"role": "assistant", "content": "Three<|im_end|>"}]
    assert client.chat.completions.create(model="x", messages=begun).choices[0].message.content == " and four"
    assert server.llm.prompt.endswith("<|im_start|>assistant\nThree<|im_end|>")
    assert server.llm.tokens.count(server.llm.tokenizer.special_id("<|im_end|>")) == 1  # that of the user's message: text is text


def test_openai_errors(openai, client, server):
    with pytest.raises(openai.BadRequestError, match="maximum context length is 4096 tokens") as refused:
        client.chat.completions.create(model="x", messages=[{"role": "user", "content": "word " * 5000}])
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other")
    assert [model.id for model in client.models.list()] == ["scripted"]
    server.llm.error = RankError("rank 1 died")
    with pytest.raises(openai.APIError, match="engine has ended"):
        list(client.chat.completions.create(model="x", messages=HELLO, stream=True))
    with pytest.raises(openai.InternalServerError):
        client.chat.completions.create(model="x", messages=HELLO)
    server.llm.error = UserError(f"{server.llm.model}: damaged")
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="x", messages=HELLO)
    assert "secret" not in str(refused.value) and "damaged" in str(refused.value)


def test_openai_responses(openai, client, server):
    tools = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}, {"type": "web_search"}]
    made = client.responses.create(model="x", input="How warm is it?", instructions="Be brief.", tools=tools)
    kinds = [item.type for item in made.output]
    assert kinds == ["reasoning", "message", "function_call"] and made.status == "completed" and "Be brief." in server.llm.prompt
    call = made.output[2]
    assert call.name == "weather" and json.loads(call.arguments) == ASKS and made.output_text.strip() == ANSWERS.strip()
    assert made.usage.input_tokens_details.cached_tokens == 3
    history = [{"role": "user", "content": "How warm is it?"}, *[item.to_dict() for item in made.output]]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "20 degrees"})
    server.llm.says = "It is 20 degrees."
    with client.responses.stream(model="x", input=history) as stream:
        events = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == "It is 20 degrees." and events[0] == "response.created" and events[-1] == "response.completed"
    assert "20 degrees" in server.llm.prompt and json.dumps(ASKS) in server.llm.prompt
    with pytest.raises(openai.BadRequestError, match="nothing is stored"):
        client.responses.create(model="x", input="a", previous_response_id="resp_1")


def test_openai_a_streamed_response_with_a_call(client):
    tools = [{"type": "function", "name": "weather", "parameters": SCHEMA, "strict": False}]
    with client.responses.stream(model="x", input="How warm is it?", tools=tools) as stream:
        events = list(stream)
    final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call"]
    assert [event.sequence_number for event in events if hasattr(event, "sequence_number")] == sorted(
        event.sequence_number for event in events if hasattr(event, "sequence_number")
    )
    (done,) = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert json.loads(done.arguments) == ASKS


# ---------------------------------------------------------------- anthropic

CLAUDE_TOOLS = [{"name": "weather", "description": "of a city", "input_schema": SCHEMA}]


def test_anthropic_a_tool_is_called(claude, server):
    system = [{"type": "text", "text": "x-anthropic-billing-header: changes"}, {"type": "text", "text": "Be brief."}]
    made = claude.messages.create(model="x", max_tokens=500, messages=HELLO, tools=CLAUDE_TOOLS, system=system)
    assert [block.type for block in made.content] == ["thinking", "text", "tool_use"] and made.stop_reason == "tool_use"
    assert made.content[2].input == ASKS and "Be brief." in server.llm.prompt and "billing" not in server.llm.prompt
    assert made.usage.cache_read_input_tokens == 3
    result = {"type": "tool_result", "tool_use_id": made.content[2].id, "content": [{"type": "text", "text": "20 degrees"}]}
    history = [*HELLO, {"role": "assistant", "content": made.to_dict()["content"]}, {"role": "user", "content": [result]}]
    server.llm.says = "It is 20 degrees."
    made = claude.messages.create(model="x", max_tokens=500, messages=history, tools=CLAUDE_TOOLS)
    assert (made.content[0].text, made.stop_reason) == ("It is 20 degrees.", "end_turn")
    assert "20 degrees<|im_end|>" in server.llm.prompt and THINKS in server.llm.prompt


def test_anthropic_a_call_that_must_come(anthropic, claude, server):
    server.llm.says = json.dumps({"name": "weather", "arguments": ASKS})
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather"}):
        made = claude.messages.create(model="x", max_tokens=99, messages=HELLO, tools=CLAUDE_TOOLS, tool_choice=choice)
        assert made.stop_reason == "tool_use" and made.content[0].input == ASKS and server.llm.params.grammar
    with pytest.raises(anthropic.BadRequestError, match="none of the tools"):
        choice = {"type": "tool", "name": "absent"}
        claude.messages.create(model="x", max_tokens=9, messages=HELLO, tools=CLAUDE_TOOLS, tool_choice=choice)


def test_anthropic_a_stream(claude):
    with claude.messages.stream(model="x", max_tokens=500, messages=HELLO, tools=CLAUDE_TOOLS) as stream:
        events = [event.type for event in stream]
        made = stream.get_final_message()
    assert [block.type for block in made.content] == ["thinking", "text", "tool_use"] and made.stop_reason == "tool_use"
    assert made.content[0].thinking.strip() == THINKS and made.content[2].input == ASKS
    assert events[0] == "message_start" and events[-1] == "message_stop"
    assert events.count("content_block_start") == events.count("content_block_stop") == 3


def test_anthropic_why_it_ends(claude, server):
    server.llm.says = "one two three four"
    made = claude.messages.create(model="x", max_tokens=2, messages=HELLO)
    assert (made.stop_reason, made.usage.output_tokens) == ("max_tokens", 2)
    made = claude.messages.create(model="x", max_tokens=50, messages=HELLO, stop_sequences=["never", " three"])
    assert (made.stop_reason, made.stop_sequence, made.content[0].text) == ("stop_sequence", " three", "one two")


def test_anthropic_counts_and_errors(anthropic, claude, server):
    counted = claude.messages.count_tokens(model="x", messages=HELLO, tools=CLAUDE_TOOLS).input_tokens
    assert counted == claude.messages.create(model="x", max_tokens=1, messages=HELLO, tools=CLAUDE_TOOLS).usage.input_tokens + 3
    with pytest.raises(anthropic.BadRequestError, match="text alone"):
        picture = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1:9/"}}
        claude.messages.create(model="x", max_tokens=1, messages=[{"role": "user", "content": [picture]}])
    server.llm.error = RankError("rank 1 died")
    with (
        pytest.raises(anthropic.APIStatusError, match="engine has ended"),
        claude.messages.stream(model="x", max_tokens=500, messages=HELLO) as stream,
    ):
        list(stream)
