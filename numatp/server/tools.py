"""Tools that a model may call, and which of them it must."""

from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct

from numatp.server.messages import Name
from numatp.server.refusals import Refused


class Described(Struct):
    name: Annotated[str, Meta(min_length=1, max_length=256)]
    description: str | None = None
    parameters: dict[str, Any] | None = None  # JSON schema
    strict: bool | None = None


class Tool(Struct):
    type: Name = "function"
    function: Described | None = None


Tools = Annotated[list[Tool], Meta(max_length=256)]


class Named(Struct):
    name: Name


class Choice(Struct):
    type: Name = "function"
    function: Named | None = None


def described(name: str, description: str | None, parameters: dict[str, Any] | None) -> dict[str, Any]:
    """As templates know it."""
    function = {"name": name, "description": description or "", "parameters": parameters or {"type": "object", "properties": {}}}
    return {"type": "function", "function": function}


def tools_of(tools: list[Tool] | None) -> list[dict[str, Any]]:
    taken = []
    for place, tool in enumerate(tools or []):
        if tool.type != "function" or tool.function is None:
            raise Refused(400, f"a tool of type {tool.type[:40]!r} is not supported: functions alone are", param=f"tools[{place}]")
        taken.append(described(tool.function.name, tool.function.description, tool.function.parameters))
    return taken


class Chosen(NamedTuple):
    """The tools that the model is told of; must: its answer has to be a call of one of them."""

    tools: list[dict[str, Any]]
    must: bool = False


def chosen(choice: str | None, name: str | None, tools: list[dict[str, Any]]) -> Chosen:
    """choice: none, auto or required. name: of the one that must be called, if one is named."""
    if choice == "none":
        return Chosen([])
    if name is not None:
        named = [tool for tool in tools if tool["function"]["name"] == name]
        if not named:
            raise Refused(400, f"tool_choice names {name[:80]!r}, which is none of the tools", param="tool_choice")
        return Chosen(named[:1], must=True)
    if choice == "required" and not tools:
        raise Refused(400, "tool_choice is 'required' and there are no tools", param="tool_choice")
    return Chosen(tools, must=choice == "required")
