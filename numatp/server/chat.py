"""POST /v1/chat/completions, as OpenAI's clients know it."""

import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from numatp.engine.token import Token
from numatp.llm import LLM
from numatp.server.conversation import Block, Chat, ask, blocks_of, reason_of
from numatp.server.endpoint import Call
from numatp.server.forms import ResponseFormat, grammars_of, of_format, one_of
from numatp.server.generation import Delta, Generation, Sequence
from numatp.server.logprobs import chat_logprobs
from numatp.server.messages import Messages, Name, as_taken, template_arguments
from numatp.server.refusals import Refused, openai_error
from numatp.server.reply import Reply, encode, reply
from numatp.server.sampling import Count, Sampling, params_of
from numatp.server.tools import Choice, Tools, chosen, tools_of
from numatp.server.usage import progress_of, timings_of, usage_of
from numatp.text.parts.piece import ToolCall

DONE = b"data: [DONE]\n\n"


class StreamOptions(Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Reasoning(Struct):
    effort: Name | None = None


class ChatRequest(Sampling):
    messages: Messages
    model: Name | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    n: Annotated[int, Meta(ge=1, le=16)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Tools | None = None
    tool_choice: Literal["none", "auto", "required"] | Choice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: Name | None = None
    reasoning: Reasoning | None = None
    timings_per_token: bool | None = None
    return_progress: bool | None = None


async def chat_completions(call: Call) -> Reply:
    asked = await call.parse(ChatRequest)
    state = call.state
    state.check_ready()
    effort = asked.reasoning_effort or (asked.reasoning.effort if asked.reasoning else None)
    limit = asked.max_completion_tokens if asked.max_completion_tokens is not None else asked.max_tokens
    if asked.top_logprobs and not asked.logprobs:
        raise Refused(400, "top_logprobs needs logprobs: true", param="top_logprobs")
    choice = asked.tool_choice
    named = choice.function.name if isinstance(choice, Choice) and choice.function else None
    known = chosen(choice if isinstance(choice, str) else None, named, tools_of(asked.tools))
    grammar = one_of(of_format(asked.response_format), *grammars_of(asked))
    logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
    chat = Chat(
        as_taken(asked.messages),
        template_arguments(asked.chat_template_kwargs, known.tools, effort),
        params_of(asked, state.llm.default_params, limit, logprobs=logprobs, grammar=grammar),
        asked.n or 1,
        one_call=asked.parallel_tool_calls is False,
        must_call=known.must,
    )
    generation = await ask(state, chat, call.salt(asked), bool(asked.return_progress and asked.stream))
    answer = ChatAnswer(state.name, state.llm, asked)
    return await reply(answer, generation, bool(asked.stream), state.settings.ping)


class ChatAnswer:
    """How one request is answered."""

    def __init__(self, model: str, llm: LLM, asked: ChatRequest):
        self._llm, self._asked = llm, asked
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex[:24]}", "object": "", "created": int(time.time()), "model": model}
        self._head["system_fingerprint"] = None
        self._calls: dict[int, int] = {}  # of each answer: how many calls it has

    async def whole(self, generation: Generation) -> dict[str, Any]:
        said: list[list[Delta]] = [[] for _ in generation.sequences]
        async for delta in generation.deltas():
            said[delta.number].append(delta)
        choices = [self._choice(i, sequence, said[i]) for i, sequence in enumerate(generation.sequences)]
        body = {**self._head, "object": "chat.completion", "choices": choices, "usage": usage_of(generation.sequences)}
        if generation.sequences[0].finish:
            body["timings"] = timings_of(generation.sequences[0])
        return body

    def _choice(self, index: int, sequence: Sequence, deltas: list[Delta]) -> dict[str, Any]:
        blocks = [block for delta in deltas for block in blocks_of(delta)]
        text = "".join(block.text for block in blocks if block.kind == "text")
        reasoning = "".join(block.text for block in blocks if block.kind == "reasoning")
        calls = [block.call for block in blocks if block.call]
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if reasoning:
            message["reasoning_content"] = reasoning
        if calls:
            message["tool_calls"] = [tool_call(call) for call in calls]
        return {
            "index": index, "message": message, "logprobs": self._logprobs([t for delta in deltas for t in delta.tokens]),
            "finish_reason": reason_of(sequence),
        }  # fmt: skip

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        return chat_logprobs(self._llm.tokenizer, tokens) if self._asked.logprobs else None

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        options = self._asked.stream_options or StreamOptions()
        self._head["object"] = "chat.completion.chunk"
        try:
            for index in range(len(generation.sequences)):
                yield self._chunk(index, {"role": "assistant", "content": ""})
            while await generation.more():
                yield b"".join(event for delta in generation.came() for event in self._events_of(generation, delta, options))
            if options.include_usage:
                yield event_of({**self._head, "choices": [], "usage": usage_of(generation.sequences)})
        except Refused as refused:
            yield event_of(openai_error(refused))
        yield DONE

    def _events_of(self, generation: Generation, delta: Delta, options: StreamOptions) -> list[bytes]:
        sequence = generation.sequences[delta.number]
        more: dict[str, Any] = {}
        if options.continuous_usage_stats:
            more["usage"] = usage_of(generation.sequences)
        if delta.progress:
            more["prompt_progress"] = progress_of(delta.progress, generation.seconds)
            return [self._chunk(delta.number, {}, more=more)]
        logprobs = self._logprobs(list(delta.tokens))
        if delta.finish:
            more["timings"] = timings_of(sequence)
            return [self._chunk(delta.number, {}, reason_of(sequence), logprobs, more)]
        if self._asked.timings_per_token:
            more["timings"] = timings_of(sequence)
        return [self._chunk(delta.number, self._delta(delta.number, block), None, logprobs, more) for block in blocks_of(delta)]

    def _delta(self, index: int, block: Block) -> dict[str, Any]:
        if not block.call:
            return {"reasoning_content" if block.kind == "reasoning" else "content": block.text}
        number = self._calls.get(index, 0)
        self._calls[index] = number + 1
        return {"tool_calls": [{"index": number, **tool_call(block.call)}]}

    def _chunk(
        self, index: int, delta: Mapping[str, Any], finish_reason: str | None = None, logprobs: dict[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> bytes:  # fmt: skip
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return event_of({**self._head, "choices": [choice], **(more or {})})


def event_of(content: Mapping[str, Any]) -> bytes:
    return b"data: %b\n\n" % encode(content)


def tool_call(call: ToolCall) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": {"name": call.name, "arguments": call.arguments},
    }  # fmt: skip
