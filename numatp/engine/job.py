"""What one run of the engine is asked to do; the same on every rank, and small enough to hand to a worker process."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from numatp.engine.drafts import ALIKE, ALIKE_FOR_EXPERTS
from numatp.errors import UserError
from numatp.kernels.layout import CACHE_TYPES

if TYPE_CHECKING:
    from numatp.files.model_file import ModelFile
    from numatp.models.layers import Layer
    from numatp.models.spec import Spec

MAX_CONTEXT = 8192  # tokens, unless more are asked for
MARGIN = 256 << 20  # bytes that a node keeps free beside a rank's slice
SPECS = ("off", "ngram", "auto")  # no guesses; also from what the text has said before; that only where it is likely to pay
WIRES = ("f32", "bf16")
MOST_DRAFTS = 8  # guessed tokens in one Step, of all sequences
PROCESS_BYTES = 64 << 20  # of a rank before it loads anything: interpreter, libraries and headers; a memory limit counts them
ROWS_UNIT = 16  # whole groups of rows on every ISA


@dataclass(frozen=True)
class Job:
    model: str  # path of the file
    context: int | None = None  # tokens of all sequences in the cache; None: what the model was trained for, up to MAX_CONTEXT
    threads: int | None = None  # per rank
    nodes: str | None = None
    cpus: str | None = None
    keep_binding: bool = False
    interleave: Sequence[int] | None = None  # nodes over which new pages are spread, for comparisons
    tensor_split: Sequence[float] | str | None = None  # share of the model per rank, or "auto"
    max_rows: int = 512  # tokens in one Step; taken up to a multiple of 16
    max_sequences: int = 1  # at the same time
    prefix_cache: bool = False  # whether what was computed of a text is kept for others that begin with it
    prompt_cache_dir: str | None = None  # where that is kept for the next process
    prompt_cache_mib: int = 8192  # MiB that it may take there
    checkpoint_every: int = 1024  # tokens between two states of recurrent layers that are kept for that; whole blocks of the cache
    step_ms: int = 250  # that a token should take on average while prompts come in beside it (engine/pace.py)
    allow_remote: bool = False
    cache_type: str = "f16"  # how keys and values are kept: one of CACHE_TYPES (kernels/layout.py)
    measure: int = 0  # bytes that all ranks together read for the roofline, 0: as many as are right; of engines that measure
    rehearse: bool = False  # such an engine's clock counts what each thread itself has run: there are more threads than cores
    quantize: str | None = None  # matrices of floats: "q8", "q4" or "none"; None: "q8" for a folder, "none" for a GGUF file
    spec: str = "off"  # whether tokens are guessed and checked, several in one Step: one of SPECS
    wire: str = "f32"  # how sums go between hosts: one of WIRES
    pipeline: bool = False  # whether hosts hold layers, which their ranks cut, instead of slices of all
    same_bits: bool = False  # logits are the same for 1, 2, 4 and 8 ranks
    check_ranks: bool = False  # after each Step: do all ranks hold the same bits where they must?


def context_of(job: Job, trained: int) -> int:
    """Tokens that the cache holds. UserError for more than the model was trained for."""
    context = job.context or min(trained, MAX_CONTEXT)
    if not 0 < context <= trained:
        raise UserError(f"-c {context}: the model was trained for 1 to {trained} tokens")
    return context


def slots_of(job: Job, context: int) -> int:
    """States of recurrent layers: those of the sequences that run, and where prefixes are kept two for each and one every so many
    tokens."""
    kept = 2 * job.max_sequences + context // job.checkpoint_every if job.prefix_cache else 0
    return job.max_sequences + kept


def cache_type_of(job: Job, layers: "Iterable[Layer]") -> str:
    """UserError where a layer's keys and values cannot be kept so."""
    if job.cache_type not in CACHE_TYPES:
        raise UserError(f"the cache cannot be of type {job.cache_type!r}; choose from {', '.join(CACHE_TYPES)}")
    for layer in layers:
        if refusal := layer.refusal(job.cache_type):
            raise UserError(refusal)
    return job.cache_type


def wire_of(job: Job) -> str:
    """UserError for none."""
    if job.wire not in WIRES:
        raise UserError(f"wire is {job.wire!r}; choose from {', '.join(WIRES)}")
    return job.wire


def drafts_of(job: Job) -> int:
    """Tokens that may be guessed in one Step. UserError for a word that says no way to guess."""
    if job.spec not in SPECS:
        raise UserError(f"spec is {job.spec!r}; choose from {', '.join(SPECS)}")
    return 0 if job.spec == "off" else MOST_DRAFTS


def alike_of(job: Job, spec: "Spec") -> int:
    """Tokens that the text must have said before for what came after them to be guessed; 0: nothing is guessed but what a grammar
    makes sure of."""
    if job.spec == "off":
        return 0
    return ALIKE_FOR_EXPERTS if job.spec == "auto" and spec.experts_used else ALIKE


def default_quantize(file: "ModelFile") -> str:
    """What becomes of matrices of floats on load, if the user does not say."""
    from numatp.files.huggingface import HuggingFaceFile  # loads numpy, which a rank must not before it is bound

    return "q8" if isinstance(file, HuggingFaceFile) else "none"


def quantize_of(job: Job, file: "ModelFile") -> str:
    from numatp.weights.rules import QUANTIZED  # loads numpy too

    if job.quantize not in (None, *QUANTIZED):
        raise UserError(f"quantize is {job.quantize!r}; choose from {', '.join(QUANTIZED)}")
    return job.quantize or default_quantize(file)


def rows_of(job: Job, context: int) -> int:
    """Rows that a Step has at most: some for a prompt beside all who decode, and no more than the context has tokens."""
    return -(-min(max(job.max_rows, job.max_sequences + 1), context) // ROWS_UNIT) * ROWS_UNIT
