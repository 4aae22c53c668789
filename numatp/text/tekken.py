"""Mistral's own tokenizer file, tekken.json, told as a tokenizer.json: the bytes of each token in the order in which they merge,
the names of special tokens, which have the first ids, and the expression that cuts a text into words.

Two neighbours within a word merge if their bytes together are a token, the one of the lowest number first; a word that is a token
needs no merges. Of the ways in which a token's bytes can be cut in two only one ever comes up, so all of them may be merges.
"""

import json
from base64 import b64decode
from binascii import Error
from pathlib import Path
from typing import Any

from numatp.files.folder import read_json
from numatp.files.gguf_header import fail, quote
from numatp.text.tokenizer import BYTE_OF_CHAR

NAME = "tekken.json"
CHARS = {byte: char for char, byte in BYTE_OF_CHAR.items()}
# Of files that list none, those of versions up to 7.
SPECIAL = (
    "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]", "[/TOOL_RESULTS]",
    "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]",
    "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]",
)  # fmt: skip
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}  # as tokenizer_config.json has them


def tokenizer_json(path: Path) -> str:
    """UserError for a file that is damaged or does not fit together."""
    given = read_json(path)
    config = given.get("config")
    if not isinstance(config, dict) or not isinstance(config.get("pattern"), str):
        fail(path, "has no 'config' with a 'pattern' that cuts a text into words; download it again")
    size, count = (_count(path, config, key) for key in ("default_vocab_size", "default_num_special_tokens"))
    names = _special(path, given.get("special_tokens"), count)
    tokens = _tokens(path, given.get("vocab"), size - count)
    vocab = {name: id for id, name in enumerate(names)} | {token: count + rank for rank, token in enumerate(tokens)}
    if len(vocab) != size:
        fail(path, f"has {size - len(vocab)} tokens twice; download it again")
    steps = [
        {"type": "Split", "pattern": {"Regex": config["pattern"]}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]
    start = NAMES["bos_token"]
    one, other = ({"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB"))
    begin = {
        "type": "TemplateProcessing", "single": [{"SpecialToken": {"id": start, "type_id": 0}}, one], "pair": [one, other],
        "special_tokens": {start: {"id": start, "ids": [vocab.get(start, 0)], "tokens": [start]}},
    }  # fmt: skip
    plain = {"special": True, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None,
        "added_tokens": [{"id": id, "content": name, **plain} for id, name in enumerate(names)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}, "post_processor": begin if start in names else None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "ignore_merges": True, "vocab": vocab, "merges": _merges(tokens)},
    })  # fmt: skip


def _count(path: Path, config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if type(value) is not int or value < 0:
        fail(path, f"'{key}' is {quote(value)}, and should be a number of tokens; download it again")
    return value


def _special(path: Path, listed: object, count: int) -> list[str]:
    """Their names by id, filled up as Mistral's library fills them up."""
    if listed is None:
        names = list(SPECIAL)
    else:
        if not isinstance(listed, list) or not all(
            isinstance(one, dict) and isinstance(one.get("token_str"), str) for one in listed
        ):
            fail(path, "'special_tokens' should be a list of tokens with a 'token_str' each; download it again")
        ranks = [one.get("rank") for one in listed]
        if ranks != list(range(len(ranks))):
            fail(path, "'special_tokens' are not numbered from 0 on; download it again")
        names = [one["token_str"] for one in listed]
    if len(names) > count or len(set(names)) < len(names):
        fail(path, f"has {len(names)} special tokens, some of them twice or more than {count}; download it again")
    return [*names, *(f"<SPECIAL_{id}>" for id in range(len(names), count))]


def _tokens(path: Path, listed: object, count: int) -> list[str]:
    """The first `count`, in the letters of byte-level vocabularies."""
    if not isinstance(listed, list) or not 256 <= count <= len(listed):
        fail(path, f"has {len(listed) if isinstance(listed, list) else 0} tokens and says that it has {count}; download it again")
    tokens = []
    for rank, one in enumerate(listed[:count]):
        try:
            raw = b64decode(one["token_bytes"], validate=True)
        except (Error, KeyError, TypeError, ValueError):
            fail(path, f"token {rank} has no bytes ('token_bytes'); download it again")
        if one.get("rank") != rank or (rank < 256 and raw != bytes([rank])):
            fail(path, f"token {rank} is out of order: the bytes come first, then all by their 'rank'; download it again")
        tokens.append("".join(map(CHARS.__getitem__, raw)))
    return tokens


def _merges(tokens: list[str]) -> list[list[str]]:
    known = set(tokens)
    return [
        [token[:cut], token[cut:]]
        for token in tokens
        for cut in range(1, len(token))
        if token[:cut] in known and token[cut:] in known
    ]
