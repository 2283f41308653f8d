"""libiscsi: contexts, login, and SCSI commands whose bytes we build ourselves.

Of struct scsi_task only the beginning is declared, which is the same since 1.12; `library` checks it against a command
whose bytes are known before anything relies on it.
"""

from __future__ import annotations

import functools
from typing import Any

from mpconv.model.errors import Fatal
from mpconv.transports.native import _libiscsi as compiled
from mpconv.transports.native import load

ffi: Any = compiled.ffi


NORMAL_SESSION = 2
NO_DIGEST_OR_CRC32C = 1
UNDERFLOW = 1


_NAMES = [*(f"libiscsi.so.{number}" for number in (7, 8, 9, 10, 11)), "libiscsi.so"]


@functools.cache
def library() -> Any:
    """libiscsi, of whatever version is installed. Fatal when there is none, or one whose tasks look different."""
    loaded = load(ffi, _NAMES, "libiscsi", "libiscsi7")
    if not _layout_fits(loaded):
        raise Fatal("this version of libiscsi is not known to mpconv: install libiscsi 1.18 to 1.20")
    return loaded


def _layout_fits(loaded: Any) -> bool:
    """Whether the declared fields of a task read back what it was made from."""
    cdb, length = bytes(range(1, 17)), 0x123456
    task = loaded.scsi_create_task(len(cdb), cdb, 1, length)
    if task == ffi.NULL:
        return False
    fits = bool(task.cdb_size == len(cdb) and task.expxferlen == length and bytes(ffi.buffer(task.cdb)) == cdb)
    loaded.scsi_free_scsi_task(task)
    return fits
