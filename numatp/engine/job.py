"""What one run of the engine is asked to do; the same on every rank, and small enough to hand to a worker process."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Job:
    model: str  # path of the file
    context: int | None = None  # tokens of all sequences in the cache; None: what the model was trained for, up to MAX_CONTEXT
    threads: int | None = None  # per rank
    nodes: str | None = None
    cpus: str | None = None
    keep_binding: bool = False
    max_rows: int = 512  # tokens in one Step; taken up to a multiple of 16
    max_sequences: int = 1  # at the same time
    allow_remote: bool = False
    cache_type: str = "f16"
    measure: int | None = None  # bytes that all ranks together read for the roofline (0: as many as are right); None: no measuring
    quantize: str | None = None  # matrices of floats: "q8", "q4" or "none"; None: "q8" for a folder, "none" for a GGUF file
    check_ranks: bool = False  # after each Step: do all ranks hold the same bits where they must?
