"""Calls of tools from what formats find: objects in JSON, or texts that get their types from the tool's schema."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from numatp.text.parts.piece import ToolCall
from numatp.text.parts.source import NotACall, Reading, Source

NAMES = ("name", "tool_name", "function")  # what formats call the tool
ARGUMENTS = ("arguments", "parameters")
TYPES = {
    str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object", type(None): "null",
}  # fmt: skip
WORDS = {"true": "true", "false": "false", "null": "null", "none": "null"}  # as templates write Python's


def from_json(text: str) -> Any:
    """A value; line ends in its texts, which JSON forbids and models write, are taken. NotACall for what is none."""

    def refuse(name: str) -> NoReturn:
        raise NotACall  # NaN and Infinity are not JSON

    try:
        return json.loads(text, strict=False, parse_constant=refuse)
    except (ValueError, RecursionError):
        raise NotACall from None


def to_json(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        return text if _is_text(text) else json.dumps(value)
    except (ValueError, RecursionError):  # a number like 1e999
        raise NotACall from None


def _is_text(said: str) -> bool:
    """Whether it has no half of a surrogate pair."""
    try:
        said.encode()
    except UnicodeEncodeError:
        return False
    return True


def call(name: Any, arguments: Any) -> ToolCall:
    """Arguments are an object, or one as a text. NotACall for others."""
    if isinstance(arguments, str) and arguments.strip():
        arguments = from_json(arguments)
    if not isinstance(name, str) or not name.strip() or not _is_text(name) or not isinstance(arguments or {}, dict):
        raise NotACall
    return ToolCall(name, to_json(arguments or {}))


def json_call(text: str) -> ToolCall:
    """From {"name": ..., "arguments": {...}} and its kin."""
    said = from_json(text)
    if not isinstance(said, dict):
        raise NotACall
    name = next((said[key] for key in NAMES if isinstance(said.get(key), str)), None)
    return call(name, next((said[key] for key in ARGUMENTS if key in said), None))


def json_calls(source: Source) -> Reading[None]:
    """One such object, or a list of them, each of which is a call as soon as it is complete."""
    if not (yield from source.has("[")):
        yield json_call((yield from source.value()))
        return
    while True:
        yield from source.space()
        yield json_call((yield from source.value()))
        yield from source.space()
        if not (yield from source.has(",")):
            break
    yield from source.expect("]")


def field(source: Source, close: str, *followers: str) -> Reading[str]:
    """Text up to a mark behind which one of the followers comes: where it stands otherwise, it is part of the text."""
    found = []
    while True:
        found.append((yield from source.until(close)))
        yield from source.expect(close)
        gap = yield from source.space()
        for follower in followers:
            if (yield from source.at(follower)):
                return "".join(found)
        found += [close, gap]


def line(text: str) -> str:
    """Without the line ends that formats put around a value."""
    return text.removeprefix("\n").removesuffix("\n")


class Tools:
    """The tools of a chat by name. given: like {"type": "function", "function": {"name": ..., "parameters": a JSON schema}}."""

    def __init__(self, given: Sequence[Mapping[str, Any]]):
        self._schemas: dict[str, Mapping[str, Any]] = {}
        for tool in given:
            function = tool.get("function", tool) if isinstance(tool, Mapping) else None
            if isinstance(function, Mapping) and isinstance(function.get("name"), str):
                schema = function.get("parameters")
                self._schemas[function["name"]] = schema if isinstance(schema, Mapping) else {}

    def __bool__(self) -> bool:
        return bool(self._schemas)

    def __contains__(self, name: str) -> bool:
        return name in self._schemas

    def typed(self, name: str, texts: Mapping[str, str]) -> ToolCall:
        """A call whose arguments were said as texts."""
        schema = self._schemas.get(name, {})
        properties = schema.get("properties")
        known = properties if isinstance(properties, Mapping) else {}
        return call(name, {key: typed(text, types(known.get(key), schema)) for key, text in texts.items()})


def types(schema: Any, root: Mapping[str, Any]) -> frozenset[str]:
    """What a value may be, in JSON's words; nothing for one of which nothing is said. root: where references lead."""
    found: set[str] = set()
    seen: set[int] = set()
    waiting = [schema]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, Mapping) or id(one) in seen:
            continue
        seen.add(id(one))
        said = one.get("type")
        found |= {kind for kind in (said if isinstance(said, list) else [said]) if isinstance(kind, str)}
        values = one.get("enum", [one["const"]] if "const" in one else [])
        if said is None and isinstance(values, list):
            found |= {TYPES[type(value)] for value in values if type(value) in TYPES}
        if isinstance(one.get("$ref"), str):
            waiting.append(_referred(one["$ref"], root))
        for key in ("anyOf", "oneOf", "allOf"):
            choices = one.get(key)
            waiting += choices if isinstance(choices, list) else []
    return frozenset(found)


def _referred(reference: str, root: Any) -> Any:
    """Of `#/$defs/name`: references to other documents lead nowhere."""
    for step in reference.removeprefix("#/").split("/"):
        root = root.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(root, Mapping) else None
    return root


def typed(text: str, allowed: frozenset[str]) -> Any:
    """The value that a text stands for: the text itself unless the schema allows what it is in JSON."""
    if allowed <= {"string"}:
        return text
    stripped = text.strip()
    try:
        value = from_json(WORDS.get(stripped.lower(), stripped))
    except NotACall:
        return text
    kind = TYPES[type(value)]
    if kind == "number" and "number" not in allowed and "integer" in allowed and value.is_integer():
        return int(value)
    return value if kind in allowed or (kind == "integer" and "number" in allowed) else text
