"""The vocabulary in which a model file says its forward pass; each word records one or more ops, and returns what it made.

A word that writes in the place of one of its values says so. That value can be read no more: go on with what the word returned.
"""

from numatp.program.words.attention import Attention
from numatp.program.words.experts import Experts
from numatp.program.words.linear import Linear


class Ops(Attention, Linear, Experts):
    """All words; see Recorder for what is recorded. Experts has Together's words, and those Dense's."""
