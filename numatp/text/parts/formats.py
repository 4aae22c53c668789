"""Which formats an answer is written in: told by the marks in the model's chat template, never by the model's name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from numatp.text.parts import command, deepseek, fence, gemma, glm, granite, hermes, kimi, llama, minimax, mistral, qwen_coder
from numatp.text.parts.format import CallFormat, Thinking

# Reasoning by the marks around it. A template that knows the second one belongs to a model that writes it.
THINKING = (
    Thinking("<think>", "</think>"),
    Thinking("[THINK]", "[/THINK]"),
    Thinking("<|START_THINKING|>", "<|END_THINKING|>"),
    Thinking("<|channel>thought\n", "<channel|>", ("<|channel>",)),
    Thinking("<seed:think>", "</seed:think>"),
    Thinking("◁think▷", "◁/think▷"),
)
# The first whose marks are all in the template.
CALLS = (
    qwen_coder.FORMAT, glm.FORMAT, minimax.FORMAT, kimi.FORMAT, deepseek.FORMAT, deepseek.MARKUP, command.ACTION, command.FENCED,
    mistral.FORMAT, granite.FORMAT, gemma.FORMAT, gemma.FUNCTION, hermes.FORMAT, fence.FORMAT, llama.FORMAT,
)  # fmt: skip


def call_format(template: str) -> CallFormat | None:
    return next((form for form in CALLS if all(mark in template for mark in form.told_by)), None)


@dataclass(frozen=True)
class Parts:
    """How the answer to a chat is written. tools: that the model was told of, as Tools takes them. Without, calls are text."""

    template: str
    tools: Sequence[Mapping[str, Any]] = ()

    @property
    def thinking(self) -> Thinking | None:
        return next((marks for marks in THINKING if marks.close in self.template), None)

    @property
    def calls(self) -> CallFormat | None:
        return call_format(self.template) if self.tools else None

    def tokens(self) -> tuple[str, ...]:
        """What may be special tokens among the marks."""
        thinking, calls = self.thinking, self.calls
        around = (thinking.open, thinking.close, *thinking.tokens) if thinking else ()
        return (*around, *calls.opening, *calls.first, *calls.marks) if calls else around
