"""From an iSCSI URL to a session that is logged in, by libiscsi's blocking calls, and every way to fail in words.

The URL is read as libiscsi and qemu-img read it: the user ends at the first '%', user and password are taken as
they stand, and of the rest only the target's name is percent-decoded, to bytes. What follows a '?' is not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import secrets
import socket
import time
from dataclasses import dataclass, field
from typing import Any

from mpconv.model.errors import Absent, Crowded, Denied, Fatal, Unavailable, Unreachable
from mpconv.transports.base import cannot_open
from mpconv.transports.native import libiscsi
from mpconv.transports.native.libiscsi import ffi
from mpconv.transports.native.requests import request_seconds
from mpconv.transports.native.threads import beside
from mpconv.transports.percent import decoded
from mpconv.transports.reachability import addresses_of, why_unreachable
from mpconv.transports.redaction import redacted

DEFAULT_PORT = 3260
LARGEST_LUN = 0x3FFF
_FLAT = 0x4000
_LOGIN_SECONDS = 8
_CLOSE_SECONDS = 3
_SYN_RETRIES = 1
"""A second attempt after one second; given up after three."""
_WHOLE_LOGINS = 3
"""So many may be silent until the end, at different addresses or portals."""
_FORGETS_SECONDS = 5.0
"""For so long a target may count a session that has ended."""
_AGAIN_SECONDS = 0.2
_MOST_MOVES = 8
"""Real targets send once."""
_LONGEST = 255
"""libiscsi cuts longer texts off."""

_URL = re.compile(r"iscsi://(?:(?P<login>[^@?]*)@)?(?P<portal>[^/?]*)/(?P<target>[^/?]+)/(?P<lun>\d+)(?:\?.*)?", re.I)
_PORTAL = re.compile(r"(?:\[(?P<six>[^\[\]@]+)\]|(?P<host>[^:\[\]@]+))(?::(?P<port>\d{1,5}))?")
_FORM = "not of the form iscsi://[user[%password]@]host[:port]/target-iqn/lun"
_LOGIN_STATUS = re.compile(r"Status: (.*)\((\d+)\)")
_INITIATOR_ERROR = 0x0200
_AUTHENTICATION_FAILED, _FORBIDDEN, _NO_TARGET, _REMOVED = 0x0201, 0x0202, 0x0203, 0x0204
_TOO_MANY, _TARGET_ERROR, _UNAVAILABLE, _NO_RESOURCES = 0x0206, 0x0300, 0x0301, 0x0302
_LOGIN_KINDS: dict[int, type[Fatal]] = {
    _AUTHENTICATION_FAILED: Denied,
    _FORBIDDEN: Denied,
    _NO_TARGET: Absent,
    _REMOVED: Absent,
    _TOO_MANY: Crowded,
    _TARGET_ERROR: Unavailable,
    _UNAVAILABLE: Unavailable,
    _NO_RESOURCES: Crowded,
}


@dataclass(frozen=True)
class Address:
    """A LUN's URL, taken apart. `name`: the URL without password and parameters."""

    name: str
    host: str
    port: int
    target: str
    lun: int
    user: str = ""
    password: str = field(default="", repr=False)

    @property
    def place(self) -> tuple[str, int, str]:
        """Of the target."""
        return (self.host, self.port, self.target)

    @property
    def wire_lun(self) -> int:
        """The first two bytes of the LUN field: libiscsi sends the number as it is, and above 255 that would be
        another LUN (300 is taken for 44), unless flat space addressing is asked for."""
        return self.lun if self.lun < 256 else self.lun | _FLAT


def parse(url: str) -> Address:
    """Fatal when it is none. Nothing that may be a password comes into the message."""
    name = redacted(url)
    match = _URL.fullmatch(url)
    if match is None:
        raise cannot_open(name, _FORM)
    if "@" in match["portal"]:
        raise cannot_open(name, "a password with an '@' cannot stand in the URL: set LIBISCSI_CHAP_PASSWORD")
    portal = _PORTAL.fullmatch(match["portal"])
    if portal is None:
        raise cannot_open(name, _FORM)
    port = int(portal["port"] or DEFAULT_PORT)
    if not 0 < port < 65536:
        raise cannot_open(name, f"there is no port {port}")
    lun = int(match["lun"])
    if lun > LARGEST_LUN:
        raise cannot_open(name, f"there is no LUN {lun}: they go up to {LARGEST_LUN}")
    user, _, password = (match["login"] or "").partition("%")
    user = user or os.environ.get("LIBISCSI_CHAP_USERNAME", "")
    password = password or os.environ.get("LIBISCSI_CHAP_PASSWORD", "")
    if user and not password:
        raise cannot_open(name, f"no password for '{user}': write user%password or set LIBISCSI_CHAP_PASSWORD")
    target = decoded(name, match["target"])
    if any(len(os.fsencode(text)) > _LONGEST for text in (user, password, target, match["portal"])):
        raise cannot_open(name, f"host, target, user and password have {_LONGEST} bytes at most")
    return Address(name, portal["six"] or portal["host"], port, target, lun, user, password)


_numbers: dict[tuple[str, int, str], list[int]] = {}
"""Of each target, the session numbers (ISID, 24 bits) of connections that this process has closed."""

_ended: dict[tuple[str, int, str], float] = {}
"""When this process last ended a session with each target."""


@dataclass(frozen=True, slots=True, eq=False)
class Session:
    """A context of libiscsi's, logged in. `number`: the part of its ISID that is its own.

    The next connection that this process makes to the same target, after it has closed this one, has the same number:
    then a target that still holds the session of before ends it and aborts its commands (RFC 7143, 6.3.5: session
    reinstatement), so that no write of before can land any more.
    """

    library: Any
    context: Any
    address: Address
    number: int

    def end(self) -> None:
        """Cut the connection; requests that are under way get no answer."""
        self.library.iscsi_destroy_context(self.context)
        self._has_ended()

    async def log_out(self) -> None:
        """With no request under way: wait a little for the target's answer."""
        self.library.iscsi_set_timeout(self.context, _CLOSE_SECONDS)

        def run() -> None:
            self.library.iscsi_logout_sync(self.context)
            self.library.iscsi_destroy_context(self.context)

        with contextlib.suppress(TimeoutError):
            await beside(run, seconds=2 * _CLOSE_SECONDS)
        self._has_ended()

    def _has_ended(self) -> None:
        _ended[self.address.place] = time.monotonic()
        _give_back(self.address, self.number)


def _give_back(address: Address, number: int) -> None:
    _numbers.setdefault(address.place, []).append(number)


async def login(library: Any, address: Address) -> Session:
    """A full-feature session. Fatal says why not; nothing is left behind then. Where there is no room it is tried again
    for as long as that may be for a session of this process that has just ended.
    """
    while True:
        try:
            return await _login_once(library, address)
        except Crowded:
            if time.monotonic() - _ended.get(address.place, -_FORGETS_SECONDS) >= _FORGETS_SECONDS:
                raise
        await asyncio.sleep(_AGAIN_SECONDS)


async def _login_once(library: Any, address: Address) -> Session:
    known = _numbers.get(address.place)
    number = known.pop() if known else secrets.randbits(24)

    def run() -> Session:
        return Session(library, _login(library, address, number), address, number)

    try:
        return await beside(run, seconds=_WHOLE_LOGINS * _LOGIN_SECONDS, undo=_cut)
    except BaseException as error:
        _give_back(address, number)
        if isinstance(error, TimeoutError):
            why = _silence(address.host, address.port)
            raise cannot_open(address.name, why, Unreachable) from error
        raise


def _cut(session: Session) -> None:
    session.library.iscsi_destroy_context(session.context)


def _login(library: Any, address: Address, number: int) -> Any:
    """A context that is logged in, wherever the portal sends us."""
    host, port = address.host, address.port
    for _ in range(_MOST_MOVES):
        found = _login_at(library, address, number, host, port)
        if not isinstance(found, str):
            return found
        host, port = _moved_to(address, found)
    sent = f"its portals send from one to the next, {_MOST_MOVES} times, the last time to {host} port {port}"
    raise cannot_open(address.name, f"{sent}: see how the target is set up", Unreachable)


def _login_at(library: Any, address: Address, number: int, host: str, port: int) -> Any | str:
    """The same at one portal, or where that sends us. Of the host's addresses the first one that lets us in: a name may
    have one of IPv6 where the target listens on IPv4 alone.
    """
    errors: list[Fatal] = []
    for numeric in addresses_of(host):
        context = _context(library, address, number)
        portal = f"[{numeric}]:{port}" if ":" in numeric else f"{numeric}:{port}"
        if library.iscsi_connect_sync(context, os.fsencode(portal)) == 0 and library.iscsi_login_sync(context) == 0:
            library.iscsi_set_timeout(context, max(1, round(request_seconds())))
            return context
        text = ffi.string(library.iscsi_get_error(context)).decode(errors="replace")
        moved: str = ffi.string(library.iscsi_get_target_address(context)).decode(errors="replace")
        library.iscsi_destroy_context(context)
        if moved:
            return moved
        errors.append(_refused(address, text, host, port))
        if not isinstance(errors[-1], Absent | Unreachable):
            break
    # What a target says is worth more than that there is none at another address.
    raise min(errors, key=lambda error: isinstance(error, Unreachable))


def _moved_to(address: Address, portal: str) -> tuple[str, int]:
    """From a TargetAddress: host, port if it has one, and after a comma the portal's group."""
    match = _PORTAL.fullmatch(portal.partition(",")[0])
    if match is None or not 0 < int(match["port"] or DEFAULT_PORT) < 65536:
        raise cannot_open(address.name, f"the portal sends to '{portal}', which is no address", Unreachable)
    return match["six"] or match["host"], int(match["port"] or DEFAULT_PORT)


def _sent(address: Address, host: str, port: int) -> str:
    """A clause for what is wrong at a portal that is not the URL's."""
    if (host, port) == (address.host, address.port):
        return ""
    return f", where {address.host} port {address.port} sends"


def initiator_name() -> str:
    """The name that targets may restrict access by: MPCONV_INITIATOR_NAME, or one that is this host's for ever."""
    host = re.sub(r"[^a-z0-9.-]", "-", socket.gethostname().lower()) or "host"
    return os.environ.get("MPCONV_INITIATOR_NAME") or f"iqn.2026-11.org.mpconv:{host}"[:223]


def _context(library: Any, address: Address, number: int) -> Any:
    context = library.iscsi_create_context(os.fsencode(initiator_name()))
    if context == ffi.NULL:
        raise MemoryError("libiscsi could not make a context")
    # All connections have one name, so those that are open must differ in their numbers: an equal one ends the other.
    library.iscsi_set_isid_random(context, number, os.getpid() & 0xFFFF)
    library.iscsi_set_targetname(context, os.fsencode(address.target))
    library.iscsi_set_session_type(context, libiscsi.NORMAL_SESSION)
    library.iscsi_set_header_digest(context, libiscsi.NO_DIGEST_OR_CRC32C)
    library.iscsi_set_noautoreconnect(context, 1)
    library.iscsi_set_tcp_syncnt(context, _SYN_RETRIES)
    library.iscsi_set_timeout(context, _LOGIN_SECONDS)
    if address.user:
        library.iscsi_set_initiator_username_pwd(context, os.fsencode(address.user), os.fsencode(address.password))
        back_user = os.environ.get("LIBISCSI_CHAP_TARGET_USERNAME", "")
        back_password = os.environ.get("LIBISCSI_CHAP_TARGET_PASSWORD", "")
        if back_user and back_password:
            library.iscsi_set_target_username_pwd(context, os.fsencode(back_user), os.fsencode(back_password))
    return context


def _silence(host: str, port: int) -> str:
    return f"no answer from {host} port {port}: is the target up, and a firewall between?"


def _refused(address: Address, text: str, host: str, port: int) -> Fatal:
    """What libiscsi's last words mean; where it lost the connection it says little, so the port is asked again."""
    text = " ".join(text.split())
    status = _LOGIN_STATUS.search(text)
    if status is not None:
        number = int(status[2])
        return cannot_open(address.name, _login_words(address, number, status[1]), _LOGIN_KINDS.get(number, Fatal))
    sent = _sent(address, host, port)
    if "timed out" in text:
        return cannot_open(address.name, _silence(host, port) + sent, Unreachable)
    unreachable = why_unreachable(host, [port])
    if unreachable is not None:
        return cannot_open(address.name, unreachable + sent, Unreachable)
    if "iscsi_service" in text or not text:
        where = f"{host} port {port}"
        return cannot_open(address.name, f"{where} ended the connection: is it an iSCSI target?{sent}", Unreachable)
    return cannot_open(address.name, text + sent)


def _login_words(address: Address, status: int, text: str) -> str:
    if status == _AUTHENTICATION_FAILED:
        if address.user:
            return f"Authentication failed: the target does not take user '{address.user}' with this password"
        return (
            "Authentication failed: the target asks for CHAP; write user%password@ before the host,"
            " or set LIBISCSI_CHAP_USERNAME and LIBISCSI_CHAP_PASSWORD"
        )
    words = {
        _INITIATOR_ERROR: "The target refuses how this host logs in (0x0200):"
        " it may ask for data digests, which libiscsi does not know",
        _FORBIDDEN: f"Permission denied: the target is not open to this host, whose name is {initiator_name()}",
        _NO_TARGET: f"No such target '{address.target}', or it is not open to this host, {initiator_name()}",
        _REMOVED: f"The target '{address.target}' has been removed",
        _TOO_MANY: "The target allows no more connections",
        _TARGET_ERROR: "The target has an error of its own (0x0300)",
        _UNAVAILABLE: "The target is not available at present",
        _NO_RESOURCES: "The target has no room for another session",
    }
    return words.get(status, f"The target refuses the login: {text} ({status:#06x})")
