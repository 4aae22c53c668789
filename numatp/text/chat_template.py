"""Chat messages to a prompt, by the model's own template."""

from collections.abc import Mapping, Sequence
from typing import Any

from numatp.errors import UserError
from numatp.text.messages import as_taken
from numatp.text.template import REMEDY, render

END = "numatpGoesOnHere"  # stands where a prompt ends in the middle of a message


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """The prompt that ends where the assistant's answer begins: behind the last message, or at its end if it is the assistant's.

    messages: {"role": a role that the template knows, "content": text, or parts like {"type": "text", "text": text}} and whatever
    else the template reads: `tool_calls` with arguments as an object or as JSON, `reasoning_content`, ... tokens: what the template
    calls bos_token, eos_token, ... arguments: what else is handed to it (enable_thinking, tools, ...); `continue_final_message`,
    False or True, says whether the answer goes on with the last message. UserError for messages that the template refuses, or
    cannot digest.
    """
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"message {place} is {str(message)[:60]!r}: it needs a role, like user, and a content")
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise UserError(f"message {place}: its content is {type(message['content']).__name__}: give text")
    given = {**tokens, **(arguments or {})}
    if "messages" in given:
        raise UserError("the arguments of a chat template cannot hold 'messages': give them as the messages")
    goes_on = given.pop("continue_final_message", None)
    if goes_on and not _is_begun(messages):
        raise UserError("continue_final_message is for chats whose last message is the assistant's, with a text: give one")
    if goes_on is None:
        goes_on = _is_begun(messages) and "add_generation_prompt" not in given
    if not goes_on:
        return render(template, as_taken(template, messages), given)
    return _begun(template, messages, given)


def _is_begun(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the last message is the beginning of the assistant's answer."""
    last = messages[-1] if messages else {}
    return last.get("role") == "assistant" and bool(last.get("content")) and not last.get("tool_calls") and len(messages) > 1


def _begun(template: str, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str:
    """The prompt up to the end of the last message's content."""
    *before, last = as_taken(template, messages)
    content = last["content"]
    marked = content + END if isinstance(content, str) else [*content[:-1], {**content[-1], "text": content[-1]["text"] + END}]
    text = render(template, [*before, {**last, "content": marked}], {**given, "add_generation_prompt": False})
    prompt, found, _ = text.rpartition(END)
    if not found:
        raise UserError(f"the model's chat template does not show the assistant's last message; {REMEDY}")
    return prompt
