"""How fast can decoding be? Bytes over bandwidth, and the price of meeting: one formula for every machine and model.

A token needs each node to read its ranks' weights (of experts only the active ones) and their part of the cache once, at no more
than the node's read bandwidth, and all nodes wait for the slowest. It is a bound: the time of what is computed besides is left out.
"""

from collections.abc import Mapping

# Of one all-reduce between ranks: a flag and then data, each fetched from the other socket. One such fetch takes 0.41 to 0.45 us
# on 2x Xeon 6980P (ik_llama.cpp discussion 201); what 32 lanes fetch at once overlaps, and ranks never arrive together.
EXCHANGE_SECONDS = 2e-6


def seconds_per_token(read_bytes: Mapping[int, float], bandwidth: Mapping[int, float], exchanges: int = 0) -> float:
    """read_bytes: per token, by node. bandwidth: bytes per second, of every such node. exchanges: per token, 0 for one rank.

    KeyError for a node of unknown bandwidth.
    """
    return max(size / bandwidth[node] for node, size in read_bytes.items()) + exchanges * EXCHANGE_SECONDS
