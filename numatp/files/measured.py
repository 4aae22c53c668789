"""What was measured on this host and is worth keeping: the roofline of its nodes, in `bandwidth.json` of the cache folder.

{"HOST": {"nodes": {"0": {"read_gbs": 210.5}, "1": {"read_gbs": 208.9}}, ...}}: `read_gbs` is what all cores of a node together
read from their own node's memory, in 1e9 bytes per second. Whoever measures may keep more under the host's name.
"""

import json
import math
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from numatp.files.cache import cache_dir, make_folder
from numatp.files.unfinished import unfinished_file
from numatp.machine.uninterrupted import uninterrupted


def path() -> Path:
    return cache_dir() / "bandwidth.json"


def read_bandwidth(host: str | None = None) -> dict[int, float]:
    """Bytes per second that each measured node's cores read from it, by node id; empty if `host` (this one) was never measured."""
    nodes = _read().get(host or socket.gethostname(), {})
    nodes = nodes.get("nodes", {}) if isinstance(nodes, dict) else {}
    found = {}
    for node, measured in nodes.items() if isinstance(nodes, dict) else ():
        rate = measured.get("read_gbs") if isinstance(measured, dict) else None
        if node.isdecimal() and len(node) < 10 and isinstance(rate, int | float) and math.isfinite(rate) and rate > 0:
            found[int(node)] = rate * 1e9
    return found


def keep_bandwidth(read_gbs: Mapping[int, float], more: Mapping[str, Any] | None = None, host: str | None = None) -> Path:
    """Keeps GB/s by node, and `more` beside it, in place of what was known of `host`; returns the file.

    UserError if the cache folder cannot be written.
    """
    target = path()
    make_folder(target.parent)
    known = _read()
    nodes = {str(node): {"read_gbs": rate} for node, rate in sorted(read_gbs.items())}
    known[host or socket.gethostname()] = {**(more or {}), "nodes": nodes}
    with uninterrupted(), unfinished_file(target) as file:  # whoever reads at this moment sees one of the two, whole
        file.write_text(json.dumps(known, indent=1))
    return target


def _read() -> dict[str, Any]:
    """Empty when it is absent or damaged: it can be measured again."""
    try:
        known = json.loads(path().read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
