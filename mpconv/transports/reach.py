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
