"""What the commands share that only tell about images: options, qemu-img's words for wrong ones, output."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from mpconv.cli.options.types import Duration
from mpconv.model.errors import Fatal, UsageError, one_line
from mpconv.model.limits import RETRY_SECONDS
from mpconv.model.place import Trust

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])
_OUTPUTS = ("human", "json")
_BARE = {
    "--allow-backing": "--allow-backing=",
    "--allow-data-file": "--allow-data-file=",
    "--verify": "--verify=all",
}


class ImageCommand(click.Command):
    """A command that refuses what it does not understand in qemu-img's words.

    `--allow-backing`, `--allow-data-file` and `--verify` take no value but with a `=`: what follows may be an image.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        valued = [_BARE.get(arg, arg) for arg in args[:end]]
        try:
            return super().parse_args(ctx, valued + args[end:])
        except click.NoSuchOption as error:
            raise UsageError(f"unrecognized option '{error.option_name}'") from None
        except click.BadOptionUsage as error:
            raise UsageError(f"missing argument for option '{error.option_name}'") from None
        except click.BadParameter as error:
            raise UsageError(_words(error)) from None


def _words(error: click.BadParameter) -> str:
    """Our own messages tell which option they are of; click's are of any."""
    if error.param is not None and isinstance(error.param.type, click.IntRange):
        kind = error.param.type
        return f"{error.param.opts[-1]}: it must be a whole number from {kind.min} to {kind.max}"
    return error.message


class WithProgressKind(ImageCommand):
    """`--progress` takes no value in qemu-img; `--progress=json` asks for another kind of it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        kinds = [f"--progress-kind={arg[11:]}" if arg.startswith("--progress=") else arg for arg in args[:end]]
        return super().parse_args(ctx, kinds + args[end:])


def trust_options(command: _Decorated) -> _Decorated:
    """--allow-backing and --allow-data-file."""
    backing = click.option(
        "--allow-backing",
        multiple=True,
        metavar="[=DIR]",
        help="Open backing files that images name, in DIR (default: beside the image). May be given more than once.",
    )
    data_file = click.option(
        "--allow-data-file",
        multiple=True,
        metavar="[=DIR]",
        help="Open external data files that images name, in DIR (default: beside the image); written only in a DIR.",
    )
    return backing(data_file(command))


def retry_option(command: _Decorated) -> _Decorated:
    """--retry-for."""
    return click.option(
        "--retry-for",
        type=Duration(),
        default=RETRY_SECONDS,
        metavar="TIME",
        help="How long a server that has gone is waited for: seconds, or 1m30s; default 5m, 0: not at all.",
    )(command)


def hole_map_option(command: _Decorated) -> _Decorated:
    """--no-hole-map."""
    return click.option(
        "--no-hole-map",
        is_flag=True,
        help="Believe no server and no file system that tells where there are zeros: read it all.",
    )(command)


def trust_of(backing: tuple[str, ...], data_file: tuple[str, ...]) -> Trust:
    """What the images may open besides themselves; "" stands for an image's own directory."""
    return Trust(backing=list(backing) or None, data_file=list(data_file) or None)


def image_options(command: _Decorated) -> _Decorated:
    """-f, --output, --image-opts, -U and the images' names."""
    for option in reversed(
        (
            click.option("-f", "--format", "fmt", metavar="FMT", help="The image's format (default: looked at)."),
            click.option("--output", default="human", metavar="human|json", help="For people or for programs."),
            click.option("--image-opts", is_flag=True, help="FILE is a list of options, driver=...,file.filename=..."),
            click.option("-U", "--force-share", is_flag=True, help="Open it although another program writes to it."),
            click.argument("names", nargs=-1, metavar="FILE"),
        )
    ):
        command = option(command)
    return command


def one_name(names: tuple[str, ...]) -> str:
    """The one image that was named."""
    if len(names) != 1:
        raise UsageError("Expecting one image file name")
    return names[0]


def is_json(output: str) -> bool:
    """What `--output` asks for."""
    if output not in _OUTPUTS:
        raise UsageError("--output must be used with human or json as argument.")
    return output == "json"


def show(lines: Iterable[str]) -> None:
    """Print lines. A name that is no UTF-8 comes out as it went in, without control characters."""
    _write(f"{one_line(line)}\n" for line in lines)


def show_text(text: str) -> None:
    """Print what consists of lines already."""
    _write([text])


def _write(texts: Iterable[str]) -> None:
    """A reader who leaves is no error."""
    try:
        with open(sys.stdout.fileno(), "wb", closefd=False) as out:
            out.writelines(map(os.fsencode, texts))
    except BrokenPipeError:
        return
    except OSError as error:
        raise Fatal(f"error while writing to standard output: {os.strerror(error.errno or 0)}") from error


def warn(text: str) -> None:
    """A line for people."""
    print(f"mpconv: warning: {one_line(text)}", file=sys.stderr)
