"""numatp: tensor-parallel LLM inference on the NUMA nodes of one server, one rank per node.

from numatp import LLM, SamplingParams

with LLM("smollm2") as llm:
    print(llm.generate("The capital of France is", SamplingParams(max_tokens=16)).text)
"""

from typing import TYPE_CHECKING, Any

from numatp.errors import MachineError, NumatpError, RankError, UserError

if TYPE_CHECKING:
    from numatp.engine.sampling import SamplingParams
    from numatp.llm import LLM
    from numatp.results import Output, Place, RankPages, Scores, Stats
    from numatp.text.grammar import Grammar

__version__ = "0.1.0"
__all__ = [
    "LLM", "Grammar", "MachineError", "NumatpError", "Output", "Place", "RankError", "RankPages", "SamplingParams", "Scores",
    "Stats", "UserError",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    # The command line must choose the ISA before numpy and Numba load, and `numatp --version` needs neither.
    if name in __all__:
        import numatp.llm

        return getattr(numatp.llm, name)
    raise AttributeError(f"module 'numatp' has no attribute '{name}'")
