"""Chat messages to a prompt, by the model's own jinja2 template. The template comes with a model from anywhere, so it runs in
jinja2's sandbox, which lets it reach nothing but its arguments."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

from numatp.errors import UserError

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

REMEDY = "give other messages, or write the prompt yourself and use generate"
PROBE = "hello numatp"  # a message by which it is seen what a template makes of one


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tokens: Mapping[str, str],
    arguments: Mapping[str, Any] | None = None,
) -> str:
    """The prompt that ends where the assistant's answer begins.

    messages: {"role": a role that the template knows, "content": text, or parts like {"type": "text", "text": text}} and whatever
    else the template reads (tool_calls, name, ...). tokens: what the template calls bos_token, eos_token, ... arguments: what else
    is handed to it (enable_thinking, tools, ...). UserError for messages that the template refuses, or cannot digest.
    """
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise UserError(f"message {place} is {str(message)[:60]!r}: it needs a role, like user, and a content")
        if not isinstance(message.get("content"), (str, list, type(None))):
            raise UserError(f"message {place}: its content is {type(message['content']).__name__}: give text")
    if arguments and "messages" in arguments:
        raise UserError("the arguments of a chat template cannot hold 'messages': give them as the messages")
    given = {**tokens, **(arguments or {})}
    return _render(template, _as_taken(template, messages), given)


def _render(template: str, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str:
    import jinja2

    # As transformers calls it: what is not given is None, and not undefined, which templates tell apart.
    usual = {"messages": messages, "add_generation_prompt": True, "tools": None, "documents": None}
    try:
        return _compiled(template).render(usual | dict(given))
    except (RecursionError, MemoryError):
        raise UserError(f"the model's chat template does not end; {REMEDY}") from None
    except (jinja2.TemplateError, TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the model's chat template does not take these messages ({reason}); {REMEDY}") from None


# ---------------------------------------------------------------- contents: a text, or a list of parts


def _as_taken(template: str, messages: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """The messages with contents as the template takes them: texts, or lists of parts."""
    lists = [place for place, message in enumerate(messages) if isinstance(message.get("content"), list)]
    for place in lists:
        _check_parts(place, messages[place]["content"])
    takes_parts = _shows(template, [{"type": "text", "text": PROBE}])
    if lists and not takes_parts:
        return [_with_text(message) for message in messages]
    if takes_parts and not _shows(template, PROBE):
        return [_with_parts(message) for message in messages]
    return messages


def _with_text(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": "\n".join(part["text"] for part in content)} if isinstance(content, list) else message


def _with_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _check_parts(place: int, parts: list[Any]) -> None:
    """UserError for images and the like, of which numatp would compute nothing."""
    for part in parts:
        if not isinstance(part, Mapping) or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise UserError(f"message {place} has a part of type {str(kind)[:40]!r}; numatp takes texts alone: leave it out")


def _shows(template: str, content: str | list[dict[str, str]]) -> bool:
    """Whether the template writes what a message says, and nothing of how it is kept."""
    return _shows_json(template, json.dumps(content))


@lru_cache(maxsize=64)
def _shows_json(template: str, content: str) -> bool:
    try:
        text = _render(template, [{"role": "user", "content": json.loads(content)}], {"bos_token": "", "eos_token": ""})
    except UserError:
        return False
    return PROBE in text and "'text'" not in text and '"text"' not in text


# ---------------------------------------------------------------- jinja2


@lru_cache(maxsize=16)
def _compiled(template: str) -> "Template":
    return _environment().from_string(template)


@cache
def _environment() -> "ImmutableSandboxedEnvironment":
    """As transformers sets it up, which templates are written for."""
    import jinja2  # here, because it costs 40 ms and only chats need it
    from jinja2 import nodes
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %}...{% endgeneration %} marks an assistant's words for training; here it is its content."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
    environment.filters["tojson"] = tojson  # jinja2's own escapes HTML
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    return environment
