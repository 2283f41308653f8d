"""Which of this host's addresses others reach, and which ones they do not."""

from __future__ import annotations

import ipaddress
import socket

from mpconv.model.errors import Unreachable


def local_address_to(host: str, port: int) -> str:
    """The address of this host from which that one is reached. Unreachable when there is none."""
    try:
        for family, kind, _, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                probe.connect(address)  # of UDP, which sends nothing
                return str(probe.getsockname()[0])
    except OSError as error:
        why = f"{error.strerror}: see to its name, and to the network"
        raise Unreachable(f"the Dask scheduler's host '{host}' cannot be reached: {why}") from None
    raise Unreachable(f"the Dask scheduler's host '{host}' has no address: see to its name")


def on_loopback(host: str) -> bool:
    """Whether all addresses of that name are this host's own, which no other one hears."""
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return bool(found) and all(is_loopback(str(address[0])) for *_, address in found)


def is_loopback(address: str) -> bool:
    """Whether it leads to the same host from everywhere on it, and from nowhere else."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"


def is_unspecified(address: str) -> bool:
    """Whether it stands for all addresses of a host."""
    try:
        return ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return address == "*"
