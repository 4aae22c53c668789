"""A model's own jinja2 template. It comes with a model from anywhere, so it runs in jinja2's sandbox, which lets it reach nothing
but its arguments."""

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


def render(template: str, messages: Sequence[Mapping[str, Any]], given: Mapping[str, Any]) -> str:
    """Of messages that are as the template takes them. UserError for those that it refuses, or cannot digest."""
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
