"""Zeros in files and on block devices by fallocate: without writing them, and with the room given back if possible.

The kernel punches a hole into a block device only where the device promises that it reads as zeros.
"""

from __future__ import annotations

import ctypes
import errno
import os

_KEEP_SIZE, _PUNCH_HOLE, _ZERO_RANGE = 1, 2, 16
_MEANS = {
    _PUNCH_HOLE | _KEEP_SIZE: ("holes are punched", "blocks are unmapped"),
    _ZERO_RANGE | _KEEP_SIZE: ("ranges are marked as zeros", "the kernel zeroes blocks"),
}
"""By mode, the best first: what it does to a file and to a device."""
UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENODEV, errno.ENOTTY}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


class Zeroing:
    """The means that are left for one open file: one that the filesystem or device lacks is not tried again."""

    def __init__(self, fd: int, *, device: bool) -> None:
        self._fd = fd
        self._device = device
        self._modes = tuple(_MEANS)

    def zero(self, offset: int, length: int) -> bool:
        """Zeros in a range, on a device of whole blocks; False: nothing can. Called from many threads."""
        for mode in self._modes:
            try:
                self._fallocate(mode, offset, length)
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
                self._modes = tuple(left for left in self._modes if left != mode)
            else:
                return True
        return False

    @property
    def words(self) -> str | None:
        """What is done, None when nothing can be."""
        return _MEANS[self._modes[0]][self._device] if self._modes else None

    def _fallocate(self, mode: int, offset: int, length: int) -> None:
        if _libc.fallocate(self._fd, mode, offset, length) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
