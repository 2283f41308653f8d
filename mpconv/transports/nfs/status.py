"""What an NFS server's refusals mean for the caller. Pure.

libnfs tells an errno, of which several are shared (NFS3ERR_STALE is EIO in libnfs 4, NFS3ERR_DQUOT is ERANGE, and any
error of a part of a request is EFAULT), and a text that names the protocol's own status: that counts where it is there.
"""

from __future__ import annotations

import errno
import re
from os import strerror

from mpconv.model.errors import Absent, Busy, Denied, Fatal, MpconvError, NoSpace, Retryable

_NAMED = re.compile(r"NFS[34]ERR_([A-Z_]+)(?:\((-?\d+)\))?")
_REASON = re.compile(r"\(-(\d+)\)")

_PUT_OFF = {"JUKEBOX", "DELAY", "GRACE", "RESOURCE"}
_PUT_OFF_MOUNT = "unknown mount stat(10008)"
"""NFS3ERR_JUKEBOX, from a server that says it where MOUNT has no such status."""
LOST = "the connection to the server was lost"
_LOST = {"nfs_service failed", "rpc_service failed", "Poll failed"}
"""So say libnfs's blocking calls; the status is EIO, as of a server whose disk is broken."""
_FORGOTTEN = {
    "ADMIN_REVOKED",
    "BADSESSION",
    "BAD_STATEID",
    "EXPIRED",
    "LEASE_MOVED",
    "OLD_STATEID",
    "SERVERFAULT",
    "STALE_CLIENTID",
    "STALE_STATEID",
}
"""The server does not know us any more, or met a defect of its own: a new connection may help."""
_NO_FILE = {"STALE", "BADHANDLE", "FHEXPIRED"}
_ERRNO = {"DQUOT": errno.EDQUOT}

_STATUSES = {
    63: errno.ENAMETOOLONG,
    66: errno.ENOTEMPTY,
    69: errno.EDQUOT,
    70: errno.ESTALE,
    71: errno.EREMOTE,
}
"""The statuses of NFSv3 below 10000 that are no errno of Linux."""
_TEXTS = {
    10001: "BADHANDLE",
    10002: "NOT_SYNC",
    10003: "BAD_COOKIE",
    10004: "NOTSUPP",
    10005: "TOOSMALL",
    10006: "SERVERFAULT",
    10007: "BADTYPE",
    10008: "JUKEBOX",
}
_FIRST_TEXT = 10000

_FINAL = {
    errno.EIO,
    errno.ENXIO,
    errno.EINVAL,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ENODEV,
    errno.ENOTDIR,
    errno.ERANGE,
}


_KINDS = {
    errno.ENOSPC: NoSpace,
    errno.EDQUOT: NoSpace,
    errno.EFBIG: NoSpace,
    errno.EACCES: Denied,
    errno.EPERM: Denied,
    errno.EROFS: Denied,
}


def meaning(status: int, text: str) -> tuple[type[MpconvError], str]:
    """The error for a status below 0 and libnfs's text: what the caller may do, and the words. `Absent`: there is no
    such file any more.
    """
    if status == -errno.EINTR:
        return Retryable, "the server did not answer in time"
    if is_lost(text):
        return Retryable, LOST
    named = _NAMED.search(text)
    name = named[1] if named else ""
    if name in _PUT_OFF or _PUT_OFF_MOUNT in text:
        return Busy, "the server asks to try again later"
    if name in _FORGOTTEN:
        return Retryable, f"the server answers {named[0].partition('(')[0] if named else ''}"
    if name in _NO_FILE or status == -errno.ESTALE:
        return Absent, "Stale file handle: the file is not on the server any more"
    if status == -errno.EFAULT:
        reason = _REASON.search(text)
        status = -int(reason[1]) if reason else status
    number = _ERRNO.get(name, -status)
    if number == errno.EAGAIN:
        return Busy, "the server asks to try again later"
    if number == errno.ENOENT:
        return Absent, strerror(number)
    return _KINDS.get(number, Fatal if number in _FINAL else Retryable), strerror(number)


def is_lost(text: str) -> bool:
    """Whether libnfs's text says that the connection ended while one of its blocking calls waited."""
    return text in _LOST


def refusal(status: int) -> tuple[type[MpconvError], str]:
    """As `meaning`, of an NFSv3 status as the server sent it."""
    if status < _FIRST_TEXT:
        return meaning(-_STATUSES.get(status, status), "")
    name = f"NFS3ERR_{_TEXTS.get(status, status)}"
    kind, why = meaning(-errno.EIO, name)
    return (kind, why) if kind is not Fatal else (Retryable, f"the server answers {name}")
