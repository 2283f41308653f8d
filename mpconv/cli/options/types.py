"""Kinds of option values, refused in qemu-img's words."""

from __future__ import annotations

import re
from typing import NamedTuple

import click

from mpconv.model.limits import MAX_REQUESTS, MAX_SPARSE
from mpconv.model.units import SECTOR, TooLarge, parse_seconds, parse_size

_LARGEST = (1 << 63) - 1
_SAMPLE = re.compile(r"sample:([0-9]{1,3}(?:\.[0-9]{1,9})?)%")


def last_of(ctx: click.Context, param: click.Parameter, values: tuple[int, ...]) -> int | None:
    """Of an option given more than once the last value counts, but each must be right. None: it is not given."""
    return values[-1] if values else None


class Size(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """Bytes, with qemu-img's suffixes. `what` names the value in messages."""

    name = "size"

    def __init__(self, what: str) -> None:
        self.what = what

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        try:
            return parse_size(str(value))
        except TooLarge:
            self.fail(f"Invalid {self.what} specified. Must be between 0 and {_LARGEST}.")
        except ValueError:
            self.fail(
                f"Invalid {self.what} specified. You may use k, M, G, T, P or E suffixes for "
                "kilobytes, megabytes, gigabytes, terabytes, petabytes and exabytes."
            )


class SparseSize(Size):
    """`-S`: a multiple of a sector, at most 16 MiB; 0 for no zero detection."""

    def __init__(self) -> None:
        super().__init__("buffer size for sparse output")

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        size = super().convert(value, param, ctx)
        if size % SECTOR or size > MAX_SPARSE:
            self.fail(
                f"Invalid {self.what} specified. Valid sizes are multiples of {SECTOR} up to {MAX_SPARSE}. "
                "Select 0 to disable sparse detection (fully allocates output)."
            )
        return size


class OptionList(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """`-o`: what can be joined with others by commas."""

    name = "options"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from mpconv.cli.qemu.create_opts import asks_for_help  # noqa: PLC0415  (few need it)

        asks_for_help([str(value)])
        return str(value)


class Snapshot(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """`-l`: a name, or snapshot.id= and snapshot.name=."""

    name = "snapshot"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text.startswith("snapshot."):
            from mpconv.cli.qemu.create_opts import pairs  # noqa: PLC0415  (few need it)

            wrong = [name for name, _, _ in pairs(text) if name not in {"snapshot.id", "snapshot.name"}]
            if wrong:
                self.fail(f"Invalid parameter '{wrong[0]}'")
        return text


class Requests(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """`-m`."""

    name = "number"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        try:
            number = value if isinstance(value, int) else int(str(value), 0)
        except ValueError:
            number = 0
        if not 1 <= number <= MAX_REQUESTS:
            self.fail(f"Invalid number of coroutines. Allowed number of coroutines is between 1 and {MAX_REQUESTS}")
        return number


class Duration(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """`--retry-for`: seconds, or 1h, 1m30s, 5m, 2.5s."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, int | float):
            return float(value)
        try:
            return parse_seconds(str(value))
        except ValueError:
            self.fail(f"Invalid time '{value}': it must be a number of seconds, or such as 1m30s, 5m or 1h.")


class Proof(NamedTuple):
    """What `--verify` asks for. `share`: of the target, a part of 1; `source`: the source's holes too."""

    share: float
    source: bool = False


class Share(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """`--verify`: all of the target, or `sample:N%` of it, or `source`: all of it, and the source's holes."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> Proof:
        if isinstance(value, Proof):
            return value
        if value in ("all", "source"):
            return Proof(1.0, source=value == "source")
        match = _SAMPLE.fullmatch(str(value))
        share = float(match[1]) / 100 if match else 0.0
        if not 0 < share <= 1:
            self.fail(f"Invalid --verify '{value}': all, source, or sample:N% with N above 0 and at most 100")
        return Proof(share)


class Level(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """`--compression-level`: as zstd's; zlib has fewer."""

    name = "level"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        level = int(str(value)) if str(value).isdecimal() and len(str(value)) < 4 else 0
        if not 1 <= level <= 22:
            self.fail("Invalid compression level specified. Must be between 1 and 22, for zlib between 1 and 9")
        return level
