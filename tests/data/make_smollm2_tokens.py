"""Write smollm2_tokens.json: hard texts, and the ids that llama.cpp's llama-tokenize gives for them.

python tests/data/make_smollm2_tokens.py LLAMA_TOKENIZE MODEL.gguf
"""

import json
import random
import subprocess
import sys
from pathlib import Path

SPACES = [
    " ",
    "  ",
    "   ",
    "\t",
    "\n",
    "\r\n",
    "\n\n",
    " \n",
    "\n ",
    "\u00a0",
    "\u2003",
    "\u3000",
    "\u200b",
    "\ufeff",
    "\u2028",
    "\x0b",
]
CONTROLS = [chr(code) for code in range(32)] + [
    "\x7f",
    "\x80",
    "\x85",
    "\x9f",
    "\u200d",
    "\u200e",
    "\u202e",
    "\ufffd",
    "\ufffe",
]
DIGITS = ["0", "7", "12", "123", "1234567890", "3.14", "1,000", "٣٤", "१२", "Ⅷ", "½", "²", "①", "𝟘𝟙", "一二"]
CONTRACTIONS = [
    "it's",
    "IT'S",
    "don't",
    "DON'T",
    "I'll",
    "I'LL",
    "we've",
    "they're",
    "I'd",
    "I'm",
    "'s",
    "' s",
    "''s",
    "it’s",
    "'tis",
    "'stop",
]
WORDS = [
    "hello",
    "Hello",
    "HELLO",
    "naïve",
    "Straße",
    "ǅ",
    "Ωμέγα",
    "Привет",
    "שלום",
    "مرحبا",
    "हिन्दी",
    "ไทย",
    "日本語",
    "中文字符",
    "한국어",
]
MARKS = ["e\u0301", "\u0301", "a\u0308\u0304\u0323", "각", "क्षि", "נִקּוּד", "ﬁ", "Å", "İ", "ß", "ŉ"]
EMOJI = ["👍", "👍🏽", "👨‍👩‍👧‍👦", "🇩🇪", "❤️", "☺", "1️⃣", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "𓀀", "𝕳𝖊𝖑𝖑𝖔", "𐍈", "🫠🫡", "\U0010ffff", "\ue000"]
SIGNS = [
    "!",
    "...",
    "!?",
    "-->",
    "==",
    "&&",
    "$5",
    "#1",
    "@x",
    "a_b",
    "a-b",
    "(x)",
    "[y]",
    "{z}",
    "€",
    "…",
    "“q”",
    "—",
    "\\n",
    "%20",
    "`",
    "^~",
]
SPECIALS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<repo_name>",
    "<file_sep>",
    "<empty_output>",
    "<|im_",
    "im_end|>",
    "<|IM_END|>",
]
TEXTS = [
    "",
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "<|im_start|>user\nWhat's 2+2?<|im_end|>\n<|im_start|>assistant\n",
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n",
    "<|im_end|><|im_end|>",
    " <|im_end|> ",
    "a<|im_end|>b  <|im_end|>  c",
    "<|im_end|",
    "<<|im_end|>>",
    "<|im_start|<|im_start|>|>",
    "def f(x):\n    if x > 10:\n\t\treturn x ** 2  # square\n\n\nclass A:\n    pass\n",
    "for (int i = 0; i < n; ++i) { a[i] += b[i]; }\r\n",
    "SELECT * FROM t WHERE a='b' AND c=\"d\";",
    "https://example.org/a/b?c=d&e=%20f#g",
    '{"a": [1, 2.5e-10, null], "b": "\\u00e9"}',
    "x" * 1000,
    "ab" * 700,
    " " * 300,
    "\n" * 100,
    "\t" * 33 + "x",
    "9" * 200,
    "é" * 300,
    "日本" * 200,
    "👍" * 80,
    "!?" * 150,
    "Donaudampfschifffahrtsgesellschaftskapitän" * 10,
    "".join(map(chr, range(0x20, 0x7F))),
    "".join(map(chr, range(0xA0, 0x250))),
    "".join(map(chr, range(0x370, 0x500))),
    "".join(map(chr, range(0x2000, 0x2070))),
    " \u00a0 \u00a0x",
    "a \n b",
    "a  \n  b",
    "a\n\n\n b",
    "trailing space ",
    "trailing spaces   ",
    "trailing newline\n",
    " leading",
    "   leading",
    "1 2  3   4",
    "a1b22c333",
    "1st 2nd 3rd",
    "2024-11-24T00:28:07Z",
    "x² + y² = z²",
    "½ cup, Ⅷ. and ①",
    "CamelCaseAndsnake_case and kebab-case",
    "e\u0301clair vs \u00e9clair",
    "ＦＵＬＬ　ＷＩＤＴＨ　１２３",
    "Zalgo: H\u0310\u0337e\u0334l\u0335l\u0336o",
]  # fmt: skip


def hard_texts() -> list[str]:
    kinds = [SPACES, CONTROLS, DIGITS, CONTRACTIONS, WORDS, MARKS, EMOJI, SIGNS, SPECIALS]
    texts = [*TEXTS, *(item for kind in kinds for item in kind)]
    texts += [f"a{control}b {control}c" for control in CONTROLS]
    rng = random.Random(1)
    for _ in range(120):
        texts.append("".join(rng.choice(rng.choice(kinds)) for _ in range(rng.randint(2, 30))))
    for _ in range(30):  # any characters at all but halves of surrogate pairs
        texts.append("".join(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])) for _ in range(20)))
    return list(dict.fromkeys(texts))


def main() -> None:
    tool, model = sys.argv[1:]
    command = [tool, "-m", model, "--ids", "--no-bos", "--no-escape", "--log-disable", "--stdin"]
    rows = []
    for text in hard_texts():
        for special in (True, False) if "<" in text else (True,):
            extra = [] if special else ["--no-parse-special"]
            done = subprocess.run(command + extra, input=text.encode(), capture_output=True, check=True)
            rows.append({"text": text, "special": special, "ids": json.loads(done.stdout)})
    lines = ",\n".join(json.dumps(row) for row in rows)
    Path(__file__).with_name("smollm2_tokens.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
