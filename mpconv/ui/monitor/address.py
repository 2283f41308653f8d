"""Where to listen: ADDR:PORT, with this host alone as default. Pure."""

from __future__ import annotations

import ipaddress

from msgspec import Struct

from mpconv.model.errors import UsageError

LOOPBACK = "127.0.0.1"


class Address(Struct, frozen=True):
    """`host`: a name or address, "" for all of this host's; `port` 0: any that is free."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether nobody on another host can connect."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def url(self, port: int, shown: str) -> str:
        """The URL to open; `shown`: this host's name, for when any address will do."""
        host = shown if self.host in {"", "0.0.0.0", "::"} else self.host
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def parse(text: str, option: str) -> Address:
    """ "9100", ":9100", "10.0.0.1:9100", "[::1]:9100", "*:9100". UsageError for anything else."""
    host, colon, port = text.rpartition(":")
    wrong = UsageError(f"{option} must be ADDR:PORT, or PORT for this host alone, not '{text}'")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise wrong
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host or any(letter in host for letter in " /@?#"):
        raise wrong
    if not colon or not host:
        return Address(LOOPBACK, int(port))
    return Address("" if host == "*" else host, int(port))
