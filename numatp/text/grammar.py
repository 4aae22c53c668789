"""What form an answer must have, as a user says it. Matched token by token in text/matcher.py."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from numatp.errors import UserError

Kind = Literal["json_schema", "regex", "gbnf", "lark"]
MOST_BYTES = 1 << 18  # of a grammar
MOST_LEVELS = 64  # of a schema; deeper ones could exhaust the stack of what compiles them


@dataclass(frozen=True)
class Grammar:
    """UserError for what is no text, too long or no schema; whether it compiles is seen when it is used.

    Of a schema and of a regular expression the whole answer is one match. gbnf: llama.cpp's grammars. lark: llguidance's.
    """

    kind: Kind
    text: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or not isinstance(self.text, str):
            raise UserError(f"a grammar is a kind ({', '.join(get_args(Kind))}) and a text")
        if len(self.text.encode(errors="surrogatepass")) > MOST_BYTES:
            raise UserError(f"the grammar is longer than {MOST_BYTES} bytes: give a smaller one")

    @classmethod
    def json_schema(cls, schema: str | Mapping[str, Any]) -> "Grammar":
        """JSON that fits a schema, given as JSON or as what that means."""
        try:
            found = json.loads(schema) if isinstance(schema, str) else schema
            if not isinstance(found, Mapping):
                raise ValueError("no object")
            text = json.dumps(found)
        except (ValueError, TypeError, RecursionError) as error:
            raise UserError(f"the JSON schema is no JSON object ({error}): correct it") from None
        if _levels(found) > MOST_LEVELS:
            raise UserError(f"the JSON schema is nested deeper than {MOST_LEVELS} levels: give a flatter one")
        return cls("json_schema", text)

    @classmethod
    def json_object(cls) -> "Grammar":
        """Any JSON object."""
        return cls("json_schema", '{"type": "object"}')

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        return cls("regex", pattern)

    @classmethod
    def gbnf(cls, text: str) -> "Grammar":
        return cls("gbnf", text)

    @classmethod
    def lark(cls, text: str) -> "Grammar":
        return cls("lark", text)


def _levels(value: Any) -> int:
    """Of objects and lists within each other."""
    count, level = 0, [value]
    while level := [one for one in level if isinstance(one, (Mapping, list, tuple))]:
        count += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, Mapping) else one)]
    return count
