"""What is in the cache, by its tokens: a sequence that begins as another did need not compute that again.

Each full block of a sequence has a name: a hash over the name of the block before it and its own tokens, with a key that every
process draws for itself, so that nobody can make two texts that share a name; tokens are compared as well. Names are kept for the
blocks of sequences that run and that have ended, until the block is taken for something else. A sequence releases its last blocks
first, so of a text the end is forgotten before the beginning. Where prompts outlive the process (engine/saved.py) the key does too.

Layers with windows need the blocks of the last window alone. Recurrent layers need their state at the end of what was found: it
is copied into a slot beside those of the running sequences (a checkpoint) where a Step ends on the border of a block: at the end of
a prompt, every so many tokens, where another sequence has branched off, and, by turns, at the last border that a sequence passed.
"""

import time
from array import array
from collections.abc import Iterator
from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from hashlib import blake2b
from secrets import token_bytes

from numatp.engine.blocks import Blocks, Tables
from numatp.kernels.layout import CACHE_BLOCK, NO_WINDOW


@dataclass(eq=False)
class Prefix:
    """A block of tokens after certain others."""

    name: bytes
    tokens: bytes
    blocks: list[int | None]  # per pool: where its keys and values are
    exact: bool  # computed in prompts alone, whose bits do not depend on how they were cut
    used: int = 0  # when a sequence took it over or computed it last, in ns since 1970
    state: int | None = None  # slot of the recurrent layers' state after it


@dataclass(eq=False)
class Known:
    """How much of a sequence with blocks is known."""

    root: bytes  # of the names
    began: int  # in ns since 1970
    last: Prefix | None = None
    blocks: int = 0  # from its first on
    exact: bool = True
    branch: int = 0  # tokens after which a checkpoint was missing
    rolling: Prefix | None = None  # whose checkpoint makes room for the next one of the sequence


@dataclass
class Found:
    """What a sequence can take over."""

    root: bytes  # of the names
    prefixes: list[Prefix] = field(default_factory=list)
    branch: int = 0  # tokens that are known in all, where a checkpoint is missing after them

    @property
    def tokens(self) -> int:
        return len(self.prefixes) * CACHE_BLOCK


class Prefixes:
    """On rank 0."""

    def __init__(self, blocks: Blocks, states: range, every: int, enabled: bool = True, key: bytes | None = None):
        """states: slots for checkpoints, none where no layer is recurrent. every: tokens between two checkpoints that stay."""
        self._blocks, self._every, self.enabled = blocks, every, enabled
        self._key = key or token_bytes(32)
        self._named: dict[bytes, Prefix] = {}
        self._of_block: list[dict[int, Prefix]] = [{} for _ in blocks.pools]
        self.recurrent = len(states) > 0
        self._free_states = list(states)
        self._states: dict[int, Prefix] = {}  # whose state is in a slot, that which was used longest ago first
        blocks.forgotten = self._forgotten

    def find(self, tokens: Tokens[int], most: int, exact: bool, salt: str = "") -> Found:
        """The longest beginning of `tokens`, at most `most` of them, that is in the cache. exact: as Prefix has it. salt: what was
        computed with another one is not found, so that nobody learns by the time of an answer what others have said."""
        root, chain = self._root(salt), list[Prefix]()
        while self.enabled and (len(chain) + 1) * CACHE_BLOCK <= most:
            part = _part(tokens, len(chain))
            prefix = self._named.get(self._name(chain[-1].name if chain else root, part))
            if prefix is None or prefix.tokens != part or (exact and not prefix.exact) or not self._sees_all(prefix):
                break
            chain.append(prefix)
        known = len(chain)
        while chain and not self._usable(chain):
            chain.pop()
        missing = self.recurrent and len(chain) < known
        return Found(root, chain, known * CACHE_BLOCK if missing else 0)

    def take(self, found: Found) -> tuple[Tables, Known]:
        """Tables that hold the blocks of what was found; a checkpoint of it counts as used."""
        tables, chain = Tables(self._blocks), found.prefixes
        for pool in range(len(self._blocks.pools)):
            first = self._first_seen(pool, len(chain))
            tables.first[pool] = first
            for i, prefix in enumerate(chain):
                block = prefix.blocks[pool] if i >= first else 0
                assert block is not None
                tables.numbers[pool].append(block)
                if i >= first:
                    self._blocks.hold(pool, block)
        began = time.time_ns()
        if not chain:
            return tables, Known(found.root, began, branch=found.branch)
        last = chain[-1]
        if last.state is not None:
            self._states[last.state] = self._states.pop(last.state)
        for i, prefix in enumerate(chain):
            prefix.used = used_at(began, i)
        return tables, Known(found.root, began, last, len(chain), last.exact, found.branch)

    def add(self, tables: Tables, known: Known, tokens: Tokens[int], done: int) -> None:
        """So many tokens of the sequence are done: its full blocks are known from now on."""
        while self.enabled and (known.blocks + 1) * CACHE_BLOCK <= done:
            number = known.blocks
            part = _part(tokens, number)
            name = self._name(known.last.name if known.last else known.root, part)
            prefix = self._named.setdefault(name, Prefix(name, part, [None] * len(tables.numbers), known.exact))
            for pool, numbers in enumerate(tables.numbers):
                if number >= tables.first[pool] and prefix.blocks[pool] is None:
                    prefix.blocks[pool] = numbers[number]
                    self._of_block[pool][numbers[number]] = prefix
                    self._blocks.remember(pool, numbers[number])
            prefix.used = max(prefix.used, used_at(known.began, number))
            known.last, known.blocks = prefix, number + 1

    # ------------------------------------------------------------ from one process to the next

    def parts(self) -> Iterator[tuple[Prefix, int, int]]:
        """All that is known: whose it is, its part (of the cache: a pool, or behind the last one states) and its block or slot."""
        for prefix in self._named.values():
            for part, number in enumerate([*prefix.blocks, prefix.state]):
                if number is not None:
                    yield prefix, part, number

    def room(self) -> list[int]:
        """Of each part: how much is free."""
        return [*(self._blocks.free(pool) for pool in range(len(self._blocks.pools))), len(self._free_states)]

    def restore(self, prefix: Prefix, part: int) -> int:
        """Where a part of it lies from now on, as one that was just released. Of what is restored the parts come one by one."""
        exact, prefix = prefix.exact, self._named.setdefault(prefix.name, prefix)
        prefix.exact &= exact
        if part == len(prefix.blocks):
            prefix.state = self._free_states.pop()
            self._states[prefix.state] = prefix
            return prefix.state
        block = self._blocks.take(part)
        assert block is not None, "there is room"
        prefix.blocks[part] = block
        self._of_block[part][block] = prefix
        self._blocks.remember(part, block)
        self._blocks.release(part, [block])
        return block

    def restored(self) -> None:
        """All that there was."""
        for prefix in list(self._states.values()):
            if not self._sees_all(prefix):
                self._drop_state(prefix)
                self._forget_empty(prefix)

    # ------------------------------------------------------------ checkpoints

    def next_stop(self, known: Known, done: int, fed: int) -> int:
        """Where the next Step of a sequence ends at the latest, so that a checkpoint can be taken there."""
        if not self.recurrent:
            return fed
        last = last_border(fed)
        stops = [done // self._every * self._every + self._every, known.branch, last]
        return min((stop for stop in stops if done < stop <= last), default=fed)

    def checkpoint(self, known: Known, done: int, fed: int) -> int | None:
        """The slot for a sequence's state now, if it should be kept; after add(). fed: as in next_stop."""
        prefix = known.last
        if not self.recurrent or prefix is None or done != known.blocks * CACHE_BLOCK or prefix.state is not None:
            return None
        if prefix.exact and not known.exact:  # it would not have the bits that the prefix says it has
            return None
        old, known.rolling = known.rolling, None
        if done % self._every and done not in (known.branch, last_border(fed)):
            known.rolling = prefix
        if old and old.state is not None and known.rolling:
            self._drop_state(old)
        if not self._free_states:
            self._drop_state(next(iter(self._states.values())))
        prefix.state = self._free_states.pop()
        self._states[prefix.state] = prefix
        return prefix.state

    def _drop_state(self, prefix: Prefix) -> None:
        assert prefix.state is not None
        del self._states[prefix.state]
        self._free_states.append(prefix.state)
        prefix.state = None

    # ------------------------------------------------------------ inside

    def _root(self, salt: str) -> bytes:
        """What stands for the name of a block before the first one."""
        return blake2b(salt.encode(errors="surrogatepass"), digest_size=16, key=self._key).digest()

    def _name(self, before: bytes, tokens: bytes) -> bytes:
        return blake2b(before + tokens, digest_size=16, key=self._key).digest()

    def _first_seen(self, pool: int, blocks: int) -> int:
        """The first block that the token after so many blocks reads."""
        return max(blocks * CACHE_BLOCK + 1 - self._blocks.pools[pool].window, 0) // CACHE_BLOCK

    def _sees_all(self, prefix: Prefix) -> bool:
        """Whether it has its block for all layers that see everything."""
        return all(
            block is not None for block, pool in zip(prefix.blocks, self._blocks.pools, strict=True) if pool.window == NO_WINDOW
        )

    def _usable(self, chain: list[Prefix]) -> bool:
        if self.recurrent and chain[-1].state is None:
            return False
        pools = range(len(self._blocks.pools))
        return all(prefix.blocks[pool] is not None for pool in pools for prefix in chain[self._first_seen(pool, len(chain)) :])

    def _forgotten(self, pool: int, block: int) -> None:
        """A block is taken for other tokens."""
        prefix = self._of_block[pool].pop(block)
        prefix.blocks[pool] = None
        if prefix.state is not None and not self._sees_all(prefix):
            self._drop_state(prefix)
        self._forget_empty(prefix)

    def _forget_empty(self, prefix: Prefix) -> None:
        if prefix.state is None and not any(block is not None for block in prefix.blocks):
            del self._named[prefix.name]


def last_border(fed: int) -> int:
    """The last border of a block before the last two tokens: what is behind it is always computed, and not as a row of its own."""
    return max(fed - 2, 0) // CACHE_BLOCK * CACHE_BLOCK


def used_at(began: int, number: int) -> int:
    """When a block was used, in a sequence that began then: a later one counts as earlier, so that it is the first to go."""
    return began - 1000 * number


def _part(tokens: Tokens[int], number: int) -> bytes:
    """The tokens of a block."""
    return array("q", tokens[number * CACHE_BLOCK : (number + 1) * CACHE_BLOCK]).tobytes()
