"""Network and mount namespaces of its own for the process that runs tests: their servers meet no others.

nfs-ganesha tells the portmapper its ports, and one that starts takes over those of another in the same namespace; tgtd
puts its sockets into /run. In a namespace each, several processes may run tests at once, beside whatever else runs.
"""

from __future__ import annotations

import ctypes
import os
import subprocess

from tests.support.link import make_interface

_CLONE_NEWNS = 0x00020000
_CLONE_NEWNET = 0x40000000


def possible() -> bool:
    """Whether this process may make them: as root, where nothing forbids it."""
    return (
        os.geteuid() == 0
        and not subprocess.run(["unshare", "-nm", "true"], check=False, capture_output=True).returncode
    )


def enter() -> None:
    """Move the calling thread, and the threads and processes it starts from now on, into namespaces of its own."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    for command in ("mount --make-rprivate /", "mount -t tmpfs none /run", "ip link set lo up"):
        subprocess.run(command.split(), check=True)
    make_interface("tests0", "tests1", "10.99.0.1")
