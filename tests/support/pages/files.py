"""All files that are made, and their content."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from click.shell_completion import get_completion_class

import mpconv
from mpconv.cli import cli
from tests.support.pages import markdown, plot, roff
from tests.support.pages.facts import all_facts

ROOT = Path(__file__).resolve().parents[3]
_SHELLS = {
    "bash": "share/bash-completion/completions/mpconv",
    "zsh": "share/zsh/site-functions/_mpconv",
    "fish": "share/fish/vendor_completions.d/mpconv.fish",
}
DIRECTORIES = ("docs/reference/commands", "share")
"""Nothing else lies in these."""


def completion(shell: str) -> str:
    """The script that has the shell ask mpconv when TAB is pressed: click's own."""
    found = get_completion_class(shell)
    assert found is not None
    with contextlib.redirect_stderr(io.StringIO()):  # bash's is unhappy where there is no bash, or an old one
        return found(cli, {}, "mpconv", "_MPCONV_COMPLETE").source()


def made() -> dict[str, str]:
    """Name in the repository -> content. The picture is of figures that were recorded, the rest of the commands."""
    commands = all_facts()
    version = mpconv.__version__
    files = {"docs/reference/commands/index.md": markdown.index_page(commands)}
    files["docs/reference/exit-codes.md"] = markdown.exits_page(commands)
    files["share/man/man1/mpconv.1"] = roff.main_page(commands, version, (cli.help or "").partition(".")[0])
    files["docs/explanation/benchmarks.svg"] = plot.picture(plot.recorded((ROOT / "docs/benchmarks.md").read_text()))
    for facts in commands:
        files[f"docs/reference/commands/{facts.name}.md"] = markdown.command_page(facts)
        files[f"share/man/man1/mpconv-{facts.name}.1"] = roff.command_page(facts, version)
    return files | {path: completion(shell) for shell, path in _SHELLS.items()}


def there() -> dict[str, str]:
    """What lies there now, of these names and in these directories."""
    names = {*made(), *(str(p.relative_to(ROOT)) for d in DIRECTORIES for p in (ROOT / d).rglob("*") if p.is_file())}
    return {name: (ROOT / name).read_text() for name in names if (ROOT / name).is_file()}


def write() -> list[str]:
    """Make them all; those that changed. What no command makes any more is taken away."""
    wanted, found = made(), there()
    changed = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    for name in changed:
        path = ROOT / name
        if name in wanted:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[name])
        else:
            path.unlink()
    return changed
