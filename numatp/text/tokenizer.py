"""Text to token ids and back: byte-level BPE ("gpt2") and SentencePiece BPE ("llama", "gemma4"), as GGUF files name them."""

import codecs
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numatp.errors import UserError, listed
from numatp.files.gguf import GGUFFile, read_gguf
from numatp.files.gguf_header import quote
from numatp.text import words
from numatp.text.chat_template import render_chat
from numatp.text.parts.formats import Parts
from numatp.text.shield import Names, Shield

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one text at a time: its library's threads would have nothing to do

if TYPE_CHECKING:
    import tokenizers

# Values of `tokenizer.ggml.token_type`; UNUSED stands for no text.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

TEMPLATE = "tokenizer.chat_template."  # and the name of one for a special use
# Metadata names only one or two of the tokens that end a text; these names are the others, in models of today.
END_KEYS = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
END_NAMES = {
    "<|endoftext|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>",
    "<end_of_turn>", "<turn|>", "<|tool_response>", "<eos>", "</s>", "[EOS]", "[EOT]", "<EOT>", "<｜end▁of▁sentence｜>",
    "<|END_OF_TURN_TOKEN|>", "<|EOS_TOKEN|>", "<|eot|>", "<|eom|>", "<|role_end|>",
}  # fmt: skip


# Where these end a text, another one ends only a message of it: what a model says to itself before its answer.
ANSWER_ENDS, MESSAGE_END = {"<|return|>", "<|call|>"}, "<|end|>"


def _byte_of_char() -> dict[str, int]:
    """Byte-level vocabularies spell each byte as one printable character: itself, or the next one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + index): byte for index, byte in enumerate(others)}


BYTE_OF_CHAR = _byte_of_char()
HOLE = "\ufdd0\ufdd1\ufdd0"  # Unicode's noncharacters, which no text should hold


class Tokenizer:
    """Ids are positions in the model's vocabulary. Special tokens have a name in a prompt and no text in an answer."""

    def __init__(
        self,
        tokens: Sequence[str],
        kinds: Sequence[int],
        bpe: "tokenizers.Tokenizer",
        spell: Callable[[str, int], bytes],
        *,
        bos: int | None,
        eos: int | None,
        eos_ids: frozenset[int],
        chat_template: str | None,
        bos_name: str = "",
        eos_name: str = "",
        other_templates: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        """bpe: knows the names of special and of user-defined tokens. spell(token, kind): the bytes that a token stands for. `bos`
        and `eos`: the ids that `encode` puts around a text, None for none; the names are for the chat template. other_templates:
        by name those for special uses. notes: what the user should know of this vocabulary, a line each."""
        self.vocab_size = len(tokens)
        self.eos_ids = eos_ids
        self.chat_template = chat_template
        self.other_templates = dict(other_templates or {})
        self.tokens = tokens
        self.kinds = kinds
        self._bpe = bpe
        self._spell = spell
        self._spelled: dict[int, bytes] = {}  # by id, of those that were asked for
        self.bos = bos
        self.eos = eos
        self.bos_name, self.eos_name = bos_name, eos_name
        self.notes = notes

    @classmethod
    def from_gguf(cls, gguf: GGUFFile) -> "Tokenizer":
        """UserError if the file's vocabulary is of another kind, splits words by an unknown rule, or is damaged."""
        kind = gguf.text("tokenizer.ggml.model")
        if kind not in KINDS:
            gguf.fail(f"its tokenizer is of kind {quote(kind)}, and numatp has {listed(KINDS)}; use another model")
        tokens = gguf.strings("tokenizer.ggml.tokens")
        kinds = gguf.integers("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
        if len(kinds) != len(tokens) or not tokens:
            gguf.fail(f"{len(tokens)} tokens and {len(kinds)} token types: damaged; download it again")

        def token_id(key: str) -> int:
            id = gguf.integer(key)
            if not 0 <= id < len(tokens):
                gguf.fail(f"{key} is {id}, outside the {len(tokens)} tokens: damaged; download it again")
            return id

        def name(key: str) -> str:
            return tokens[token_id(key)] if key in gguf.metadata else ""

        ends = {token_id(key) for key in END_KEYS if key in gguf.metadata}
        return cls(
            tokens,
            kinds,
            _with_names(gguf, KINDS[kind].build(gguf, tokens, kinds), tokens, kinds),
            KINDS[kind].spell,
            bos=token_id("tokenizer.ggml.bos_token_id")
            if gguf.flag("tokenizer.ggml.add_bos_token", KINDS[kind].bos(gguf))
            else None,
            eos=token_id("tokenizer.ggml.eos_token_id") if gguf.flag("tokenizer.ggml.add_eos_token", False) else None,
            eos_ids=end_ids(tokens, kinds, ends),
            chat_template=gguf.text("tokenizer.chat_template") if "tokenizer.chat_template" in gguf.metadata else None,
            bos_name=name("tokenizer.ggml.bos_token_id"),
            eos_name=name("tokenizer.ggml.eos_token_id"),
            other_templates={key.removeprefix(TEMPLATE): gguf.text(key) for key in gguf.metadata if key.startswith(TEMPLATE)},
            notes=KINDS[kind].notes(gguf),
        )

    def encode(self, text: str, special: bool = True, ends: bool = True) -> list[int]:
        """The ids of `text`, with the model's own start and end tokens where it wants them and they are not there yet.

        `special`: the name of a special token in the text stands for that token; False treats it as any other text,
        which is right for text by somebody who must not steer the model. `ends`: False leaves the start and end tokens out.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"the text has half a character (a lone surrogate) at position {error.start}; remove it") from None
        ids = self._ids(text, special)
        return self._around(ids) if ends else ids

    def _around(self, ids: list[int]) -> list[int]:
        if self.bos is not None and ids[:1] != [self.bos]:
            ids.insert(0, self.bos)
        if self.eos is not None and ids[-1:] != [self.eos]:
            ids.append(self.eos)
        return ids

    def _ids(self, text: str, special: bool) -> list[int]:
        return _ids_of(self._bpe if special else self._plain, text)

    @cached_property
    def _plain(self) -> "tokenizers.Tokenizer":
        return self._make_plain()

    def _make_plain(self) -> "tokenizers.Tokenizer":
        """The same words and merges, to which the names of special tokens are text."""
        import tokenizers

        plain = tokenizers.Tokenizer(self._bpe.model)
        if self._bpe.normalizer:
            plain.normalizer = self._bpe.normalizer
        if self._bpe.pre_tokenizer:
            plain.pre_tokenizer = self._bpe.pre_tokenizer
        plain.add_tokens([token for token in self._bpe.get_added_tokens_decoder().values() if not token.special])
        return plain

    def render_chat(self, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any] | None = None) -> str:
        """The prompt for an answer to `messages` (see chat_template.py). UserError if the model has no chat template."""
        return self._render(self._template(arguments), messages, arguments)

    def parts(self, arguments: Mapping[str, Any] | None = None) -> Parts:
        """How the answer to such a chat is written, for TextStream. arguments: the template's, `tools` among them."""
        tools = arguments.get("tools") if arguments else None
        return Parts(self._template(arguments), tools if isinstance(tools, (list, tuple)) else ())

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any] | None = None) -> list[int]:
        """The ids of that prompt. Special tokens are those of the template alone: a name of one in a message or a tool is text."""
        template = self._template(arguments)
        shield = Shield(self._special_names, template, messages, arguments)
        text = self._render(template, shield.messages, shield.arguments)
        if not shield.needed:
            return self.encode(text)
        # The template's special tokens are cut out, each leaves a hole, and between the holes is text as it was said.
        (found,) = self._bpe.encode_batch([text], add_special_tokens=False)
        pieces, holes = [], []
        end = 0
        for id, (start, stop) in zip(found.ids, found.offsets, strict=True):
            if self.kinds[id] in (UNKNOWN, CONTROL) and text[start:stop].strip() == self.tokens[id].strip():
                pieces.append(text[end:start])
                holes.append(id)
                end = stop
        pieces.append(text[end:])
        filled = iter(holes)
        said = HOLE.join(piece.replace(HOLE, "").translate(shield.letters) for piece in pieces)
        ids = _ids_of(self._with_holes, said)
        hole = self._with_holes.token_to_id(HOLE)
        return self._around([next(filled) if id == hole else id for id in ids])

    def _template(self, arguments: Mapping[str, Any] | None) -> str:
        """The one for tools if there are tools and it is there, as transformers chooses. UserError if a model hears of no tools."""
        tools = bool(arguments and arguments.get("tools"))
        if tools and "tool_use" in self.other_templates:
            return self.other_templates["tool_use"]
        if self.chat_template is not None:
            if tools and "tools" not in self.chat_template:
                raise UserError("this model's chat template tells it of no tools: leave them out, or use a model that calls some")
            return self.chat_template
        if self.other_templates:
            names = listed(self.other_templates)
            raise UserError(f"this model has chat templates for special uses alone ({names}): use generate without --chat")
        raise UserError("this model has no chat template: use generate without --chat, or a model made for chats")

    def _render(self, template: str, messages: Sequence[Mapping[str, Any]], arguments: Mapping[str, Any] | None) -> str:
        names = {"bos_token": self.bos_name, "eos_token": self.eos_name, "unk_token": "", "pad_token": ""}
        return render_chat(template, messages, names, arguments)

    @cached_property
    def _special_names(self) -> Names:
        return Names(token for id, token in enumerate(self.tokens) if self.kinds[id] in (UNKNOWN, CONTROL))

    @cached_property
    def _with_holes(self) -> "tokenizers.Tokenizer":
        """Like _plain, with one token more, which stands for a special one."""
        import tokenizers

        holed = self._make_plain()
        holed.add_tokens([tokenizers.AddedToken(HOLE, special=False, normalized=False)])
        return holed

    def decode(self, ids: Iterable[int]) -> str:
        """Special tokens give nothing, and bytes that form no character U+FFFD."""
        return b"".join(map(self.token_bytes, ids)).decode(errors="replace")

    def special_id(self, name: str) -> int | None:
        """The special token of that name."""
        return self._special_ids.get(name)

    def named_id(self, name: str) -> int | None:
        """The token that a text with the name becomes, special or not."""
        return self._named_ids.get(name)

    @cached_property
    def _named_ids(self) -> dict[str, int]:
        return {token: id for id, token in enumerate(self.tokens) if self.kinds[id] in (CONTROL, USER_DEFINED) and token}

    @cached_property
    def _special_ids(self) -> dict[str, int]:
        return {token: id for id, token in enumerate(self.tokens) if self.kinds[id] == CONTROL and token}

    @cached_property
    def longest(self) -> int:
        """Characters of a text that one token stands for at most."""
        return max(map(len, self.tokens))

    def is_special(self, id: int) -> bool:
        """Whether it has a name and no text."""
        return 0 <= id < self.vocab_size and self.kinds[id] in (UNKNOWN, CONTROL)

    def token_bytes(self, id: int) -> bytes:
        """None for special tokens, and for ids above the vocabulary: a model's matrices may have more rows than it has tokens."""
        spelled = self._spelled.get(id)
        if spelled is None:
            if id < 0:
                raise UserError(f"token id {id} is outside the vocabulary; use 0 to {self.vocab_size - 1}")
            if id >= self.vocab_size:
                return b""
            kind = self.kinds[id]
            spelled = self._spell(self.tokens[id], kind) if kind in (NORMAL, USER_DEFINED, BYTE) else b""
            self._spelled[id] = spelled
        return spelled


def open_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """Of a GGUF file or a Hugging Face folder. UserError if there is none that numatp knows."""
    if os.path.isdir(path):
        from numatp.text.tokenizer_json import FolderTokenizer

        return FolderTokenizer(Path(path))
    return Tokenizer.from_gguf(read_gguf(path))


def _ids_of(bpe: "tokenizers.Tokenizer", text: str) -> list[int]:
    """Other threads go on meanwhile, which a call for one text would not let them."""
    (found,) = bpe.encode_batch_fast([text], add_special_tokens=False)
    ids: list[int] = found.ids
    return ids


def end_ids(tokens: Sequence[str], kinds: Sequence[int], said: Iterable[int]) -> frozenset[int]:
    """All tokens that end a text: those that the model's files say, and those known by their names."""
    ends = set(said) | {id for id, token in enumerate(tokens) if kinds[id] != NORMAL and token in END_NAMES}
    if {tokens[id] for id in ends} >= ANSWER_ENDS:
        ends = {id for id in ends if tokens[id] != MESSAGE_END}
    return frozenset(ends)


class StreamDecoder:
    """Decodes ids one by one: the pieces together are what `decode` gives, and none ends inside a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        return self._utf8.decode(self._tokenizer.token_bytes(id))

    def finish(self) -> str:
        """What was held back; afterwards a new text can begin."""
        rest = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return rest


# ---------------------------------------------------------------- byte-level BPE


def _rule(gguf: GGUFFile) -> words.Words:
    name = gguf.text("tokenizer.ggml.pre", "") or "default"
    if name not in words.WORDS:
        gguf.fail(f"its tokenizer splits words by rule {quote(name)}, and numatp has {listed(words.WORDS)}; use another model")
    return words.WORDS[name]


def _rule_notes(gguf: GGUFFile) -> list[str]:
    if (gguf.text("tokenizer.ggml.pre", "") or "default") != "default":
        return []
    return [
        f"{gguf.path} does not say how it splits words (tokenizer.ggml.pre): llama.cpp's default rule is taken, and answers may be"
        " worse for it; a newer conversion of the model would say it"
    ]


def byte_level_steps(rule: words.Words) -> list[Any]:
    """What cuts a text into words by a rule, and spells their bytes as characters."""
    from tokenizers import Regex, pre_tokenizers

    steps: list[Any] = [pre_tokenizers.Split(Regex(split), "isolated") for split in rule.splits]
    return [*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]


def _build_byte_level(gguf: GGUFFile, tokens: Sequence[str], kinds: Sequence[int]) -> "tokenizers.Tokenizer":
    from tokenizers import Regex, models, pre_tokenizers  # here, because it costs 30 ms and all other ranks do without

    rule = _rule(gguf)
    pairs = [(left, right) for left, space, right in (merge.partition(" ") for merge in gguf.strings("tokenizer.ggml.merges"))]
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    bpe = _bpe(gguf, lambda: models.BPE(vocab, pairs, ignore_merges=rule.whole))
    steps = byte_level_steps(rule)
    # A byte without a token is lost, but its neighbours must not merge as if it had never been there.
    missing = "".join(char for char in BYTE_OF_CHAR if char not in vocab)
    if missing:
        steps.append(pre_tokenizers.Split(Regex(f"[{re.escape(missing)}]"), "removed"))
    bpe.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return bpe


def spell_byte_level(token: str, kind: int) -> bytes:
    if kind == NORMAL and BYTE_OF_CHAR.keys() >= set(token):
        return bytes(BYTE_OF_CHAR[char] for char in token)
    return token.encode(errors="surrogateescape")


# ---------------------------------------------------------------- SentencePiece BPE

SPACE = "\u2581"  # stands for a space in pieces
BYTE_NAME = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def _build_sentencepiece(gguf: GGUFFile, tokens: Sequence[str], kinds: Sequence[int]) -> "tokenizers.Tokenizer":
    """The piece with the highest score is made first; what no piece can spell is given as bytes."""
    scores = gguf.numbers("tokenizer.ggml.scores")
    if len(scores) != len(tokens):
        gguf.fail(f"{len(tokens)} tokens and {len(scores)} scores: damaged; download it again")
    for id, token in enumerate(tokens):
        if not isfinite(scores[id]):
            gguf.fail(f"token {id}, {quote(token)}, has the score {scores[id]}: damaged; download it again")
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    pairs = []
    for token, id in vocab.items():
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in vocab and right in vocab:
                pairs.append((-scores[id], vocab[left], vocab[right], left, right))
    pairs.sort()
    return _with_bytes(gguf, tokens, kinds, [pair[3:] for pair in pairs], gguf.flag("tokenizer.ggml.add_space_prefix", True))


def _build_gemma4(gguf: GGUFFile, tokens: Sequence[str], kinds: Sequence[int]) -> "tokenizers.Tokenizer":
    """As SentencePiece, with the merges in their order instead of scores."""
    merges = [(left, right) for left, space, right in (merge.partition(" ") for merge in gguf.strings("tokenizer.ggml.merges"))]
    return _with_bytes(gguf, tokens, kinds, merges, prefix=False)


def _with_bytes(
    gguf: GGUFFile, tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[tuple[str, str]], prefix: bool
) -> "tokenizers.Tokenizer":
    """Over whole texts, whose spaces are SPACE, one before all if prefix; what no piece can spell is given as bytes."""
    from tokenizers import models, normalizers

    for id, token in enumerate(tokens):
        if kinds[id] == BYTE and not BYTE_NAME.fullmatch(token):
            gguf.fail(f"token {id} stands for a byte and is called {quote(token)}, not like <0x0A>: damaged; download it again")
    unknown = gguf.integer("tokenizer.ggml.unknown_token_id", 0)
    if not 0 <= unknown < len(tokens):
        gguf.fail(f"tokenizer.ggml.unknown_token_id is {unknown}, outside the {len(tokens)} tokens: damaged; download it again")
    vocab = dict(zip(tokens, range(len(tokens)), strict=True))
    bpe = _bpe(gguf, lambda: models.BPE(vocab, merges, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True))
    before = [normalizers.Prepend(SPACE)] if prefix else []
    bpe.normalizer = normalizers.Sequence([*before, normalizers.Replace(" ", SPACE)])
    return bpe


def spell_sentencepiece(token: str, kind: int) -> bytes:
    if kind == BYTE:
        return bytes.fromhex(token[3:5])  # <0x0A>
    return token.replace(SPACE, " ").encode(errors="surrogateescape")


# ---------------------------------------------------------------- both


@dataclass(frozen=True)
class Kind:
    build: Callable[[GGUFFile, Sequence[str], Sequence[int]], "tokenizers.Tokenizer"]  # of tokens and their kinds
    spell: Callable[[str, int], bytes]
    bos: Callable[[GGUFFile], bool]  # whether a text begins with it when the metadata does not say
    notes: Callable[[GGUFFile], list[str]]


KINDS = {
    "gpt2": Kind(_build_byte_level, spell_byte_level, lambda gguf: _rule(gguf).bos, _rule_notes),
    "llama": Kind(_build_sentencepiece, spell_sentencepiece, lambda gguf: True, lambda gguf: []),
    "gemma4": Kind(_build_gemma4, spell_sentencepiece, lambda gguf: True, lambda gguf: []),
}


def _bpe(gguf: GGUFFile, make: Callable[[], Any]) -> "tokenizers.Tokenizer":
    import tokenizers

    try:
        return tokenizers.Tokenizer(make())
    except Exception as error:  # the library raises bare Exception for a merge of unknown tokens
        gguf.fail(f"its vocabulary does not fit together ({str(error)[:80]!r}): damaged; download it again")


def _with_names(gguf: GGUFFile, bpe: "tokenizers.Tokenizer", tokens: Sequence[str], kinds: Sequence[int]) -> "tokenizers.Tokenizer":
    """Finds the names of special and of user-defined tokens in a text before anything else, a longer one before a shorter one that
    it begins with. The library does that in one walk over the text, however many names there are."""
    from tokenizers import AddedToken

    def named(*wanted: int) -> list[str]:
        return [token for id, token in enumerate(tokens) if kinds[id] in wanted and token]

    try:
        bpe.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in named(UNKNOWN, CONTROL)])
        bpe.add_tokens([AddedToken(name, special=False, normalized=False) for name in named(USER_DEFINED)])
    except UnicodeEncodeError:
        gguf.fail("the name of a special token is not UTF-8: damaged; download it again")
    return bpe
