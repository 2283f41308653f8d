"""Why a server cannot be reached, in words: the libraries say little more than that it failed."""

from __future__ import annotations

import os
import socket

_SECONDS = 3.0


def why_unreachable(host: str, ports: list[int]) -> str | None:
    """The first thing that is wrong with the host's name or with one of its TCP ports; None when all is well."""
    for port in ports:
        try:
            socket.create_connection((host, port), timeout=_SECONDS).close()
        except socket.gaierror as error:
            return f"the host name '{host}' cannot be resolved ({error.strerror})"
        except UnicodeError:
            return f"'{host}' is not a host name"
        except TimeoutError:
            return f"no answer from {host} port {port}"
        except OSError as error:
            return f"{os.strerror(error.errno) if error.errno else error} ({host} port {port})"
    return None


def addresses_of(host: str) -> list[str]:
    """A host's addresses, in the resolver's order; its name itself where that cannot be resolved, which to connect to
    then tells.
    """
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return [host]
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def address_that_answers(host: str, ports: list[int]) -> str:
    """The first of several addresses of a host where all these TCP ports are open: a name may have one of IPv6 where
    the server listens on IPv4 alone. The name itself where it has one address, or none does.
    """
    found = addresses_of(host)
    if len(found) == 1:
        return host
    return next((address for address in found if why_unreachable(address, ports) is None), host)
