"""GET /: the page, one file, which asks nobody but this server."""

import base64
import hashlib
import re
from functools import cache
from pathlib import Path

from numatp.server.endpoint import Call
from numatp.server.reply import Body, Reply

FILE = Path(__file__).with_name("page.html")


@cache
def _page() -> tuple[bytes, str]:
    """The page, and a policy by which a browser runs what is in it and nothing else."""
    content = FILE.read_bytes()
    policy = [
        "default-src 'none'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
    for kind in ("script", "style"):
        hashes = [_hash(found) for found in re.findall(rb"<%b>(.*?)</%b>" % (kind.encode(), kind.encode()), content, re.DOTALL)]
        policy.append(f"{kind}-src {' '.join(hashes)}")
    return content, "; ".join(policy)


def _hash(text: bytes) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text).digest()).decode()}'"


async def page(call: Call) -> Reply:
    content, policy = _page()
    return Body(content, headers={"content-security-policy": policy}, kind="text/html; charset=utf-8")
