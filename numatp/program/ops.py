"""The vocabulary in which a model file says its forward pass; each word records one or more ops, and returns what it made.

A word that writes in the place of one of its values says so. That value can be read no more: go on with what the word returned.
"""

from numatp.program.words.latent import Latent
from numatp.program.words.linear import Linear


class Ops(Linear, Latent):
    """All words; see Recorder for what is recorded. Latent has Attention's and Experts' words, and those Together's and Dense's."""
