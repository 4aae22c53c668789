"""Messages as people and programs write them, and as a template takes them: what it makes of examples tells which form that is."""

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from numatp.errors import UserError
from numatp.text.parts.formats import call_format
from numatp.text.template import render

Message = Mapping[str, Any]
PROBE = "hello numatp"  # a message by which it is seen what a template makes of one
TOOL, KEY = "probe_tool", "probe_key"  # and a call


def as_taken(template: str, messages: Sequence[Message]) -> Sequence[Message]:
    """The messages with roles, contents and calls as the template takes them. UserError for parts that are no text."""
    lists = [place for place, message in enumerate(messages) if isinstance(message.get("content"), list)]
    for place in lists:
        _check_parts(place, messages[place]["content"])
    taken = [_with_known_names(template, message) for message in messages]
    if any(message.get("tool_calls") or message["role"] == "tool" for message in taken):
        taken = _with_calls(template, taken)
    takes_parts = _shows(template, [{"type": "text", "text": PROBE}])
    if lists and not takes_parts:
        return [_with_text(message) for message in taken]
    if takes_parts and not _shows(template, PROBE):
        return [_with_parts(message) for message in taken]
    return taken


# ---------------------------------------------------------------- names of roles and of reasoning


def _with_known_names(template: str, message: Message) -> Message:
    """What one interface calls so and another one otherwise, by the name that the template knows."""
    said = dict(message)
    if said["role"] == "developer" and "developer" not in template:
        said["role"] = "system"
    if "content" in said and said["content"] is None and not said.get("tool_calls"):
        said["content"] = ""
    reasoning = said.get("reasoning_content") or said.get("reasoning")
    if reasoning:
        said.setdefault("reasoning_content", reasoning)
        if "reasoning_content" not in template:
            said.setdefault("thinking", reasoning)
    return said


# ---------------------------------------------------------------- contents: a text, or a list of parts


def _with_text(message: Message) -> Message:
    content = message.get("content")
    return {**message, "content": "\n".join(part["text"] for part in content)} if isinstance(content, list) else message


def _with_parts(message: Message) -> Message:
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
    text = _rendered(template, [{"role": "user", "content": json.loads(content)}])
    return PROBE in text and "'text'" not in text and '"text"' not in text


def _rendered(template: str, messages: Sequence[Message]) -> str:
    """Nothing if the template refuses them."""
    try:
        return render(template, messages, {"bos_token": "", "eos_token": ""})
    except UserError:
        return ""


# ---------------------------------------------------------------- calls of tools, and what came of them


class Form(NamedTuple):
    """How a template takes calls."""

    objects: bool | None  # arguments are an object, or else JSON; None where it shows neither
    none: bool  # the content of a message that has nothing but calls is None, or else a text without letters


def _with_calls(template: str, messages: Sequence[Message]) -> list[Message]:
    form = _form(template)
    rename = call_format(template)
    names: dict[str, str] = {}  # of tools, by the ids of their calls
    ids: dict[str, str] = {}  # that the template wants, by those that were given
    taken: list[Message] = []
    for place, message in enumerate(messages):
        said = dict(message)
        if said.get("tool_calls"):
            calls = [_call(place, call, form) for call in _list(place, said["tool_calls"])]
            for call in calls:
                number = len(names)
                given = call.get("id") or f"call {number}"
                names[given] = call["function"]["name"]
                ids[given] = rename.id(names[given], number) if rename and rename.id else given
                call["id"] = ids[given]
            said["tool_calls"] = calls
            if not said.get("content"):
                said["content"] = None if form.none else ""
        elif said["role"] == "tool" and isinstance(said.get("tool_call_id"), str):
            given = said["tool_call_id"]
            said["tool_call_id"] = ids.get(given, given)
            if given in names:
                said.setdefault("name", names[given])
        taken.append(said)
    return taken


def _list(place: int, calls: Any) -> list[Any]:
    if not isinstance(calls, (list, tuple)):
        raise UserError(f"message {place}: its tool_calls are {type(calls).__name__}: give a list")
    return list(calls)


def _call(place: int, call: Any, form: Form) -> dict[str, Any]:
    """In OpenAI's words, with arguments as the template takes them. A call without "function" around it is taken too."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise UserError(f'message {place} has the call {str(call)[:60]!r}: give {{"function": {{"name": ..., "arguments": ...}}}}')
    arguments = function.get("arguments")
    if isinstance(arguments, str) and form.objects:
        arguments = _object(place, arguments)
    elif not isinstance(arguments, str) and form.objects is False:
        arguments = json.dumps(arguments or {}, ensure_ascii=False)
    said = {"type": "function", "function": {**function, "arguments": {} if arguments is None else arguments}}
    return {**said, "id": call.get("id")}


def _object(place: int, arguments: str) -> Any:
    try:
        said = json.loads(arguments, strict=False) if arguments.strip() else {}
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise UserError(f"message {place} has a call with the arguments {arguments[:60]!r}: give a JSON object")
    return said


@lru_cache(maxsize=16)
def _form(template: str) -> Form:
    """The first form in which a call is shown, and nothing of how it is kept."""
    forms = [Form(objects, none) for objects in (True, False) for none in (True, False)]
    texts = {form: _rendered(template, _chat_with_call(template, form)) for form in forms}
    shown = [form for form in forms if _shows_call(texts[form])]
    if not shown:
        return Form(None, none=False)
    form = shown[0]
    other = form._replace(none=False)
    says_none = other in shown and texts[form].count("None") > texts[other].count("None")
    return other if says_none else form


def _shows_call(text: str) -> bool:
    """Python's own way of writing an object, and JSON in JSON, are not what a model was trained on."""
    return TOOL in text and PROBE in text and f"'{KEY}'" not in text and f'\\"{KEY}' not in text


def _chat_with_call(template: str, form: Form) -> list[Message]:
    rename = call_format(template)
    id = rename.id(TOOL, 0) if rename and rename.id else "call0"
    arguments = {KEY: PROBE} if form.objects else json.dumps({KEY: PROBE})
    call = {"id": id, "type": "function", "function": {"name": TOOL, "arguments": arguments}}
    return [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": None if form.none else "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": id, "name": TOOL, "content": "!"},
    ]
