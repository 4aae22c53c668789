"""Anthropic's interface: POST /v1/messages and /v1/messages/count_tokens, as its SDK and Claude Code know them."""

import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from numatp.server import tools
from numatp.server.conversation import Block, Chat, ask, blocks_of, joined, reason_of
from numatp.server.endpoint import Call
from numatp.server.generation import Generation, Sequence
from numatp.server.messages import MOST_MESSAGES, Name, template_arguments
from numatp.server.refusals import Refused, anthropic_error
from numatp.server.reply import Body, Reply, encode, reply
from numatp.server.sampling import Count, Probability, Sampling, Stops, params_of

PING = b'event: ping\ndata: {"type": "ping"}\n\n'
BILLING = (
    "x-anthropic-billing-header"  # a text that differs in every request, in front of all others: no prefix would be found again
)
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


class Part(Struct):
    """Of a message. Which fields it has goes by its type."""

    type: Name
    text: str | None = None
    thinking: str | None = None
    id: Name | None = None
    name: Name | None = None
    input: dict[str, Any] | None = None
    tool_use_id: Name | None = None
    content: str | list["Part"] | None = None


class Message(Struct):
    role: Name
    content: str | list[Part]


class Tool(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    type: Name | None = None  # absent or "custom": a function; others are Anthropic's own
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class ToolChoice(Struct):
    type: Name
    name: Name | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Struct):
    type: Name


class CountRequest(Struct, kw_only=True):  # type: ignore[call-arg,unused-ignore]  # where mypy finds no msgspec
    messages: Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)]
    model: Name | None = None
    system: str | list[Part] | None = None
    tools: Annotated[list[Tool], Meta(max_length=256)] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None


class MessagesRequest(CountRequest):
    max_tokens: Count
    stream: bool | None = None
    stop_sequences: Stops | None = None
    temperature: Probability | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=0, le=1 << 31)] | None = None


# ---------------------------------------------------------------- the request, as a template takes it


def _text(content: str | list[Part] | None, param: str) -> str:
    """Of texts alone."""
    if content is None or isinstance(content, str):
        return content or ""
    for block in content:
        if block.type != "text" or block.text is None:
            raise Refused(400, f"{param}: a block of type {block.type[:40]!r} is not supported: this model reads text alone")
    return "\n".join(block.text or "" for block in content)


def _messages(asked: CountRequest) -> list[dict[str, Any]]:
    system = asked.system
    if isinstance(system, list):
        system = [block for block in system if not (block.text or "").startswith(BILLING)]
    text = _text(system, "system")
    found: list[dict[str, Any]] = [{"role": "system", "content": text}] if text else []
    for place, message in enumerate(asked.messages):
        if message.role not in ("user", "assistant", "system"):
            raise Refused(400, f"messages.{place}.role is {message.role[:40]!r} and must be user or assistant")
        if isinstance(message.content, str):
            found.append({"role": message.role, "content": message.content})
        elif message.role == "assistant":
            found.append(_assistant(message.content, f"messages.{place}"))
        else:
            results = [block for block in message.content if block.type == "tool_result"]
            found += [
                {"role": "tool", "tool_call_id": block.tool_use_id or "", "content": _text(block.content, f"messages.{place}")}
                for block in results
            ]
            said = [block for block in message.content if block.type != "tool_result"]
            if said or not results:
                found.append({"role": message.role, "content": _text(said, f"messages.{place}")})
    return found


def _assistant(content: list[Part], param: str) -> dict[str, Any]:
    texts = [block for block in content if block.type not in ("tool_use", "thinking", "redacted_thinking")]
    found: dict[str, Any] = {"role": "assistant", "content": _text(texts, param)}
    if thinking := "".join(block.thinking or "" for block in content if block.type == "thinking"):
        found["reasoning_content"] = thinking
    calls = [block for block in content if block.type == "tool_use"]
    if calls:
        found["tool_calls"] = [
            {"id": block.id or "", "type": "function", "function": {"name": block.name or "", "arguments": block.input or {}}}
            for block in calls
        ]
    return found


def _chosen(asked: CountRequest) -> tools.Chosen:
    """Tools of Anthropic's own making are left out: nobody here could run them."""
    given = [tool for tool in asked.tools or [] if tool.type in (None, "custom")]
    known = [tools.described(tool.name, tool.description, tool.input_schema) for tool in given]
    choice = asked.tool_choice or ToolChoice("auto")
    if choice.type not in ("auto", "none", "any", "tool"):
        raise Refused(400, f"tool_choice.type is {choice.type[:40]!r} and must be auto, any, tool or none")
    if choice.type == "tool":
        return tools.chosen(None, choice.name or "", known)
    return tools.chosen("required" if choice.type == "any" else choice.type, None, known)


def _arguments(asked: CountRequest) -> dict[str, Any]:
    given = {"enable_thinking": asked.thinking.type != "disabled"} if asked.thinking else None
    return template_arguments(given, _chosen(asked).tools, None)


async def count_tokens(call: Call) -> Reply:
    asked = await call.parse(CountRequest)
    call.state.check_ready()
    tokens = await call.state.in_thread(call.state.llm.encode, _messages(asked), _arguments(asked))
    return Body({"input_tokens": len(tokens)})


# ---------------------------------------------------------------- the answer


async def messages(call: Call) -> Reply:
    asked = await call.parse(MessagesRequest)
    state = call.state
    state.check_ready()
    said = Sampling(temperature=asked.temperature, top_p=asked.top_p, top_k=asked.top_k, stop=asked.stop_sequences)
    params = params_of(said, state.llm.default_params, asked.max_tokens)
    one_call = bool(asked.tool_choice and asked.tool_choice.disable_parallel_tool_use)
    chat = Chat(_messages(asked), _arguments(asked), params, one_call=one_call, must_call=_chosen(asked).must)
    generation = await ask(state, chat, call.salt())
    answer = Answer(state.name)
    return await reply(answer, generation, bool(asked.stream), state.settings.ping, PING)


class Answer:
    def __init__(self, model: str):
        self._head = {"id": f"msg_{uuid.uuid4().hex[:24]}", "type": "message", "role": "assistant", "model": model}

    async def whole(self, generation: Generation) -> dict[str, Any]:
        blocks = joined([block async for delta in generation.deltas() for block in blocks_of(delta)])
        sequence = generation.sequences[0]
        content = [_content(block) for block in blocks]
        return {**self._head, "content": content, **_reason(sequence), "usage": _usage(sequence)}

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        sequence = generation.sequences[0]
        begun: dict[str, Any] = {**self._head, "content": [], "stop_reason": None, "stop_sequence": None, "usage": _usage(sequence)}
        yield _event("message_start", message=begun)
        yield PING
        opened = Opened()
        try:
            while await generation.more():
                blocks = (block for delta in generation.came() for block in blocks_of(delta))
                yield b"".join(event for block in blocks for event in opened.push(block))
            yield b"".join(opened.close())
            yield _event("message_delta", delta=_reason(sequence), usage=_usage(sequence))
            yield _event("message_stop")
        except Refused as refused:
            yield b"event: error\ndata: %b\n\n" % encode(anthropic_error(refused))


class Opened:
    """The blocks of a stream, one after another."""

    def __init__(self) -> None:
        self._kind, self._index = "", -1

    def push(self, block: Block) -> list[bytes]:
        events = []
        if block.kind != self._kind or block.kind == "call":
            events += self.close()
            self._kind, self._index = block.kind, self._index + 1
            empty = {**_content(Block(block.kind, "", block.call)), **({"input": {}} if block.call else {})}
            events.append(_event("content_block_start", index=self._index, content_block=empty))
        if block.call:
            said = {"type": "input_json_delta", "partial_json": block.call.arguments}
        elif block.kind == "reasoning":
            said = {"type": "thinking_delta", "thinking": block.text}
        else:
            said = {"type": "text_delta", "text": block.text}
        return [*events, _event("content_block_delta", index=self._index, delta=said)]

    def close(self) -> list[bytes]:
        if not self._kind:
            return []
        events = []
        if self._kind == "reasoning":
            signed = {"type": "signature_delta", "signature": ""}
            events.append(_event("content_block_delta", index=self._index, delta=signed))
        self._kind = ""
        return [*events, _event("content_block_stop", index=self._index)]


def _event(kind: str, **content: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode({"type": kind, **content}))


def _content(block: Block) -> dict[str, Any]:
    if block.call:
        arguments = msgspec.json.decode(block.call.arguments)
        return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex[:24]}", "name": block.call.name, "input": arguments}
    if block.kind == "reasoning":
        return {"type": "thinking", "thinking": block.text, "signature": ""}
    return {"type": "text", "text": block.text}


def _reason(sequence: Sequence) -> dict[str, Any]:
    reason = REASONS[reason_of(sequence)]
    if reason == "end_turn" and sequence.text.stopped:
        return {"stop_reason": "stop_sequence", "stop_sequence": sequence.text.stop}
    return {"stop_reason": reason, "stop_sequence": None}


def _usage(sequence: Sequence) -> dict[str, Any]:
    """Tokens of the prompt that were found in the cache are counted apart."""
    cached = sequence.finish.cached_tokens if sequence.finish else 0
    return {
        "input_tokens": sequence.prompt_tokens - cached, "cache_creation_input_tokens": 0, "cache_read_input_tokens": cached,
        "output_tokens": sequence.token_count,
    }  # fmt: skip
