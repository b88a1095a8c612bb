"""``server.listen`` and its like: what it says, and whether only this machine can reach it.

Being exposed is decided by what is written, never by resolving a name: only loopback literals,
``localhost`` and Unix sockets are known to stay inside.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path

MAX_PORT = 65535
MAX_UNIX_PATH_BYTES = 107
"""sun_path of unix(7) holds 108 bytes, the last of them zero."""

_PORT = re.compile(r"[0-9]{1,5}")
_HOST_NAME = re.compile(
    r"(?=.{1,253}$)[A-Za-z0-9]([A-Za-z0-9-]{0,62})(\.[A-Za-z0-9-]{1,63})*(?<!-)\.?"
)
_ANY_HOST = frozenset({"0.0.0.0", "::"})  # noqa: S104  known, not bound
_ONLY_DIGITS = re.compile(r"[0-9.]+|0[xX].*")


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host without brackets, and a port; port 0 takes any that is free."""

    host: str
    port: int

    @property
    def exposed(self) -> bool:
        """Whether another machine might reach it."""
        if self.host.lower() == "localhost":
            return False
        try:
            address = ipaddress.ip_address(self.host)
        except ValueError:
            return True
        mapped = getattr(address, "ipv4_mapped", None)  # 3.11 takes ::ffff:127.0.0.1 for public
        return not (mapped or address).is_loopback

    def meets(self, other: Address) -> bool:
        """Whether listening on this one is listening on the other too, at least in part."""
        if not isinstance(other, TcpAddress) or self.port != other.port or not self.port:
            return False
        return self.place == other.place or bool({self.host, other.host} & _ANY_HOST)

    @property
    def place(self) -> str:
        """The host, by one of the names that it has."""
        return "127.0.0.1" if self.host.lower() == "localhost" else self.host.lower()

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system."""

    path: Path

    @property
    def exposed(self) -> bool:
        """Whether another machine might reach it: never."""
        return False

    def meets(self, other: Address) -> bool:
        """Whether both are the same socket."""
        return self == other

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse(text: str) -> Address:
    """Read ``HOST:PORT``, ``[IPV6]:PORT`` or ``unix:/PATH``; raise ``ValueError`` with why."""
    if text.startswith("unix:"):
        return _unix(text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not colon or not host or not _PORT.fullmatch(port):
        raise ValueError("must be HOST:PORT, [IPV6]:PORT or unix:/PATH")
    if int(port) > MAX_PORT:
        raise ValueError(f"port {port} is beyond {MAX_PORT}")
    if host.startswith("[") and host.endswith("]"):
        return TcpAddress(_ipv6(host[1:-1]), int(port))
    if ":" in host:
        raise ValueError("an IPv6 address stands in brackets: [::1]:7070")
    return TcpAddress(_ipv4_or_name(host), int(port))


def _unix(path: str) -> UnixAddress:
    if not path.startswith("/") or path.endswith("/"):
        raise ValueError("after unix: comes the absolute path of a socket, such as /run/mgpu.sock")
    if len(path.encode()) > MAX_UNIX_PATH_BYTES:
        raise ValueError(f"a socket's path has at most {MAX_UNIX_PATH_BYTES} bytes")
    return UnixAddress(Path(path))


def _ipv6(host: str) -> str:
    try:
        return str(ipaddress.IPv6Address(host))
    except ValueError as error:
        raise ValueError("what stands in the brackets is not an IPv6 address") from error


def _ipv4_or_name(host: str) -> str:
    try:
        return str(ipaddress.IPv4Address(host))
    except ValueError:
        # 127.1, 0x7f.1 and 2130706433 mean different hosts to different resolvers
        if _ONLY_DIGITS.fullmatch(host) or not _HOST_NAME.fullmatch(host):
            raise ValueError("the host must be an IP address or a host name") from None
    return host
