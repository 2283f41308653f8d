"""Facts -> the reference pages. Pure."""

from __future__ import annotations

import re

from tests.support.pages.facts import ENVIRONMENT, IMAGES, Facts, Option

MADE = "<!-- Made from the commands by scripts/pages. -->\n\n"
_CODE = re.compile(r"(`[^`]*`)")


def plain(text: str) -> str:
    """Words of a help as Markdown: what is marked as code stays so, nothing else means anything."""
    parts = _CODE.split(text)
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<\[\]|])", r"\\\1", part) for part in parts)


def code(text: str) -> str:
    """As code, in a table."""
    return "`" + text.replace("|", "\\|") + "`"


def table(head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    """Two columns."""
    return "\n".join(f"| {first} | {second} |" for first, second in [head, ("---", "---"), *rows]) + "\n"


def _option(option: Option) -> tuple[str, str]:
    names = [*option.names[:-1], f"{option.names[-1]}{option.joint}{option.value}"]
    return ", ".join(map(code, names)), plain(option.text)


def command_page(facts: Facts) -> str:
    """The page of one command."""
    return (
        f"{MADE}# mpconv {facts.name}\n\n    mpconv {facts.name} [options] {facts.arguments}".rstrip()
        + "\n\n"
        + "".join(f"{plain(text)}\n\n" for text in facts.paragraphs)
        + "## Options\n\n"
        + table(("option", "meaning"), [_option(one) for one in facts.options])
        + "\n## Exit codes\n\n"
        + table(("code", "meaning"), [(number, plain(text)) for number, text in facts.exits])
        + ("\n## Examples\n" if facts.examples else "")
        + "".join(f"\n{text[0].upper()}{plain(text[1:])}:\n\n    {line}\n" for line, text in facts.examples)
        + "\n## See also\n\nHow images are named, and what of the environment counts: [all commands](index.md).\n"
    )


def index_page(commands: list[Facts]) -> str:
    """The list of commands, and what they share."""
    rows = [(f"[mpconv {facts.name}]({facts.name}.md)", plain(facts.summary)) for facts in commands]
    images = [(code(name), plain(text)) for name, text in IMAGES]
    variables = [(code(name), plain(text)) for name, text in ENVIRONMENT]
    return (
        f"{MADE}# Commands and options\n\n"
        + table(("command", "what it does"), rows)
        + "\n`mpconv --version` prints the version, `mpconv COMMAND --help` what is on these pages.\n"
        + "\n## Images\n\n"
        + table(("written so", "is"), images)
        + "\n## Environment\n\n"
        + table(("variable", "meaning"), variables)
        + "\n```{toctree}\n:hidden:\n\n"
        + "".join(f"{facts.name}\n" for facts in commands)
        + "```\n"
    )


def exits_page(commands: list[Facts]) -> str:
    """All exit codes side by side."""
    text = (
        f"{MADE}# Exit codes\n\n0 is told only when it is true: a copy's flush is checked, and what was asked to be "
        "verified is equal. With\nanything else there is a line on stderr, which begins with `mpconv:`.\n"
    )
    for facts in commands:
        rows = [(number, plain(text)) for number, text in facts.exits]
        text += f"\n## mpconv {facts.name}\n\n" + table(("code", "meaning"), rows)
    return text
