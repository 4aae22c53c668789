"""The tokenizer of a Hugging Face folder as GGUF's metadata describes one (`tokenizer.*`)."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numatp.errors import listed
from numatp.files.gguf_header import fail, quote
from numatp.files.gguf_writer import encoded
from numatp.text.tokenizer import END_NAMES, NORMAL, SPACE, TEMPLATE, UNKNOWN, UNUSED, USER_DEFINED, byte_level_steps
from numatp.text.tokenizer_json import FolderTokenizer
from numatp.text.words import WORDS

# What one rule or another cuts differently: contractions, runs of digits, signs, spaces, line ends, scripts, combining marks.
PROBE = (
    "I'm we'LL they'd don't 1234567 x12 3.14 hello_world camelCaseWord HTTPServer 'quoted' a/b//c #tag $9 (x) !!!\n\n\n  two  three"
    "   \ttab\r\n\r\n end. 你好世界。 こんにちはカタ 한국어 Привет αβγ مرحبا नमस्ते สวัสดี"
    " e\u0301te\u0301 ǅa ½²٤ 😀🚀 ！？ …— ==> +=\n/\n;\r\n x"
)

# What "tokenizer.ggml.add_space_prefix" and the kind "llama" say.
PREFIXES = [
    {"type": "Prepend", "prepend": SPACE},
    {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
]


def vocabulary(folder: Path, size: int, note: Callable[[str], None] = lambda line: None) -> dict[str, bytes]:
    """By key what a GGUF file says of the tokenizer, whose vocabulary is filled up to `size` tokens, as the model's matrices have.

    note: gets a line for each thing that changes few texts and that GGUF cannot say. UserError for what
    changes many, for a tokenizer that is missing, or that GGUF or numatp has no name for.
    """
    tokenizer = FolderTokenizer(folder)
    path, model = tokenizer.path, tokenizer.described.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        fail(path, f"its model is of type {quote(model and model.get('type'))}, and numatp writes BPE only; use another model")
    if tokenizer.vocab_size > size:
        fail(path, f"has {tokenizer.vocab_size} tokens, and the embedding {size} rows; download both again")
    _check(path, tokenizer, note)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or ()]
    padding = size - tokenizer.vocab_size
    tokens, kinds = [*tokenizer.tokens, *[""] * padding], [*tokenizer.kinds, *[NORMAL] * padding]
    for id, token in enumerate(tokens):
        if not token:  # names must differ
            tokens[id], kinds[id] = f"[PAD{id}]", UNUSED
    found: dict[str, Any] = {"add_bos_token": tokenizer.bos is not None, "add_eos_token": tokenizer.eos is not None}
    found |= _special(tokenizer)
    if tokenizer.byte_level:
        found |= {"model": "gpt2", "pre": _rule(path, tokenizer, bool(model.get("ignore_merges"))), "merges": merges}
    else:
        ids = {token: id for id, token in enumerate(tokens)}
        unknown = ids.get(model.get("unk_token") or "")
        if unknown is not None:
            kinds[unknown] = UNKNOWN
            found["unknown_token_id"] = unknown
        scores = [0.0] * size
        for rank, merge in reversed([*enumerate(merges)]):  # of several merges to a piece the first counts: it is made first
            scores[ids[merge.replace(" ", "")]] = -float(rank)
        prefix = tokenizer.tokens[tokenizer.encode("x")[tokenizer.bos is not None]].startswith(SPACE)
        found |= {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": prefix}
        tokens = [token.replace(SPACE, " ") if kinds[id] == USER_DEFINED else token for id, token in enumerate(tokens)]
    found |= {"tokens": tokens, "token_type": kinds}
    named = {f"tokenizer.ggml.{key}": encoded(value) for key, value in found.items() if value != []}
    return named | _templates(tokenizer)


def _check(path: Path, tokenizer: FolderTokenizer, note: Callable[[str], None]) -> None:
    """UserError for what changes ordinary texts and GGUF has no word for."""
    model, normalizer = tokenizer.described["model"], tokenizer.described.get("normalizer")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            fail(path, f"its model has a {key}, which GGUF cannot say; use the folder itself")
    for step in _steps(normalizer):
        kind = step.get("type")
        if kind == "NFC":
            note(f"GGUF cannot say that {path} composes letters (NFC): decomposed ones get other tokens than in the folder")
        elif tokenizer.byte_level or step not in PREFIXES:
            fail(path, f"changes texts by {quote(kind)}, which GGUF cannot say; use the folder itself")
    beside = [
        str(added.get("content"))
        for added in tokenizer.described.get("added_tokens") or ()
        if any(added.get(key) for key in ("lstrip", "rstrip", "single_word"))
    ]
    if beside:
        note(
            f"GGUF cannot say that {listed(map(quote, beside))} of {path} look at what stands beside them (lstrip, rstrip, "
            "single_word): spaces there get tokens of their own"
        )


def _steps(normalizer: Any) -> list[dict[str, Any]]:
    if not normalizer:
        return []
    if normalizer.get("type") == "Sequence":
        return [step for part in normalizer.get("normalizers") or () for step in _steps(part)]
    return [normalizer]


def _templates(tokenizer: FolderTokenizer) -> dict[str, bytes]:
    """The chat template for ordinary uses, and those for others by name."""
    others = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in tokenizer.other_templates.items()}
    found: dict[str, Any] = {"tokenizer.chat_template": tokenizer.chat_template} if tokenizer.chat_template else {}
    if others:
        found |= {"tokenizer.chat_templates": list(others)} | {TEMPLATE + name: text for name, text in others.items()}
    return {key: encoded(value) for key, value in found.items()}


def _special(tokenizer: FolderTokenizer) -> dict[str, int]:
    """The tokens around a text, and those that end one and are not known by their names."""
    ids = {token: id for id, token in enumerate(tokenizer.tokens) if token}
    bos = ids.get(tokenizer.bos_name) if tokenizer.bos is None else tokenizer.bos
    eos = ids.get(tokenizer.eos_name) if tokenizer.eos is None else tokenizer.eos
    if eos is None:
        eos = min(tokenizer.eos_ids, default=None)
    others = [id for id in sorted(tokenizer.eos_ids) if id != eos and tokenizer.tokens[id] not in END_NAMES]
    found = {"bos_token_id": bos, "eos_token_id": eos, **dict(zip(("eot_token_id", "eom_token_id"), others, strict=False))}
    return {key: id for key, id in found.items() if id is not None}


def _rule(path: Path, tokenizer: FolderTokenizer, whole: bool) -> str:
    """GGUF's name of the rule by which it cuts texts into words: the one that cuts PROBE as it does."""
    from tokenizers import pre_tokenizers

    cut = tokenizer.words(PROBE)
    for name, rule in WORDS.items():
        pieces = pre_tokenizers.Sequence(byte_level_steps(rule)).pre_tokenize_str(PROBE)
        if rule.whole == whole and [piece for piece, _ in pieces] == cut:
            return name
    fail(path, f"cuts words by a rule that numatp has no name for (it knows {listed(WORDS)}); use another model")
