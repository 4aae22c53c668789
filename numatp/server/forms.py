"""What form an answer must have: JSON of a schema, a grammar, or a call of a tool."""

import json
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Struct

from numatp.errors import UserError
from numatp.server.messages import Name
from numatp.server.refusals import Refused
from numatp.server.sampling import Sampling
from numatp.text.grammar import Grammar
from numatp.text.parts.piece import Piece, ToolCall
from numatp.text.stream import TextStream


class JSONSchema(Struct):
    name: Name | None = None
    schema: dict[str, Any] | None = None


class ResponseFormat(Struct):
    type: Name
    json_schema: JSONSchema | None = None
    schema: dict[str, Any] | None = None  # llama-server's, and that of OpenAI's responses


def of_format(asked: ResponseFormat | None, param: str = "response_format") -> Grammar | None:
    if asked is None or asked.type == "text":
        return None
    schema = asked.json_schema.schema if asked.json_schema else asked.schema
    if asked.type == "json_schema" and schema is None:
        raise Refused(400, f"{param}: json_schema needs a schema", param=param)
    if asked.type not in ("json_schema", "json_object"):
        raise Refused(
            400, f"{param} of type {asked.type[:40]!r} is not supported: text, json_object and json_schema are", param=param
        )
    try:
        return Grammar.json_object() if schema is None else Grammar.json_schema(schema)
    except UserError as error:
        raise Refused(400, str(error), param=param) from None


def grammars_of(asked: Sampling) -> list[Grammar | None]:
    """llama-server's own fields."""
    try:
        gbnf = Grammar.gbnf(asked.grammar) if asked.grammar else None
        return [gbnf, None if asked.json_schema is None else Grammar.json_schema(asked.json_schema)]
    except UserError as error:
        raise Refused(400, str(error), param="grammar" if asked.json_schema is None else "json_schema") from None


def one_of(*grammars: Grammar | None) -> Grammar | None:
    """The one that was given."""
    given = [grammar for grammar in grammars if grammar]
    if len(given) > 1:
        raise Refused(400, "the answer can follow one grammar or schema: give one of them", param="grammar")
    return given[0] if given else None


def of_call(tools: list[dict[str, Any]]) -> Grammar:
    """A call of one of these tools, as JSON whatever format the model would write calls in."""
    calls = [
        {
            "type": "object", "additionalProperties": False, "required": ["name", "arguments"],
            "properties": {"name": {"const": tool["function"]["name"]}, "arguments": tool["function"]["parameters"]},
        }
        for tool in tools
    ]  # fmt: skip
    try:
        return Grammar.json_schema({"anyOf": calls} if len(calls) > 1 else calls[0])
    except UserError as error:
        raise Refused(400, f"tools: {error}", param="tools") from None


class CallReader:
    """Reads an answer that is such a call, maybe behind reasoning: nothing of the call can be shown before it is whole.

    stream: which reads the answer as text.
    """

    stopped, stop = False, ""

    def __init__(self, stream: TextStream):
        self._stream, self._text = stream, ""

    def push(self, token: int) -> list[Piece]:
        return self._reasoning(self._stream.push(token))

    def finish(self) -> list[Piece]:
        """The call; what was cut off before its end is text."""
        reasoning = self._reasoning(self._stream.finish())
        try:
            call = msgspec.json.decode(self._text, type=dict[str, Any])
        except msgspec.MsgspecError:
            return [*reasoning, Piece(self._text)] if self._text else reasoning
        arguments: Mapping[str, Any] = call["arguments"]
        return [*reasoning, Piece("", "answer", (ToolCall(call["name"], json.dumps(arguments, ensure_ascii=False)),))]

    def _reasoning(self, pieces: list[Piece]) -> list[Piece]:
        """Of what was said; the rest is kept."""
        self._text += "".join(piece.text for piece in pieces if piece.part == "answer")
        return [piece for piece in pieces if piece.part != "answer"]
