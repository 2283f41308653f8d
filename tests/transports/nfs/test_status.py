"""What NFS servers' refusals mean: may it be tried again, on which connection, and in which words."""

from __future__ import annotations

import errno

import pytest

from mpconv.model.errors import Absent, Busy, Denied, Fatal, NoSpace, Retryable
from mpconv.transports.nfs.status import meaning


@pytest.mark.parametrize(
    ("status", "text", "kind", "words"),
    [
        (-errno.EAGAIN, "NFS: Read failed with NFS3ERR_JUKEBOX(-11)", Busy, "try again later"),
        (-errno.EFAULT, "NFS: Write failed with NFS3ERR_JUKEBOX(-11)", Busy, "try again later"),
        (-errno.ERANGE, "NFS4: open (path /a) failed with NFS4ERR_GRACE(-34)", Busy, "try again later"),
        (-errno.ERANGE, "NFS4: read (path /a) failed with NFS4ERR_DELAY(-34)", Busy, "try again later"),
        (-errno.EIO, "NFS: Read failed with NFS3ERR_STALE(-5)", Absent, "Stale file handle"),
        (-errno.EFAULT, "NFS: Read failed with NFS3ERR_STALE(-5)", Absent, "Stale file handle"),
        (-errno.ESTALE, "", Absent, "Stale file handle"),
        (-errno.ENOENT, "NFS: Lookup of /a failed with NFS3ERR_NOENT(-2)", Absent, "No such file or directory"),
        (-errno.EIO, "NFS: Read failed with NFS3ERR_IO(-5)", Fatal, "Input/output error"),
        (-errno.EFAULT, "NFS: Write failed with NFS3ERR_NOSPC(-28)", NoSpace, "No space left on device"),
        (-errno.ERANGE, "NFS: Write failed with NFS3ERR_DQUOT(-34)", NoSpace, "Disk quota exceeded"),
        (-errno.EFAULT, "NFS: Write failed with NFS3ERR_DQUOT(-34)", NoSpace, "Disk quota exceeded"),
        (-errno.EROFS, "NFS: Write failed with NFS3ERR_ROFS(-30)", Denied, "Read-only file system"),
        (-errno.EACCES, "NFS: Read failed with NFS3ERR_ACCES(-13)", Denied, "Permission denied"),
        (-errno.EIO, "NFS: Write failed with NFS3ERR_SERVERFAULT(-5)", Retryable, "NFS3ERR_SERVERFAULT"),
        (-errno.ERANGE, "NFS4: read (path /a) failed with NFS4ERR_EXPIRED(-34)", Retryable, "NFS4ERR_EXPIRED"),
        (-errno.EIO, "nfs_service failed", Retryable, "the connection to the server was lost"),
        (-errno.EINTR, "Command timed out", Retryable, "did not answer in time"),
        (-errno.EFAULT, "RPC error", Retryable, "Bad address"),
    ],
)
def test_meanings(status, text, kind, words):
    found, said = meaning(status, text)
    assert found is kind
    assert words in said
