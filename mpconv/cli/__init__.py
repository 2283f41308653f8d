"""The command line: options -> a job; errors -> one line on stderr and an exit code."""

from __future__ import annotations

import sys

import click

from mpconv import __version__
from mpconv.cli.check import check
from mpconv.cli.compare import compare
from mpconv.cli.convert import convert
from mpconv.cli.info import info
from mpconv.cli.map import map_
from mpconv.cli.measure import measure
from mpconv.cli.passwords import hide_passwords
from mpconv.errors import MpconvError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "-V", "--version", prog_name="mpconv")
def cli() -> None:
    """Copy disk images between NFS, iSCSI and local storage with many processes."""


cli.add_command(convert)
cli.add_command(check)
cli.add_command(compare)
cli.add_command(info)
cli.add_command(map_)
cli.add_command(measure)


def main() -> int:
    """Run the command line; the exit code. Every failure is one line on stderr."""
    hide_passwords()
    try:
        result = cli.main(standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 1
    except click.ClickException as error:
        print(f"mpconv: {' '.join(error.format_message().split())}", file=sys.stderr)
        return 1
    except MpconvError as error:
        print(f"mpconv: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mpconv: interrupted", file=sys.stderr)
        return 1
