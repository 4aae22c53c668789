"""The memory policy of this process: which node new pages prefer. The only file that imports py-libnuma (`numa`).

First touch by pinned threads already puts pages where they belong; the policy covers what other threads touch. So nothing
here is an error: what cannot be done is one sentence.
"""

import os
import re
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

from numatp.machine.topology import parse_cpulist

FIRST_LINE = 512  # bytes of numa_maps that hold a policy; the kernel looks at all pages of a mapping before it says more
FIRST_TOUCH = "pages go to the node whose thread touches them first"
OURS = "NUMATP_MEMORY_POLICY"  # environment: the policy that numatp itself has set here or in a process above


def current_policy(root: str | Path = "/") -> str:
    """Like "bind:0" or "interleave:0-1" (the kernel's words); "default" when none is set, "" when it cannot be read.

    Read from /proc/thread-self/numa_maps, which works without libnuma and where containers forbid get_mempolicy. A mapping
    without a policy of its own shows that of the thread; the first mapping is the interpreter's own file, which nobody binds.
    """
    try:
        with open(Path(root, "proc/thread-self/numa_maps"), "rb", buffering=0) as lines:
            first = lines.read(FIRST_LINE).decode(errors="replace")
    except OSError:
        return ""
    match = re.match(r"[0-9a-f]+ ((?:weighted )?[a-z]+(?: \(many\))?\S*)", first)
    return match[1] if match else ""


def from_outside(node: int, environ: MutableMapping[str, str] = os.environ) -> str:
    """The policy that was set before numatp came, as current_policy has it; "" when there is none, or it is ours for `node`.

    One that a numatp process handed down to the worker it started is not from outside: the worker's node is another one.
    """
    before = current_policy()
    return "" if before in ("", "default", f"prefer:{node}", environ.get(OURS)) else before


def bound_nodes(policy: str) -> tuple[int, ...]:
    """Nodes that a policy in the kernel's words ("bind:0-1", "bind=static:0") confines pages to; () where it confines them to none.

    Preferred and interleaved pages go on to other nodes when theirs are full.
    """
    mode, _, nodes = policy.rpartition(":")
    return parse_cpulist(nodes) if mode.partition("=")[0] == "bind" else ()


def libnuma_fault() -> str:
    """Why py-libnuma does not work here; "" if it does. A broken library may end the process: ask in a child."""
    try:
        import numa
    except ModuleNotFoundError:
        return "py-libnuma is not installed"
    except (ImportError, OSError, AttributeError):
        return "libnuma.so is missing"
    return "" if numa.MAX_NUMANODES else "libnuma.so knows no nodes"


def prefer_node(node: int, environ: MutableMapping[str, str] = os.environ) -> str:
    """Let new pages of this process and its later threads prefer `node`; "" when done, otherwise a sentence saying why not.

    A policy that came from outside (numactl) stays: whoever set it meant it.
    """
    if before := from_outside(node, environ):
        return f"the memory policy {before} was set from outside (numactl?) and is kept"
    numa, why = _libnuma()
    if why:
        return f"{why}: {FIRST_TOUCH}"
    if node not in numa.memory.get_allocation_allowed_nodes():
        return f"this job may not allocate on node {node}: its pages go elsewhere"
    numa.schedule.set_preferred_node(node)
    # py-libnuma reports no failure, so look.
    if numa.schedule.get_preferred_node() != node or current_policy() not in ("", f"prefer:{node}"):
        return f"node {node} could not be made the preferred one: {FIRST_TOUCH}"
    environ[OURS] = f"prefer:{node}"
    return ""


def interleave_over(nodes: Sequence[int]) -> str:
    """Spread new pages of this thread and its later ones over the nodes in turn; "" when done, otherwise why not."""
    numa, why = _libnuma()
    if why:
        return f"{why}: {FIRST_TOUCH}"
    numa.memory.set_interleave_nodes(*nodes)
    policy = current_policy()
    return "" if policy.startswith("interleave") else f"pages could not be interleaved (policy {policy}): {FIRST_TOUCH}"


def _libnuma() -> tuple[Any, str]:
    """(the library, why it can be used for nothing or "")."""
    try:
        import numa
    except (ImportError, OSError, AttributeError):  # without libnuma.so it fails on the first symbol, not on loading
        return None, "libnuma is missing, so no memory policy is set"
    # get_mempolicy itself says silently whether the kernel lets us; libnuma's own functions print to stderr when refused.
    if numa.LIBNUMA.get_mempolicy(None, None, 0, None, 0) != 0:
        return None, "the kernel refuses memory policies here (a container's rule?)"
    return numa, ""
