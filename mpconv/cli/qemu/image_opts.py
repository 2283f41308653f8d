"""`--image-opts`: an image described by QEMU's driver options, as in `driver=raw,file.driver=file,file.filename=X`.

A tree of nodes: "raw" and "qcow2" have a `file` below them, at the end of the chain stands a protocol: file,
host_device, nfs, iscsi or null-co. Every option must be known to its node. What only tunes QEMU is looked at and passed
over. Errors are in qemu-img's words and never show a password.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterable
from urllib.parse import quote

import msgspec

from mpconv.cli.qemu.create_opts import pairs, parse_bytes, parse_number, parse_switch
from mpconv.cli.qemu.format_names import OTHERS, QCOW2, RAW
from mpconv.model.errors import UsageError
from mpconv.model.place import Place
from mpconv.model.units import GiB

_NODE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,30}")
_SECRETS = re.compile(r"((?:^|,)[^,=]*passw[^,=]*=)(?:[^,]|,,)*|(://[^,/%@]*)%(?:[^,]|,,)*(?=@)")
_URL_LIKE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*:")
_NULL_SIZE = GiB
_IN_A_PATH = "/:@!$&'()*+,;=~"
"""What stands for itself in the path of a URL, besides letters and digits (RFC 3986)."""


class _Node:
    """The options of one node, taken out as they are understood."""

    def __init__(self, values: dict[str, str], whole: str) -> None:
        self._values = values
        self._whole = whole

    def refuse(self, why: str) -> UsageError:
        return UsageError(f"Could not open '{_hide_secrets(self._whole)}': {_hide_secrets(why)}")

    def take(self, name: str) -> str | None:
        return self._values.pop(name, None)

    def has_below(self, name: str) -> bool:
        return any(key.startswith(f"{name}.") for key in self._values)

    def below(self, name: str) -> _Node:
        """The node under `name`, with its options."""
        keys = [key for key in self._values if key.startswith(f"{name}.")]
        return _Node({key[len(name) + 1 :]: self._values.pop(key) for key in keys}, self._whole)

    def first(self) -> str | None:
        """What is left."""
        return next(iter(self._values), None)

    def switch(self, name: str) -> bool | None:
        value = self.take(name)
        try:
            return None if value is None else parse_switch(name, value)
        except ValueError as error:
            raise self.refuse(str(error)) from None

    def bytes(self, name: str) -> int | None:
        value = self.take(name)
        try:
            return None if value is None else parse_bytes(name, value)
        except ValueError as error:
            raise self.refuse(str(error)) from None

    def number(self, name: str, kind: str = "a number") -> int | None:
        value = self.take(name)
        if value is None:
            return None
        if re.fullmatch(r"-?\d{1,18}", value, re.ASCII) is None:
            raise self.refuse(f"Parameter '{name}' expects {kind}")
        return int(value)

    def choice(self, name: str, known: Iterable[str], wrong: str = "") -> str | None:
        value = self.take(name)
        if value is not None and value not in known:
            raise self.refuse(wrong or f"invalid parameter value: {value}")
        return value


def parse_image_opts(text: str, *, writable: bool = False) -> Place:
    """Where the image lies. `writable`: it is a target."""
    values = {name: value for name, value, _ in pairs(text, first="file")}
    unlocked = {"force-share": "on", "locking": "off"}
    shared = any(unlocked.get(name.rpartition(".")[2]) == value for name, value in values.items())
    place = _open(_Node(values, text), direct=False, writable=writable, top=True)
    fmt = RAW if place.format is None and names_format(text) else place.format
    return msgspec.structs.replace(place, shared=shared, format=fmt)


def names_format(text: str) -> bool:
    """Whether the options say what the image's format is; else qemu-img probes it."""
    return any(name == "driver" for name, _, _ in pairs(text, first="file"))


def _hide_secrets(text: str) -> str:
    return _SECRETS.sub(lambda match: f"{match[1]}..." if match[1] else match[2], text)


def _open(node: _Node, *, direct: bool, writable: bool, top: bool) -> Place:
    direct = _common(node, direct, writable)
    driver = node.take("driver")
    if driver is None:
        if top:
            return _raw(node, direct, writable, alone="Must specify either driver or file")
        filename = node.take("filename")
        if filename is None:
            raise node.refuse("Must specify either driver or file")
        return _local(node, filename, "host_device" if _is_device(filename) else "file", direct)
    if driver == "raw":
        return _raw(node, direct, writable, alone='A block device must be specified for "file"')
    if driver == QCOW2:
        return _qcow2(node, direct, writable)
    if driver in _LOCAL:
        return _local(node, node.take("filename"), driver, direct)
    if driver in _PROTOCOLS:
        return _PROTOCOLS[driver](node, driver)
    if driver in OTHERS:
        raise node.refuse(f"mpconv cannot read {driver} images yet")
    raise node.refuse(f"Unknown driver '{driver}'")


def _common(node: _Node, direct: bool, writable: bool) -> bool:
    """The options that every node has; whether it goes past the page cache."""
    name = node.take("node-name")
    if name is not None and _NODE_NAME.fullmatch(name) is None:
        raise node.refuse(f"Invalid node-name: '{name}'")
    chosen = node.switch("cache.direct")
    read_only = node.switch("read-only")
    for switch in ("cache.no-flush", "auto-read-only", "force-share"):
        node.switch(switch)
    discard = node.choice("discard", ("ignore", "off", "unmap", "on"), "Invalid discard option")
    if node.choice("detect-zeroes", ("off", "on", "unmap")) == "unmap" and discard not in {"unmap", "on"}:
        raise node.refuse("setting detect-zeroes to unmap is not allowed without setting discard operation to unmap")
    if read_only and writable:
        raise node.refuse("Block node is read-only")
    return direct if chosen is None else chosen


def _raw(node: _Node, direct: bool, writable: bool, *, alone: str) -> Place:
    """A part of what is below. `alone`: the complaint when nothing is."""
    place = _file_below(node, direct, writable, alone)
    offset, size = node.bytes("offset") or 0, node.bytes("size")
    _nothing_left(node, "Block format 'raw' does not support the option '{}'")
    if place.format == QCOW2 and (offset or size is not None):
        raise node.refuse("mpconv takes no part of a qcow2 image")
    if place.size is not None:
        if offset > place.size:
            raise node.refuse(f"Offset ({offset}) cannot be greater than size of the containing file ({place.size})")
        if offset + (size or 0) > place.size:
            raise node.refuse(
                f"The sum of offset ({offset}) and size ({size}) has to be smaller or equal to the  actual size of "
                f"the containing file ({place.size})"
            )
    if size is None and place.size is not None:
        size = place.size - offset
    return msgspec.structs.replace(place, offset=place.offset + offset, size=size)


def _file_below(node: _Node, direct: bool, writable: bool, alone: str) -> Place:
    """What the node `file` describes. `alone`: the complaint when there is none."""
    reference, below = node.take("file"), node.has_below("file")
    if reference is not None:
        if below:
            raise node.refuse("Cannot reference an existing block device with additional options or a new filename")
        raise node.refuse(f"Cannot find device='{reference}' nor node-name='{reference}'")
    if not below:
        raise node.refuse(alone)
    return _open(node.below("file"), direct=direct, writable=writable, top=False)


def _qcow2(node: _Node, direct: bool, writable: bool) -> Place:
    """What is below, read as qcow2. What the image opens besides is named by the image alone."""
    place = _file_below(node, direct, writable, 'A block device must be specified for "file"')
    for switch in _QCOW2_SWITCHES:
        node.switch(switch)
    for size in _QCOW2_SIZES:
        node.bytes(size)
    interval = node.take("cache-clean-interval")
    try:
        parse_number("cache-clean-interval", interval or "0")
    except ValueError as error:
        raise node.refuse(str(error)) from None
    for name in ("overlap-check", "overlap-check.template"):
        levels = ("none", "constant", "cached", "all")
        given = node.take(name)
        if given is not None and given not in levels:
            allowed = f"Allowed are any of the following: {', '.join(levels)}"
            raise node.refuse(f"Unsupported value '{given}' for qcow2 option 'overlap-check'. {allowed}")
    for name in ("backing", "data-file"):
        if node.take(name) is not None or node.has_below(name):
            raise node.refuse(
                f"mpconv takes no '{name}' from here: what the image names is opened, where it is allowed"
            )
    if node.has_below("encrypt"):
        raise node.refuse("mpconv cannot decrypt images")
    _nothing_left(node, "Block format 'qcow2' does not support the option '{}'")
    if place.format == QCOW2:
        raise node.refuse("mpconv reads no qcow2 image inside another")
    return msgspec.structs.replace(place, format=QCOW2)


def _nothing_left(node: _Node, words: str) -> None:
    left = node.first()
    if left is not None:
        raise node.refuse(words.format(left))


def _protocol_knows(node: _Node, driver: str) -> None:
    _nothing_left(node, f"Block protocol '{driver}' doesn't support the option '{{}}'")


def _is_device(path: str) -> bool:
    mode = _mode(path)
    return mode is not None and (stat.S_ISBLK(mode) or stat.S_ISCHR(mode))


def _mode(path: str) -> int | None:
    try:
        return os.stat(path).st_mode
    except (OSError, ValueError):
        return None


def _local(node: _Node, path: str | None, driver: str, direct: bool) -> Place:
    """A file or device. Its name is a name, whatever it looks like."""
    if not path:
        raise node.refuse(f"The '{driver}' block driver requires a file name")
    node.choice("locking", ("on", "off", "auto"))
    if node.choice("aio", ("threads", "native", "io_uring")) == "native" and not direct:
        raise node.refuse("aio=native was specified, but it requires cache.direct=on, which was not specified.")
    node.number("aio-max-batch")
    for switch in ("drop-cache", "x-check-cache-dropped"):
        node.switch(switch)
    manager = node.take("pr-manager")
    if manager is not None:
        raise node.refuse(f"No persistent reservation manager with id '{manager}'")
    mode = _mode(path)
    if mode is not None and driver == "file" and not stat.S_ISREG(mode):
        raise node.refuse(f"'file' driver requires '{path}' to be a regular file")
    if mode is not None and driver != "file" and not _is_device(path):
        raise node.refuse(f"'{driver}' driver requires '{path}' to be either a character or block device")
    _protocol_knows(node, driver)
    return Place(url=f"file:{path}" if _URL_LIKE.match(path) else path, direct=direct)


def _nfs(node: _Node, driver: str) -> Place:
    if node.take("server") is not None:
        raise node.refuse("Invalid parameter type for 'server', expected: object")
    if not node.has_below("server"):
        raise node.refuse("Parameter 'server' is missing")
    server = node.below("server")
    kind, host = server.take("type"), server.take("host")
    for name, value in (("type", kind), ("host", host)):
        if value is None:
            raise node.refuse(f"Parameter 'server.{name}' is missing")
    if kind != "inet":
        raise node.refuse(f"Parameter 'type' does not accept value '{kind}'")
    _nothing_left(server, "Parameter 'server.{}' is unexpected")
    path = node.take("path")
    if path is None:
        raise node.refuse("Parameter 'path' is missing")
    parameters = []
    for name, parameter in (("user", "uid"), ("group", "gid"), ("tcp-syn-count", "tcp-syncnt"), ("debug", "debug")):
        number = node.number(name, "integer")
        if number is not None:
            parameters.append(f"{parameter}={number}")
    for name in ("readahead-size", "page-cache-size"):
        node.number(name, "integer")
    _nothing_left(node, "Parameter '{}' is unexpected")
    host = host or ""
    if not path.startswith("/") or not host or re.search(r"[/?@]", host):
        raise node.refuse("Invalid URL specified")
    host = f"[{host}]" if ":" in host else host
    query = "?" + "&".join(parameters) if parameters else ""
    return Place(url=f"nfs://{host}{quote(os.fsencode(path), safe=_IN_A_PATH)}{query}")


def _iscsi(node: _Node, driver: str) -> Place:
    transport, portal, target = node.take("transport"), node.take("portal"), node.take("target")
    if not (transport and portal and target):
        raise node.refuse("Need all of transport, portal and target options")
    if transport != "tcp":
        raise node.refuse(f"Unknown transport: {transport}" if transport != "iser" else "mpconv has no transport iser")
    lun = node.number("lun") or 0
    if lun < 0:
        raise node.refuse(f"there is no LUN {lun}")
    login = _login(node)
    if node.take("initiator-name") is not None:
        raise node.refuse("initiator-name is not taken from here: set MPCONV_INITIATOR_NAME")
    digest = node.take("header-digest")
    if digest is not None and digest.lower() not in {"crc32c", "none", "crc32c-none", "none-crc32c"}:
        raise node.refuse(f"Invalid header-digest setting : {digest}")
    node.number("timeout")
    _protocol_knows(node, driver)
    if re.search(r"[/?@%]", portal):
        raise node.refuse("the portal is not of the form host[:port]")
    return Place(url=f"iscsi://{login}{portal}/{quote(target, safe=':')}/{lun}")


def _login(node: _Node) -> str:
    """`user[%password]@`, as a URL has it."""
    user, password, secret = node.take("user"), node.take("password"), node.take("password-secret")
    if not user:
        return ""
    if password and secret:
        raise node.refuse("'password' and 'password-secret' properties are mutually exclusive")
    if secret:
        raise node.refuse("mpconv has no secrets: set LIBISCSI_CHAP_PASSWORD instead of password-secret")
    if re.search(r"[%@?]", user) or re.search(r"[@?]", password or ""):
        raise node.refuse("a user with '%', '@' or '?', or a password with '@' or '?', cannot be given here")
    return f"{user}%{password}@" if password else f"{user}@"


def _null(node: _Node, driver: str) -> Place:
    size = node.bytes("size")
    if (node.number("latency-ns") or 0) < 0:
        raise node.refuse("latency-ns is invalid")
    node.switch("read-zeroes")
    _protocol_knows(node, driver)
    return Place(url=f"null:?size={_NULL_SIZE if size is None else size}")


_QCOW2_SWITCHES = (
    *("lazy-refcounts", "pass-discard-request", "pass-discard-snapshot", "pass-discard-other"),
    *(f"overlap-check.{part}" for part in ("main-header", "active-l1", "active-l2", "refcount-table")),
    *(f"overlap-check.{part}" for part in ("refcount-block", "snapshot-table", "inactive-l1", "inactive-l2")),
    "overlap-check.bitmap-directory",
)
_QCOW2_SIZES = ("cache-size", "l2-cache-size", "l2-cache-entry-size", "refcount-cache-size")

_LOCAL = frozenset(("file", "host_device", "host_cdrom"))
_PROTOCOLS: dict[str, Callable[[_Node, str], Place]] = {
    "nfs": _nfs,
    "iscsi": _iscsi,
    "null-co": _null,
    "null-aio": _null,
}
