"""The command line: options become a job; errors become one line on stderr and an exit code.

It decides nothing about the copy itself: jobs do that, for programs too.
"""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from typing import NoReturn

import click

from mpconv._version import __version__
from mpconv.cli.output import streams
from mpconv.cli.passwords import hide_passwords
from mpconv.model.errors import Absent, Denied, MpconvError, Unreachable, one_line, short_of
from mpconv.protocol.descriptors import raise_descriptors

_COMMANDS = {
    "convert": "mpconv.cli.commands.convert:convert",
    "deploy": "mpconv.cli.commands.deploy:deploy",
    "fanout": "mpconv.cli.commands.fanout:fanout",
    "worker": "mpconv.cli.commands.worker:worker",
    "keygen": "mpconv.cli.commands.keygen:keygen",
    "resume": "mpconv.cli.commands.resume:resume",
    "status": "mpconv.cli.commands.status:status",
    "report": "mpconv.cli.commands.report:report",
    "doctor": "mpconv.cli.commands.doctor:doctor",
    "check": "mpconv.cli.commands.check:check",
    "checksum": "mpconv.cli.commands.checksum:checksum",
    "compare": "mpconv.cli.commands.compare:compare",
    "info": "mpconv.cli.commands.info:info",
    "measure": "mpconv.cli.commands.measure:measure",
    "map": "mpconv.cli.commands.map:map_",
}
"""Where each command is, and as what."""


_IMPORTED = 50_000
"""Objects that are made before a collection looks at the young ones: what imports make stays, and to look at it time
after time took a twentieth of a small copy. Workers inherit it.
"""


class Commands(click.Group):
    """Only the command that is asked for is imported: the others' imports would make each start later."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """With what to do where there is no such command."""
        if args[0] not in _COMMANDS and not args[0].startswith("-") and not ctx.resilient_parsing:
            import difflib  # noqa: PLC0415  (few need it)

            close = difflib.get_close_matches(args[0], list(_COMMANDS), n=1)
            fix = f"did you mean {close[0]}?" if close else "mpconv --help lists those that there are"
            raise click.UsageError(f"there is no command '{args[0]}': {fix}")
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, its_name = _COMMANDS[cmd_name].partition(":")
        found: click.Command = getattr(importlib.import_module(module), its_name)
        if ctx.resilient_parsing:  # TAB was pressed
            from mpconv.cli.completion import completing  # noqa: PLC0415

            return completing(found)
        return found


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="mpconv")
def cli() -> None:
    """Copy disk images between NFS, iSCSI and local storage with many processes."""


def run() -> NoReturn:
    """The program. It ends without taking the interpreter apart, which takes longer than a small copy."""
    gc.set_threshold(_IMPORTED)
    streams.prepare()
    raise_descriptors()
    os._exit(streams.output(main))


def _hint(error: MpconvError) -> str:
    """Of a server that cannot be had, where more is told about it."""
    remote = error.image.lower().startswith(("nfs://", "iscsi://"))
    if isinstance(error, Unreachable | Denied | Absent) and remote and not error.operation:
        return "; mpconv doctor URL says more"
    return ""


def main() -> int:
    """Run the command line; the exit code. Every failure is one line on stderr."""
    try:
        if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # as __main__ has left it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        hide_passwords()
        result = cli.main(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 1
    except click.ClickException as error:
        print(f"mpconv: {one_line(' '.join(error.format_message().split()))}", file=sys.stderr)
        return 1
    except MpconvError as error:
        print(f"mpconv: {error}{_hint(error)}", file=sys.stderr)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):  # which is a RuntimeError
        print("mpconv: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except (MemoryError, OSError, RuntimeError) as error:
        short = short_of(error)
        if short is None:
            raise
        print(f"mpconv: {short}", file=sys.stderr)
        return 1
