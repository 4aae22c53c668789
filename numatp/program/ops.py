"""The vocabulary in which a model file says its forward pass; each word records one or more ops, and returns what it made.

A word that writes in the place of one of its values says so. That value can be read no more: go on with what the word returned.
"""

from numatp.program.words.compressed import Compressed
from numatp.program.words.linear import Linear
from numatp.program.words.logits import Logits
from numatp.program.words.streams import Streams


class Ops(Linear, Compressed, Streams, Logits):
    """All words; see Recorder for what is recorded. Compressed has those of Sparse, and so of Latent, Attention, Experts, Together
    and Dense.
    """
