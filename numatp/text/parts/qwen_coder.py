"""Qwen3-Coder, Qwen 3.5: `<tool_call><function=f><parameter=key>text</parameter></function></tool_call>`, each on lines of its own.

https://huggingface.co/Qwen/Qwen3-Coder-480B-A35B-Instruct (its parser and its template)
"""

from numatp.text.parts.format import CallFormat
from numatp.text.parts.tags import Tags

TAGS = Tags("<tool_call>", "</tool_call>", "<function=", "</function>", "<parameter=", "</parameter>")
FORMAT = CallFormat(
    told_by=(TAGS.block, TAGS.call), opening=(TAGS.block, TAGS.call), marks=(TAGS.block_end,), read=TAGS.read
)  # fmt: skip
