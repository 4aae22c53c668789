"""The tokenizer of a Hugging Face folder: tokenizer.json or tekken.json, names and chat template beside it, and which tokens end a
text.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numatp.files.folder import read_bytes_of, read_json
from numatp.files.gguf_header import fail, quote
from numatp.files.safetensors import parse_json
from numatp.text import tekken
from numatp.text.tokenizer import (
    BYTE,
    BYTE_NAME,
    CONTROL,
    NORMAL,
    USER_DEFINED,
    Tokenizer,
    end_ids,
    spell_byte_level,
    spell_sentencepiece,
)

if TYPE_CHECKING:
    import tokenizers

MAX_VOCAB = 1 << 24


class FolderTokenizer(Tokenizer):
    """Normalises, splits and merges as tokenizer.json says, which `described` holds; spells tokens as all others do."""

    def __init__(self, folder: Path) -> None:
        import tokenizers

        path, names_of_its_own = folder / "tokenizer.json", {}
        if path.exists():
            source = _text(path)
        elif (folder / tekken.NAME).exists():
            path, names_of_its_own = folder / tekken.NAME, tekken.NAMES
            source = tekken.tokenizer_json(path)
        else:
            fail(folder, "has no tokenizer.json; download it, or make it of the folder's own tokenizer with transformers")
        described = parse_json(path, source.encode())
        try:
            bpe = _without_training(tokenizers.Tokenizer.from_str(source))
            vocab = bpe.get_vocab(with_added_tokens=True)
            around = bpe.encode("", add_special_tokens=True).ids
        except Exception as error:  # the library raises bare Exception
            fail(path, f"the tokenizers library cannot use it ({str(error)[:80]!r}); download it again")
        size = max(vocab.values(), default=-1) + 1
        if not 0 < size < MAX_VOCAB:
            fail(path, f"has {len(vocab)} tokens with ids up to {size - 1}; download it again")
        tokens = [""] * size
        for token, id in vocab.items():
            tokens[id] = token
        byte_level = _kind_of_decoder(path, described)
        kinds = [BYTE if not byte_level and BYTE_NAME.fullmatch(token) else NORMAL for token in tokens]
        for added in described.get("added_tokens") or ():
            id, special = added.get("id"), added.get("special")
            if type(id) is not int or not 0 <= id < size:
                fail(path, f"an added token has id {quote(id)}; download it again")
            kinds[id] = CONTROL if special else USER_DEFINED
        config = {**names_of_its_own, **_optional(folder / "tokenizer_config.json")}
        names = {key: _name(config.get(f"{key}_token")) for key in ("bos", "eos", "unk", "pad")}
        said = {id for id, token in enumerate(tokens) if kinds[id] != NORMAL and token and token == names["eos"]}
        ends = end_ids(tokens, kinds, said.union(_end_ids(folder, size)))
        templates = _chat_templates(folder, config)
        # What encode puts around a text: a start token, an end token, or both.
        bos = around[0] if around and around[0] not in ends else None
        eos = around[-1] if around and around[-1] in ends else None
        super().__init__(
            tokens, kinds, bpe, spell_byte_level if byte_level else spell_sentencepiece, bos=bos, eos=eos, eos_ids=ends,
            chat_template=templates.pop("default", None), other_templates=templates, bos_name=names["bos"], eos_name=names["eos"],
        )  # fmt: skip
        self.path, self.byte_level, self.described = path, byte_level, described
        self._source = source

    def _make_plain(self) -> "tokenizers.Tokenizer":
        import tokenizers

        plain = _without_training(tokenizers.Tokenizer.from_str(self._source))
        plain.encode_special_tokens = True
        return plain

    def words(self, text: str) -> list[str]:
        """What it merges within, of a text that needs no normalising."""
        cut = self._bpe.pre_tokenizer
        return [word for word, _ in cut.pre_tokenize_str(text)] if cut else [text]


def _without_training(bpe: "tokenizers.Tokenizer") -> "tokenizers.Tokenizer":
    """What was set for a training run would cut a text off, fill it up, or merge at random."""
    bpe.no_truncation()
    bpe.no_padding()
    if getattr(bpe.model, "dropout", None):
        bpe.model.dropout = None
    return bpe


def _kind_of_decoder(path: Path, described: dict[str, Any]) -> bool:
    """Whether tokens spell bytes as characters; otherwise as SentencePiece does."""

    def kinds(decoder: object) -> Iterator[object]:
        if isinstance(decoder, dict):
            yield decoder.get("type")
            parts = decoder.get("decoders")
            for part in parts if isinstance(parts, list) else ():
                yield from kinds(part)

    found = set(kinds(described.get("decoder")))
    if "ByteLevel" in found:
        return True
    if found & {"ByteFallback", "Metaspace"}:
        return False
    fail(path, f"its decoder is {quote(described.get('decoder'))}, and numatp has ByteLevel and ByteFallback; use another model")


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _name(token: object) -> str:
    """A special token's name, given as a text or as the description of an added token."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else ""


def _end_ids(folder: Path, size: int) -> Iterator[int]:
    for name in ("generation_config.json", "config.json"):
        found = _optional(folder / name).get("eos_token_id")
        for id in found if isinstance(found, list) else [] if found is None else [found]:
            if type(id) is not int or id < 0:
                fail(folder / name, f"eos_token_id is {quote(found)}, and should be a token or a list of tokens; download it again")
            if id < size:  # a model's own vocabulary may be larger than its tokenizer's
                yield id


def _chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """By name, where that for all ordinary uses is "default"."""
    found = config.get("chat_template")
    if found is None and (folder / "chat_template.json").exists():
        found = read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list) and all(isinstance(one, dict) for one in found):  # several by name
        found = {one.get("name"): one.get("template") for one in found}
    templates = {"default": found} if isinstance(found, str) else found or {}
    if not isinstance(templates, dict) or not all(isinstance(text, str) for pair in templates.items() for text in pair):
        fail(
            folder / "tokenizer_config.json",
            f"chat_template is {quote(json.dumps(found))}, and should be a text; download it again",
        )
    for path in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[path.stem] = _text(path)
    path = folder / "chat_template.jinja"
    return templates | ({"default": _text(path)} if path.exists() else {})


def _text(path: Path) -> str:
    try:
        return read_bytes_of(path).decode()
    except UnicodeDecodeError:
        fail(path, "is not UTF-8 text; download it again")
