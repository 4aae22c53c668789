"""Chat messages as OpenAI's clients send them."""

from typing import Annotated, Any

from msgspec import Meta, Struct

from numatp.server.refusals import Refused

Name = Annotated[str, Meta(max_length=256)]
MOST_MESSAGES = 1 << 16  # of one chat
TEXTS = ("text", "input_text", "output_text")  # parts that are text; OpenAI's two interfaces name them differently
RESERVED = {
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "chat_template",
    "bos_token",
    "eos_token",
    "unk_token",
    "pad_token",
}


class Part(Struct):
    type: Name = "text"
    text: str | None = None
    refusal: str | None = None


class Function(Struct):
    name: Name = ""
    arguments: str | dict[str, Any] | None = None


class ToolCall(Struct):
    id: Name | None = None
    type: Name | None = None
    function: Function | None = None


class Message(Struct):
    role: Name
    content: str | list[Part] | None = None
    name: Name | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Name | None = None
    reasoning_content: str | None = None  # DeepSeek's word, and llama-server's
    reasoning: str | None = None  # gpt-oss's and vLLM's


Messages = Annotated[list[Message], Meta(min_length=1, max_length=MOST_MESSAGES)]


def as_taken(messages: list[Message]) -> list[dict[str, Any]]:
    """The messages as LLM.encode takes them. Refused for pictures and the like."""
    taken = []
    for place, message in enumerate(messages):
        one: dict[str, Any] = {"role": message.role, "content": _content(place, message.content)}
        reasoning = message.reasoning_content or message.reasoning
        others = {"name": message.name, "tool_call_id": message.tool_call_id, "reasoning_content": reasoning}
        one.update({name: value for name, value in others.items() if value is not None})
        if message.tool_calls:
            one["tool_calls"] = [_call(place, call) for call in message.tool_calls]
        taken.append(one)
    return taken


def _content(place: int, content: str | list[Part] | None) -> str | list[dict[str, str]] | None:
    if content is None or isinstance(content, str):
        return content
    found = []
    for number, part in enumerate(content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in (*TEXTS, "refusal") or text is None:
            raise Refused(
                400, f"a part of type {part.type[:40]!r} is not supported: this model reads text alone, and nothing is fetched",
                param=f"messages[{place}].content[{number}]",
            )  # fmt: skip
        found.append({"type": "text", "text": text})
    return found


def _call(place: int, call: ToolCall) -> dict[str, Any]:
    if call.function is None:
        raise Refused(400, "a tool call without a function", param=f"messages[{place}].tool_calls")
    arguments = {} if call.function.arguments is None else call.function.arguments
    return {"id": call.id or "", "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


def template_arguments(given: dict[str, Any] | None, tools: list[dict[str, Any]] | None, effort: str | None) -> dict[str, Any]:
    """What the template reads beside the messages. Refused for names that are not the client's to say."""
    for name in given or {}:
        if name in RESERVED:
            raise Refused(400, f"chat_template_kwargs cannot hold {name!r}", param="chat_template_kwargs")
    found = dict(given or {})
    if tools:
        found["tools"] = tools
    if effort is not None:
        found.setdefault("reasoning_effort", effort)
        if effort == "none":
            found.setdefault("enable_thinking", False)
    return found
