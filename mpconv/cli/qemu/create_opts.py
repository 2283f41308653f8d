"""`-o K=V,...`: how a raw target is made; and QEMU's grammar of option lists, which `--image-opts` shares.

A list is `name=value,...`; a doubled comma in a value is a comma; a name alone means on, `noname` off.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator

from msgspec import Struct

from mpconv.model.errors import Fatal, UsageError
from mpconv.transports import family_of, is_local, redacted

_SIZE_SUFFIXES = "bkmgtpe"
_SIZE = re.compile(r"\s*\+?(?:(0x[0-9a-f]+)([kmgtp]?)|(\d+)(?:\.(\d*))?([bkmgtpe]?))", re.I | re.ASCII)
_NUMBER = re.compile(r"\s*([+-]?)(?:0x([0-9a-f]+)|0([0-7]+)|(0|[1-9]\d*))", re.I | re.ASCII)
_ON, _OFF = {"on", "yes", "true", "y"}, {"off", "no", "false", "n"}
_MODES = ("off", "metadata", "falloc", "full")
LARGEST_HINT, HINT_TOO_LARGE = (1 << 32) - 1, "Extent size hint is too large"

Known = dict[str, tuple[str, str]]
"""name -> (kind of value, what `-o help` says of it)."""

_SIZE_OPTION: Known = {"size": ("size", "Virtual disk size")}
OF_FILES: Known = {
    "extent_size_hint": ("size", "Extent size hint for the image file, 0 to disable"),
    "nocow": ("bool (on/off)", "Turn off copy-on-write (valid only on btrfs)"),
}
"""What every image has that is made as a file."""
_FILE: Known = {
    **OF_FILES,
    "preallocation": ("str", "Preallocation mode (allowed values: off, falloc, full)"),
    **_SIZE_OPTION,
}
_NFS: Known = _SIZE_OPTION
_EXISTING: Known = {"preallocation": ("str", "Preallocation mode (allowed values: off)"), **_SIZE_OPTION}
"""What is not made but written into, devices and LUNs."""
_NO_TARGET = """
The protocol level may support further options.
Specify the target filename to include those options."""


class CreateOptions(Struct, frozen=True):
    """`help`: the text that was asked for, instead of a copy. `nocow`: no copy-on-write, where there is one."""

    help: str | None = None
    preallocation: str = "off"
    nocow: bool = False


def parse_create_opts(options: list[str], target_url: str) -> CreateOptions:
    """Every `-o` of a command line, the last key wins. Without a target only a wish for help is looked for.

    UsageError in qemu-img's words, Fatal for what only making the image shows there.
    """
    known = _known(target_url)
    if asks_for_help(options):
        return CreateOptions(help=help_of(known if target_url else _SIZE_OPTION, "raw", target_url))
    values = typed(options, known) if target_url else {}
    preallocation, hint = str(values.get("preallocation", "off")), values.get("extent_size_hint", 0)
    why = _unmakeable(preallocation, int(hint), made=known is _FILE)
    if why is not None:
        raise Fatal(f"{redacted(target_url)}: error while converting raw: {why}")
    return CreateOptions(preallocation=preallocation, nocow=bool(values.get("nocow", False)))


def help_of(known: Known, fmt: str, target_url: str) -> str:
    """What `-o help` prints."""
    heads = {name: f"{name}=<{kind}>" for name, (kind, _) in sorted(known.items())}
    lines = [f"  {head:<22} - {known[name][1]}" for name, head in heads.items()]
    title = "Supported options:" if target_url else f"Supported {fmt} options:"
    return "\n".join([title, *lines]) + ("" if target_url else f"\n{_NO_TARGET}")


def typed(options: list[str], known: Known) -> dict[str, str | int | bool]:
    """name -> value, the last one of each name. UsageError for an unknown name and a value that is not of its kind."""
    values: dict[str, str | int | bool] = {}
    for name, value, _ in pairs(",".join(options)):
        if name == "id":  # the list's own name in QEMU, for any list
            continue
        if name not in known:
            raise UsageError(f"Invalid parameter '{name}'")
        try:
            values[name] = _PARSE[known[name][0]](name, value)
        except ValueError as error:
            raise UsageError(str(error)) from None
    return values


def pairs(text: str, first: str = "") -> Iterator[tuple[str, str, bool]]:
    """(name, value, whether it is the word help) in order. `first`: the name of a first value that has none."""
    at = 0
    while at < len(text):
        end = at
        while end < len(text) and text[end] not in "=,":
            end += 1
        if text[end : end + 1] == "=":
            value, after = _value(text, end + 1)
            yield text[at:end], value, False
        elif at == 0 and first:
            value, after = _value(text, 0)
            yield first, value, False
        else:
            name, after = text[at:end], end + 1
            off = name.startswith("no")
            yield name[2 * off :], "off" if off else "on", name in {"help", "?"}
        at = after


def _value(text: str, at: int) -> tuple[str, int]:
    """A value and where the next name begins."""
    value = ""
    while at < len(text):
        end = text.find(",", at)
        if end < 0:
            return value + text[at:], len(text)
        value += text[at:end]
        if text[end + 1 : end + 2] != ",":
            return value, end + 1
        value += ","
        at = end + 2
    return value, at


def parse_bytes(name: str, text: str) -> int:
    """A size below 2^64 with QEMU's suffixes. ValueError in its words."""
    match = _SIZE.fullmatch(text)
    suffix = (match[2] or match[5] or "").lower() if match else ""
    if match is None or (match[4] and suffix in {"", "b"}):
        raise ValueError(f"Parameter '{name}' expects a non-negative number below 2^64")
    shift = 10 * _SIZE_SUFFIXES.index(suffix or "b")
    size = int(match[1] or match[3], 16 if match[1] else 10) << shift
    if match[4]:
        size += (int(match[4]) << shift) // 10 ** len(match[4])
    if size >= 1 << 64:
        raise ValueError(f"Value '{text}' is out of range for parameter '{name}'")
    return size


def parse_switch(name: str, text: str) -> bool:
    """on or off. ValueError in QEMU's words."""
    if text not in _ON | _OFF:
        raise ValueError(f"Parameter '{name}' expects 'on' or 'off'")
    return text in _ON


def parse_number(name: str, text: str) -> int:
    """A number whose amount is below 2^64, decimal, hexadecimal or octal. ValueError in QEMU's words."""
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ValueError(f"Parameter '{name}' expects a number")
    sign, hexadecimal, octal, decimal = match.groups()
    number = int(hexadecimal or octal or decimal, 16 if hexadecimal else 8 if octal else 10)
    if number >= 1 << 64:
        raise ValueError(f"Value '{text}' is too large for parameter '{name}'")
    return -number if sign == "-" else number


_PARSE: dict[str, Callable[[str, str], str | int | bool]] = {
    "str": lambda name, text: text,
    "num": parse_number,
    "size": parse_bytes,
    "bool (on/off)": parse_switch,
}


def asks_for_help(options: list[str]) -> bool:
    """Whether there is a `-o help` among them. UsageError for a text that is no list of options."""
    for text in options:
        if not _can_be_joined(text):
            raise UsageError(f"Invalid option list: {text}")
    return any(is_help for _, _, is_help in pairs(",".join(options)))


def _can_be_joined(text: str) -> bool:
    """Whether a comma before or after it would still separate."""
    return bool(text) and not text.startswith(",") and (len(text) - len(text.rstrip(","))) % 2 == 0


def _known(target_url: str) -> Known:
    """The options there are for a raw target."""
    if family_of(target_url) == "nfs":
        return _NFS
    return _FILE if is_made_as_file(target_url) else _EXISTING


def is_made_as_file(target_url: str) -> bool:
    """Whether it is a file of this host, or would be one."""
    return is_local(target_url) and not _is_device(target_url)


def _is_device(url: str) -> bool:
    try:
        mode = os.stat(url.removeprefix("file:")).st_mode
    except (OSError, ValueError):
        return False
    return stat.S_ISBLK(mode) or stat.S_ISCHR(mode)


def _unmakeable(preallocation: str, hint: int, *, made: bool) -> str | None:
    """Why there can be no such image. `made`: as a file."""
    if preallocation not in _MODES:
        return f"invalid parameter value: {preallocation}"
    if not made and preallocation != "off":
        return f"Unsupported preallocation mode '{preallocation}'"
    if hint > LARGEST_HINT:
        return HINT_TOO_LARGE
    return "Unsupported preallocation mode: metadata" if preallocation == "metadata" else None
