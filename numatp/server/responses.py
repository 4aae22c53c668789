"""POST /v1/responses, without memory of earlier ones: what Codex and openai's client speak."""

import time
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from numatp.engine.sampling import SamplingParams
from numatp.server import tools
from numatp.server.conversation import Block, Chat, ask, blocks_of, joined, reason_of
from numatp.server.endpoint import Call
from numatp.server.forms import ResponseFormat, of_format
from numatp.server.generation import Generation, Sequence
from numatp.server.messages import MOST_MESSAGES, Message, Name, Part, ToolCall, as_taken, template_arguments
from numatp.server.messages import Function as Called
from numatp.server.refusals import Refused, openai_error
from numatp.server.reply import Reply, encode, reply
from numatp.server.sampling import Count, Probability, Sampling, params_of


class Item(Struct):
    """Of the input. Which fields it has goes by its type."""

    type: Name = "message"
    role: Name | None = None
    content: str | list[Part] | None = None
    call_id: Name | None = None
    name: Name | None = None
    arguments: str | None = None
    output: str | list[Part] | None = None


class Tool(Struct):
    type: Name
    name: Annotated[str, Meta(max_length=256)] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None


class Reasoning(Struct):
    effort: Name | None = None


class Text(Struct):
    format: ResponseFormat | None = None


class ToolChoice(Struct):
    type: Name
    name: Name | None = None


class ResponsesRequest(Struct, kw_only=True):  # type: ignore[call-arg,unused-ignore]  # where mypy finds no msgspec
    input: str | Annotated[list[Item], Meta(min_length=1, max_length=MOST_MESSAGES)]
    model: Name | None = None
    instructions: str | None = None
    previous_response_id: Name | None = None
    background: bool | None = None
    max_output_tokens: Count | None = None
    stream: bool | None = None
    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Probability | None = None
    tools: Annotated[list[Tool], Meta(max_length=256)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    text: Text | None = None


def _messages(asked: ResponsesRequest) -> list[Message]:
    found = [Message("system", asked.instructions)] if asked.instructions else []
    if isinstance(asked.input, str):
        return [*found, Message("user", asked.input)]
    reasoning = ""  # of the assistant's message that comes next
    for place, item in enumerate(asked.input):
        if item.type == "message":
            if item.role is None:
                raise Refused(400, "a message needs a role", param=f"input[{place}].role")
            found.append(Message(item.role, item.content, reasoning_content=reasoning or None))
        elif item.type == "reasoning":
            reasoning = "".join(part.text or "" for part in item.content) if isinstance(item.content, list) else ""
            continue
        elif item.type == "function_call":
            call = ToolCall(item.call_id, "function", Called(item.name or "", item.arguments))
            if found and found[-1].role == "assistant":
                found[-1].tool_calls = [*(found[-1].tool_calls or []), call]
            else:
                found.append(Message("assistant", tool_calls=[call], reasoning_content=reasoning or None))
        elif item.type == "function_call_output":
            found.append(Message("tool", item.output, tool_call_id=item.call_id))
        elif item.type == "item_reference":
            raise Refused(400, "nothing is stored here: send the item itself", param=f"input[{place}]")
        reasoning = ""
    if not found:
        raise Refused(400, "input: no message", param="input")
    return found


def _chosen(asked: ResponsesRequest) -> tools.Chosen:
    """Functions; tools of OpenAI's own making are left out: nobody here could run them."""
    given = [tool for tool in asked.tools or [] if tool.type == "function" and tool.name]
    known = [tools.described(tool.name or "", tool.description, tool.parameters) for tool in given]
    if isinstance(asked.tool_choice, ToolChoice):
        return tools.chosen(None, asked.tool_choice.name or "", known)
    return tools.chosen(asked.tool_choice, None, known)


async def responses(call: Call) -> Reply:
    asked = await call.parse(ResponsesRequest)
    state = call.state
    state.check_ready()
    if asked.previous_response_id is not None:
        raise Refused(400, "nothing is stored here: send the whole input", param="previous_response_id")
    if asked.background:
        raise Refused(400, "background is not supported: leave it out", param="background")
    grammar = of_format(asked.text.format if asked.text else None, "text.format")
    said = Sampling(temperature=asked.temperature, top_p=asked.top_p)
    params = params_of(said, state.llm.default_params, asked.max_output_tokens, grammar=grammar)
    effort = asked.reasoning.effort if asked.reasoning else None
    messages = as_taken(_messages(asked))
    known = _chosen(asked)
    arguments = template_arguments(None, known.tools, effort)
    one_call = asked.parallel_tool_calls is False
    chat = Chat(messages, arguments, params, one_call=one_call, must_call=known.must)
    generation = await ask(state, chat, call.salt())
    answer = Answer(state.name, asked, params)
    return await reply(answer, generation, bool(asked.stream), state.settings.ping)


class Answer:
    def __init__(self, model: str, asked: ResponsesRequest, params: SamplingParams):
        self._items: list[dict[str, Any]] = []
        self._number = 0  # of the next event
        self._head = {
            "id": f"resp_{uuid.uuid4().hex[:24]}", "object": "response", "created_at": int(time.time()), "model": model,
            "instructions": asked.instructions, "max_output_tokens": asked.max_output_tokens, "metadata": {},
            "parallel_tool_calls": asked.parallel_tool_calls is not False, "previous_response_id": None,
            "temperature": params.temperature, "top_p": params.top_p, "tool_choice": asked.tool_choice or "auto", "tools": [],
            "truncation": "disabled", "error": None, "store": False,
        }  # fmt: skip

    def _response(self, status: str, sequence: Sequence | None = None) -> dict[str, Any]:
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        usage = _usage(sequence) if sequence else None
        return {**self._head, "status": status, "incomplete_details": cut, "output": self._items, "usage": usage}

    def _end(self, sequence: Sequence) -> dict[str, Any]:
        return self._response("incomplete" if reason_of(sequence) == "length" else "completed", sequence)

    async def whole(self, generation: Generation) -> dict[str, Any]:
        blocks = joined([block async for delta in generation.deltas() for block in blocks_of(delta)])
        self._items = [_item(block, _name(block), "completed") for block in blocks]
        return self._end(generation.sequences[0])

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        sequence = generation.sequences[0]
        now, name = Block("text"), ""  # the item that is being said, if it has a name
        try:
            while await generation.more():
                events = []
                for block in (block for delta in generation.came() for block in blocks_of(delta)):
                    if name and (block.kind != now.kind or block.call):
                        events += self._close(now, name)
                        name = ""
                    if not name:
                        now, name = Block(block.kind, "", block.call), _name(block)
                        events += self._open(now, name)
                    now = Block(now.kind, now.text + block.text, now.call)
                    events.append(self._delta(block, name))
                yield b"".join(events)
            if name:
                yield b"".join(self._close(now, name))
            end = self._end(sequence)
            yield self._event(f"response.{end['status']}", response=end)
        except Refused as refused:
            error = openai_error(refused)["error"]
            self._head["error"] = {"code": "server_error", "message": error["message"]}
            yield self._event("response.failed", response=self._response("failed"))

    def _open(self, block: Block, name: str) -> list[bytes]:
        started = _item(block, name, "in_progress")
        events = [self._event("response.output_item.added", output_index=len(self._items), item=started)]
        if block.kind != "call":
            events.append(self._event("response.content_part.added", **self._place(name), part=_part(block)))
        return events

    def _delta(self, block: Block, name: str) -> bytes:
        if block.call:
            place = {"item_id": name, "output_index": len(self._items)}
            return self._event("response.function_call_arguments.delta", **place, delta=block.call.arguments)
        kind = "reasoning_text" if block.kind == "reasoning" else "output_text"
        more: dict[str, Any] = {} if block.kind == "reasoning" else {"logprobs": []}
        return self._event(f"response.{kind}.delta", **self._place(name), delta=block.text, **more)

    def _close(self, block: Block, name: str) -> list[bytes]:
        whole = _item(block, name, "completed")
        if block.call:
            place = {"item_id": name, "output_index": len(self._items)}
            done = {"arguments": block.call.arguments, "name": block.call.name}
            events = [self._event("response.function_call_arguments.done", **place, **done)]
        else:
            kind = "reasoning_text" if block.kind == "reasoning" else "output_text"
            more: dict[str, Any] = {} if block.kind == "reasoning" else {"logprobs": []}
            events = [
                self._event(f"response.{kind}.done", **self._place(name), text=block.text, **more),
                self._event("response.content_part.done", **self._place(name), part=_part(block)),
            ]
        events.append(self._event("response.output_item.done", output_index=len(self._items), item=whole))
        self._items.append(whole)
        return events

    def _place(self, name: str) -> dict[str, Any]:
        return {"item_id": name, "output_index": len(self._items), "content_index": 0}

    def _event(self, kind: str, **content: Any) -> bytes:
        self._number += 1
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), encode({"type": kind, "sequence_number": self._number - 1, **content}))


def _name(block: Block) -> str:
    kind = {"call": "fc", "reasoning": "rs", "text": "msg"}[block.kind]
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def _part(block: Block) -> dict[str, Any]:
    if block.kind == "reasoning":
        return {"type": "reasoning_text", "text": block.text}
    return {"type": "output_text", "text": block.text, "annotations": [], "logprobs": []}


def _item(block: Block, name: str, status: str) -> dict[str, Any]:
    done = status == "completed"
    if block.call:
        arguments = block.call.arguments if done else ""
        call_id = f"call_{name.partition('_')[2]}"
        return {
            "type": "function_call", "id": name, "call_id": call_id, "name": block.call.name, "arguments": arguments,
            "status": status,
        }  # fmt: skip
    content = [_part(block)] if done else []
    if block.kind == "reasoning":
        return {"type": "reasoning", "id": name, "summary": [], "content": content, "status": status}
    return {"type": "message", "id": name, "role": "assistant", "status": status, "content": content}


def _usage(sequence: Sequence) -> dict[str, Any]:
    cached = sequence.finish.cached_tokens if sequence.finish else 0
    return {
        "input_tokens": sequence.prompt_tokens, "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": sequence.token_count, "output_tokens_details": {"reasoning_tokens": sequence.reasoning_tokens},
        "total_tokens": sequence.prompt_tokens + sequence.token_count,
    }  # fmt: skip
