"""A process that is not to outlive the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal

ENDED = signal.SIGUSR2
"""What comes when the parent ends; by default it ends this process. It may come once for each thread that the parent
had, so it is none of the signals that mean more the second time.
"""
_PR_SET_PDEATHSIG = 1


def watched(pid: int) -> bool:
    """Have `ENDED` sent when the parent ends. False: that process is not the parent any more."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, ENDED)
    return os.getppid() == pid
