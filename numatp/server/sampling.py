"""How a request says the next token is chosen: the fields of all interfaces, in one place, and what is not supported of them."""

import random
from dataclasses import replace
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from numatp.engine.sampling import SamplingParams
from numatp.server.refusals import Refused

Count = Annotated[int, Meta(ge=1, le=(1 << 31) - 1)]
Probability = Annotated[float, Meta(ge=0, le=1)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Factor = Annotated[float, Meta(gt=0, le=100)]
Stop = Annotated[str, Meta(max_length=256)]
Stops = Annotated[list[Stop], Meta(max_length=16)]
Salt = Annotated[str, Meta(min_length=1, max_length=256)]
TokenId = Annotated[int, Meta(ge=0, le=(1 << 31) - 1)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
SMALLEST = 1e-9  # of top_p: 0 means the most probable token alone

# What others compute and numatp does not, and the values with which it changes nothing: some clients always send all they know.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "mirostat": (0,), "typical_p": (1,), "tfs_z": (1,), "top_a": (0,), "dry_multiplier": (0,), "xtc_probability": (0,),
    "dynatemp_range": (0,), "top_n_sigma": (-1, 0), "smoothing_factor": (0,), "length_penalty": (1,), "best_of": (1,),
    "use_beam_search": (False,), "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (),
    "structured_outputs": (), "functions": ([],), "function_call": ("none",), "audio": (), "web_search_options": (),
    "suffix": ("",), "prompt_embeds": (), "post_sampling_probs": (False,), "lora": ([],), "image_data": ([],),
    "multimodal_data": ([],), "samplers_sequence": (), "echo": (False,), "prompt_logprobs": (0,), "n_keep": (0,), "n_discard": (0,),
}  # fmt: skip


class Sampling(Struct, kw_only=True):  # type: ignore[call-arg,unused-ignore]  # where mypy finds no msgspec
    """Fields that every request for text may have. Null is as good as absent."""

    temperature: Annotated[float, Meta(ge=0, le=100)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1 << 31)] | None = None
    min_p: Probability | None = None
    repeat_penalty: Factor | None = None  # llama-server's word
    repetition_penalty: Factor | None = None  # vLLM's
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Bias] | list[tuple[TokenId, Bias]] | None = None  # llama-server takes pairs
    seed: Annotated[int, Meta(ge=-(1 << 63), le=(1 << 63) - 1)] | None = None
    stop: Stop | Stops | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=(1 << 31) - 1)] | None = None
    ignore_eos: bool | None = None
    grammar: str | None = None  # GBNF, llama-server's
    json_schema: dict[str, Any] | None = None  # likewise
    cache_salt: Salt | None = None  # vLLM's: only requests with the same one share what the cache has of their beginnings
    cache_prompt: bool | None = None  # llama-server's: false takes nothing from the cache


def params_of(asked: Sampling, usual: SamplingParams, max_tokens: int | None, **more: Any) -> SamplingParams:
    """usual: what holds where the request says nothing. max_tokens: None is as many as fit."""
    penalty = asked.repeat_penalty if asked.repeat_penalty is not None else asked.repetition_penalty
    given: dict[str, Any] = {
        "temperature": asked.temperature, "top_p": None if asked.top_p is None else max(asked.top_p, SMALLEST),
        "top_k": asked.top_k if asked.top_k is None else max(asked.top_k, 0), "min_p": asked.min_p, "repeat_penalty": penalty,
        "presence_penalty": asked.presence_penalty, "frequency_penalty": asked.frequency_penalty,
        "min_tokens": asked.min_tokens, "ignore_eos": asked.ignore_eos,
    }  # fmt: skip
    if max_tokens is not None and asked.min_tokens is not None:
        given["min_tokens"] = min(asked.min_tokens, max_tokens)
    stops = [asked.stop] if isinstance(asked.stop, str) else asked.stop or []
    seed = asked.seed if asked.seed is not None and asked.seed != -1 else random.SystemRandom().getrandbits(32)
    return replace(
        usual, **{name: value for name, value in given.items() if value is not None}, logit_bias=_biases(asked.logit_bias),
        seed=seed, max_tokens=max_tokens, stop=tuple(text for text in stops if text), **more,
    )  # fmt: skip


def _biases(given: dict[str, float] | list[tuple[int, float]] | None) -> dict[int, float]:
    if isinstance(given, list):
        return dict(given)
    found = {}
    for token, bias in (given or {}).items():
        if not token.isascii() or not token.isdigit() or len(token) > 9:
            raise Refused(400, f"logit_bias has {token[:20]!r} where a token id belongs", param="logit_bias")
        found[int(token)] = bias
    return found


def check_supported(body: bytes, kind: type[Any]) -> None:
    """Refused for a field that would change the answer and is not supported; `kind` does not know it."""
    if not issubclass(kind, Sampling):
        return
    for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items():
        neutral = UNSUPPORTED.get(name)
        if neutral is None or name in kind.__struct_fields__:
            continue
        value = msgspec.json.decode(raw)
        if value is not None and not any(value == one for one in neutral):
            raise Refused(400, f"{name} is not supported: leave it out", param=name)
