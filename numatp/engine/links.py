"""What joins hosts, and what an exchange over it costs.

An exchange of partial sums between H hosts sends each host's whole vector to the others and takes theirs, at the same time:

    seconds = delay + software + (H - 1) x bytes x (1 / rate + copy), of more than LONG bytes + 2 x (delay + software)

delay: of the wire and the switch, one way. software: of the sending and the receiving program and their kernels, for a message of a
few bytes. rate: of a host's sending. copy: of each byte between program and card, which TCP's kernels make and RDMA does not. LONG:
above it MPI asks the other side first and waits for its answer (Open MPI's btl_tcp_eager_limit; of others this is assumed).

Where the constants are from. software of TCP: half a round trip of a 32 KB message without its time on the wire is said to be 15
to 30 us on 10 GbE, 12 to 25 on 25 GbE and 10 to 20 on 100 GbE; these are recalled, of no one source, and the least of them is
taken, as copies come on top. InfiniBand and RoCE: 1 to 3 us; MPI over 40 GbE with kernel bypass was seen at 1.93 us (a blog of
Cisco's). For a link of one's own: our exchanges between two network namespaces of one machine with two cores, Open MPI 5.0.11,
us, medians of 300 of 8, 2304, 8192 and 38000 B, delay and rate made by a BPF program: without any 13, 15, 18, 27; with 20 us and
10 Gbit/s 35, 42, 48, 86; 100 us and 10 Gbit/s 116, 123, 129, 162; 50 us and 1 Gbit/s 66, 91, 146, 415. So software is 13 us and a
copied byte 0.3 ns. Logits of 128 kB, which go one way, took two more delays; long messages both ways at once four, where the
emulation holds the sending core. No card was in that, and none was tried.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from numatp.errors import UserError

LONG = 64 << 10  # bytes
COPY = 0.3e-9  # seconds a byte
SOFTWARE = 13e-6  # seconds an exchange, of TCP without a card
UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
RATES = {"kbit": 1e3 / 8, "mbit": 1e6 / 8, "gbit": 1e9 / 8}  # bytes per second


@dataclass(frozen=True)
class Link:
    name: str
    delay: float  # seconds, one way
    software: float  # seconds an exchange
    rate: float  # bytes per second that a host sends
    copy: float = COPY  # seconds a byte
    seen: tuple[tuple[int, float], ...] = ()  # (bytes, seconds) of exchanges between two hosts, ascending: where it was measured

    def seconds(self, num_bytes: float, hosts: int) -> float:
        """Of an exchange in which each host sends so many bytes to each other one."""
        sent = (hosts - 1) * num_bytes
        if self.seen and sent <= self.seen[-1][0]:
            return float(np.interp(sent, [size for size, _ in self.seen], [seconds for _, seconds in self.seen]))
        asked = 2 * (num_bytes > LONG and not self.seen)
        return (1 + asked) * (self.delay + self.software) + sent * (1 / self.rate + self.copy)

    @classmethod
    def measured(cls, seen: Sequence[tuple[int, float]]) -> "Link":
        """One that was seen to take so many seconds for so many bytes, ascending; longer messages as the longest."""
        most, seconds = seen[-1]
        some = ", ".join(f"{size} B {1e6 * taken:.1f} us" for size, taken in seen)
        return cls(f"a link that was measured ({some})", 0.0, 0.0, most / seconds, 0.0, tuple(seen))


LINKS = {
    "10gbe": Link("10gbe", 0, 15e-6, 10e9 / 8),
    "25gbe": Link("25gbe", 0, 12e-6, 25e9 / 8),
    "100gbe": Link("100gbe", 0, 10e-6, 100e9 / 8),
    "ib": Link("ib", 0, 2e-6, 100e9 / 8, copy=0),  # 100 Gbit/s of InfiniBand or RoCE
}
KNOWN = f"{', '.join(LINKS)}, or a delay and a rate like 20us:10gbit"
MEASURED = "measured"  # of a command line: as it is found to be


def read_link(text: str) -> Link:
    """One of LINKS, or DELAY:RATE of a TCP link. UserError for anything else."""
    if text.lower() in LINKS:
        return LINKS[text.lower()]
    found = re.fullmatch(r"([\d.]+)(ns|us|ms|s):([\d.]+)(kbit|mbit|gbit)", text.lower())
    try:
        delay, rate = (float(found[1]) * UNITS[found[2]], float(found[3]) * RATES[found[4]]) if found else (inf, 0.0)
    except ValueError:  # 1.2.3
        rate = 0.0
    if not rate:
        raise UserError(f"no link '{text}' is known; known: {KNOWN}")
    return Link(text, delay, SOFTWARE, rate)
