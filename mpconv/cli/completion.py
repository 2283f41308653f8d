"""What shells are told when TAB is pressed behind an option or for an image. Loaded for nothing else."""

from __future__ import annotations

import click
from click.shell_completion import CompletionItem

from mpconv.options.cache import CACHE_MODES


class Words(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """One of a few."""

    name = "words"

    def __init__(self, *words: str) -> None:
        self.words = words

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(word) for word in self.words if word.startswith(incomplete)]


class Files(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """What the shell finds itself."""

    name = "files"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(incomplete, type="file")]


_BY_METAVAR: dict[str, click.ParamType] = {  # type: ignore[type-arg, unused-ignore]
    "FMT": Words("raw", "qcow2"),
    "MODE": Words(*CACHE_MODES),
    "human|json": Words("human", "json"),
    "FILE": Files(),
}


def completing(command: click.Command) -> click.Command:
    """The command, with values that a shell completes by what they are called in the help; arguments are files."""
    for param in command.params:
        default = Files() if isinstance(param, click.Argument) and param.metavar else param.type
        param.type = _BY_METAVAR.get(param.metavar or "", default)
    return command
