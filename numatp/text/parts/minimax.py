"""MiniMax-M2: `<minimax:tool_call><invoke name="f"><parameter name="key">text</parameter></invoke></minimax:tool_call>`.

https://huggingface.co/MiniMaxAI/MiniMax-M2 (docs/tool_calling_guide.md)
"""

from numatp.text.parts.format import CallFormat
from numatp.text.parts.tags import Tags

TAGS = Tags("<minimax:tool_call>", "</minimax:tool_call>", "<invoke name=", "</invoke>", "<parameter name=", "</parameter>")
FORMAT = CallFormat(told_by=(TAGS.block,), opening=(TAGS.block,), marks=(TAGS.block_end,), read=TAGS.read)
