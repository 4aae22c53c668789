"""What the command line says of the server."""

from dataclasses import dataclass
from ipaddress import ip_address

from numatp.errors import UserError


@dataclass(frozen=True)
class Settings:
    host: str = "127.0.0.1"
    port: int = 8080  # 0: one that is free
    keys: tuple[str, ...] = ()  # any of them opens; none: no key is asked for
    no_auth: bool = False  # no key although others can reach the host
    alias: str | None = None  # the model's name; None: its file's
    allowed_hosts: tuple[str, ...] = ()  # names under which the server may be called, beside its own
    timeout: float | None = None  # seconds of one request
    max_queue: int = 128  # requests that wait, beside those that run
    max_queue_tokens: int = 0  # of prompts that are not computed yet, 0: any
    ping: float = 30.0  # seconds of silence in a stream until a sign of life, 0: none
    shutdown_timeout: float = 600.0  # seconds that requests under way have after SIGTERM
    hang: float = 300.0  # seconds of one Step after which /health says that the engine hangs

    def __post_init__(self) -> None:
        if not self.loopback and not self.keys and not self.no_auth:
            raise UserError(
                f"--host {self.host} lets others in: give --api-key-file FILE (or LLAMA_API_KEY), or --no-auth if that is meant"
            )

    @property
    def loopback(self) -> bool:
        """Whether only programs of this machine reach the server."""
        return self.is_socket or is_loopback(self.host)

    @property
    def is_socket(self) -> bool:
        """Whether the host is a path, of a unix socket: who may open that file may ask. llama-server tells by the same ending."""
        return self.host.endswith(".sock")


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def is_address(host: str) -> bool:
    """Whether a host is said as a number, so that no name server has a say in it."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True
