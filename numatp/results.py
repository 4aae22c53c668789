"""What the library answers with: values that a script may keep, compare and write as JSON."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from numatp.engine.token import Token
from numatp.text.parts.piece import ToolCall


@dataclass(frozen=True)
class Output:
    """One answer."""

    text: str
    token_ids: list[int]
    finish_reason: Literal["stop", "length", "cancelled"]
    prompt_tokens: int
    prompt_seconds: float  # until the first token
    decoded_tokens: int
    decode_seconds: float
    reasoning: str = ""  # what the model says to itself before its answer
    cached_tokens: int = 0  # of the prompt, found in the cache instead of computed
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[Token, ...] = ()  # of token_ids, where the params asked for them
    prompt_logprobs: tuple[Token, ...] = ()  # of the prompt's tokens, likewise; the first has none

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "Output":
        """From what asdict gave, after a way through JSON."""
        calls = tuple(ToolCall(*call) for call in told["tool_calls"])
        tokens = {name: tuple(map(Token.from_json, told[name])) for name in ("logprobs", "prompt_logprobs")}
        return cls(**{**told, **tokens, "tool_calls": calls})


@dataclass(frozen=True)
class Scores:
    """How probable a text was, token by token."""

    token_ids: list[int]
    logprobs: list[float]  # natural logarithm, of each token but the first, given all before it


@dataclass(frozen=True)
class RankPages:
    """Pages of one rank by the kernel's own count, in pages of the system's size (4 KiB)."""

    rank: int
    node: int  # where they should be
    groups: dict[str, dict[int, int]]  # weights by tensor (of all layers together), "cache", "window": node to pages

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> "RankPages":
        """From the engine's words for one rank, where nodes are texts."""
        groups = {name: {int(node): count for node, count in nodes.items()} for name, nodes in said["groups"].items()}
        return cls(said["rank"], said["node"], groups)

    @property
    def by_node(self) -> dict[int, int]:
        """Pages of all groups."""
        total: Counter[int] = Counter()
        for nodes in self.groups.values():
            total.update(nodes)
        return dict(sorted(total.items()))

    @property
    def pages(self) -> int:
        return sum(self.by_node.values())

    @property
    def local(self) -> int:
        return self.by_node.get(self.node, 0)

    @property
    def percent_local(self) -> float:
        return 100 * self.local / max(self.pages, 1)


@dataclass(frozen=True)
class Place:
    """Where the model is."""

    model: str  # path
    ranks: int
    threads: int  # of this rank
    context: int  # tokens of all sequences together
    trained_context: int  # tokens that the model was trained for
    placement: str  # one line for people
    weight_bytes: int  # of this rank
    cache_bytes: int  # of this rank


@dataclass(frozen=True)
class Stats:
    """What loading took, and what decoding takes."""

    load_seconds: float
    weight_bytes_per_token: int  # that all ranks together read to decode one token
    # By rank: its node (of several hosts a text that names both), and the bytes that it reads of them.
    reads: list[tuple[int | str, int]]
    pages: str  # one line: where the kernel says the weights are
