"""Tools that a model may call, and which of them it must."""

from typing import Annotated, Any, Literal

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


def chosen(choice: Literal["none", "auto", "required"] | Choice | None, tools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that the model is told of. Refused for a choice that cannot be enforced."""
    if choice == "none":
        return []
    if choice in (None, "auto"):
        return tools
    raise Refused(400, "tool_choice can be 'auto' or 'none': that a call must come is not supported", param="tool_choice")
