"""How byte-level BPE vocabularies cut a text into words before they merge: the expressions behind `tokenizer.ggml.pre`.

Each expression is applied to the pieces of the one before; what it does not match stays a piece of its own. BPE never merges
across pieces.
"""

from dataclasses import dataclass

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
# Contractions in any case, one sign before a word, line ends with the signs before them.
_ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SIGNS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS_AND_SPACES}"
QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SIGNS_AND_SPACES}"
QWEN35 = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Words as runs of capitals and then small letters.
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
GPT4O = rf"{_BEFORE}{_CAPITALS}*{_SMALL}+{_ENDINGS}?|{_BEFORE}{_CAPITALS}+{_SMALL}*{_ENDINGS}?|\p{{N}}{{1,3}}|{_REST}"
# Digits in groups of three, counted from the end of their word.
COHERE2MOE = (r"\d{1,3}(?=(?:\d{3})*\b)", GPT4O)
TEKKEN = rf"{_BEFORE}{_CAPITALS}*{_SMALL}+|{_BEFORE}{_CAPITALS}+{_SMALL}*|\p{{N}}|{_REST}"
# As GPT4O, where Han stand apart from other letters.
_NOT_HAN = r"&&[^\p{Han}]]"
_CAPITALS_ALONE, _SMALL_ALONE = (letters[:-1] + _NOT_HAN for letters in (_CAPITALS, _SMALL))
KIMI = (
    rf"\p{{Han}}+|{_BEFORE}{_CAPITALS_ALONE}*{_SMALL_ALONE}+{_ENDINGS}?|{_BEFORE}{_CAPITALS_ALONE}+{_SMALL_ALONE}*{_ENDINGS}?"
    rf"|\p{{N}}{{1,3}}|{_SIGNS_AND_SPACES}"
)


def _class(ranges: str) -> str:
    """The inside of a character class from hexadecimal code points, one range after another."""
    return "".join("-".join(rf"\x{{{end}}}" for end in part.split("-")) for part in ranges.split())


_HAN_AND_MORE = f"[{_class('4E00-9FA5 800-4E00 AC00-D7FF')}]+"
# Letters with upper and lower case, as the DeepSeek LLM vocabulary lists them.
_CASED = _class(
    "41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1 3A3-3F5 3F7-481 "
    "48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A 1E00-1F15 1F18-1F1D 1F20-1F45 "
    "1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4 1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC "
    "1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128 212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 "
    "2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 "
    "FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3 104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943"
)
_MARKS = _class("21-2F 3A-7E FF01-FF0F FF1A-FF5E 2018-201F 3000-3002")
DEEPSEEK_LLM = (r"[\r\n]", rf"\s?[{_CASED}]+", rf"\s?[{_MARKS}]+", r"\s+$", _HAN_AND_MORE, r"\p{N}+")
DEEPSEEK_CODER = (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _HAN_AND_MORE, r"\p{N}")
# What llama.cpp takes where a file names no rule.
DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")
DEEPSEEK_V3 = (
    r"\p{N}{1,3}",
    f"[{_class('4E00-9FA5 3040-30FF')}]+",
    rf"[{_class('21-2F 3A-40 5B-60 7B-7E')}][A-Za-z]+|[^\r\n\p{{L}}\p{{P}}\p{{S}}]?[\p{{L}}\p{{M}}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)  # fmt: skip


@dataclass(frozen=True)
class Words:
    splits: tuple[str, ...]
    whole: bool = False  # a word that is a token needs no merges
    bos: bool = False  # a text begins with the start token where the metadata does not say


_RULES = {
    Words((GPT2,)): ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "mellum", "a.x-4.0"),
    Words((r"\p{N}", GPT2)): ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
    Words((LLAMA3,), whole=True, bos=True): (
        "llama3",
        "llama-v3",
        "llama-bpe",
        "falcon3",
        "falcon-h1",
        "pixtral",
        "midm-2.0",
        "lfm2",
    ),
    Words((LLAMA3,)): ("dbrx", "smaug-bpe", "chatglm-bpe", "glm4"),
    # Ling's expression is written in another way, and cuts the same.
    Words((QWEN2,)): ("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "hunyuan", "grok-2", "bailingmoe", "bailingmoe2"),
    Words((QWEN35,)): ("qwen35",),
    Words(DEFAULT): ("default",),
    Words((GPT4O,)): ("gpt-4o", "llama4"),
    Words(COHERE2MOE): ("cohere2moe", "tiny_aya"),
    Words((KIMI,)): ("kimi-k2",),
    Words((TEKKEN,), whole=True, bos=True): ("tekken",),
    Words(DEEPSEEK_LLM): ("deepseek-llm",),
    Words(DEEPSEEK_CODER): ("deepseek-coder",),
    Words(DEEPSEEK_V3): ("deepseek-v3", "hunyuan-dense"),
}
WORDS = {name: rule for rule, names in _RULES.items() for name in names}
