"""What a request cost: tokens in OpenAI's words, times in llama-server's."""

from typing import Any

from numatp.engine.token import Progress
from numatp.server.generation import Sequence


def usage_of(sequences: list[Sequence], prompts: int = 1) -> dict[str, Any]:
    """prompts: how many different ones; each of them counts once, however many answers it has."""
    ends = [sequence.finish for sequence in sequences if sequence.finish]
    each = ends[:: max(len(ends) // prompts, 1)]
    prompt_tokens = sum(end.prompt_tokens for end in each)
    completion_tokens = sum(sequence.token_count for sequence in sequences)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(end.cached_tokens for end in each)},
        "completion_tokens_details": {"reasoning_tokens": sum(sequence.reasoning_tokens for sequence in sequences)},
    }


def timings_of(sequence: Sequence) -> dict[str, Any]:
    """As llama-server has them: milliseconds, and what of the prompt was computed; of one that goes on, so far."""
    finish = sequence.so_far()
    computed = finish.prompt_tokens - finish.cached_tokens
    prompt, decode = finish.prompt_seconds, finish.decode_seconds
    return {
        "cache_n": finish.cached_tokens,
        "prompt_n": computed,
        "prompt_ms": 1e3 * prompt,
        "prompt_per_token_ms": 1e3 * prompt / max(computed, 1),
        "prompt_per_second": computed / prompt if prompt else 0.0,
        "predicted_n": sequence.token_count,
        "predicted_ms": 1e3 * decode,
        "predicted_per_token_ms": 1e3 * decode / max(finish.decoded_tokens, 1),
        "predicted_per_second": finish.decoded_tokens / decode if decode else 0.0,
    }


def progress_of(progress: Progress, seconds: float) -> dict[str, Any]:
    return {"total": progress.total, "cache": progress.cached, "processed": progress.done, "time_ms": round(1e3 * seconds)}
