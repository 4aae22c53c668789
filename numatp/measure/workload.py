"""What a benchmark runs, in llama-bench's terms."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """A prompt and generation of so many tokens, after `depth` tokens that are not timed."""

    prompt: int
    generated: int
    depth: int
    batch: int  # tokens of a prompt between two logits
    ubatch: int  # of one Step

    @property
    def name(self) -> str:
        parts = [f"pp{self.prompt}" * bool(self.prompt), f"tg{self.generated}" * bool(self.generated)]
        return "+".join(filter(None, parts)) + f" @ d{self.depth}" * bool(self.depth)

    @property
    def length(self) -> int:
        return self.prompt + self.generated + self.depth
