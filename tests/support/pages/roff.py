"""Facts -> man pages, in man(7)'s language. Pure."""

from __future__ import annotations

import re

from tests.support.pages.facts import ENVIRONMENT, IMAGES, Facts

_MADE = '.\\" Made from the commands by scripts/pages.\n'
_SHARED_WITH_ALL = "How images are named, and what of the environment counts, is told in `mpconv`(1)."
_CODE = re.compile(r"`([^`]*)`")


def escaped(text: str) -> str:
    """What roff would take for its own, as characters."""
    for character, name in (("\\", "\\e"), ("-", "\\-"), ("'", "\\(aq"), ("~", "\\(ti"), ("^", "\\(ha")):
        text = text.replace(character, name)
    return f"\\&{text}" if text.startswith(".") else text


def _prose(text: str) -> str:
    """Code is bold, and a hyphen between letters is one."""
    return _CODE.sub(r"\\fB\1\\fR", re.sub(r"(?<=[a-z])\\-(?=[a-z])", "-", escaped(text)))


def _tagged(rows: list[tuple[str, str]]) -> str:
    return "".join(f".TP\n{tag}\n{_prose(text)}\n" for tag, text in rows)


def _bold(text: str) -> str:
    return f"\\fB{escaped(text)}\\fR"


def _page(name: str, version: str, summary: str, body: str, others: list[str]) -> str:
    also = "\n".join(f".BR {other} (1){',' if other != others[-1] else ''}" for other in others)
    return (
        f'{_MADE}.TH {name.upper()} 1 "" "mpconv {version}" "mpconv"\n.nh\n.ad l\n'
        f".SH NAME\n{name} \\- {_prose(summary[0].lower() + summary[1:])}\n{body}.SH SEE ALSO\n{also}\n"
    )


def _shared() -> str:
    images = [(_bold(name), text) for name, text in IMAGES]
    return ".SH IMAGES\n" + _tagged(images) + ".SH ENVIRONMENT\n" + _tagged([(_bold(n), t) for n, t in ENVIRONMENT])


def command_page(facts: Facts, version: str) -> str:
    """mpconv-NAME.1."""
    options = []
    for one in facts.options:
        tag = ", ".join(map(_bold, one.names)) + (f"{one.joint}\\fI{escaped(one.value)}\\fR" if one.value else "")
        options.append((tag, one.text))
    body = (
        f".SH SYNOPSIS\n\\fBmpconv {facts.name}\\fR [\\fIoptions\\fR]"
        + (f" \\fI{escaped(facts.arguments)}\\fR" if facts.arguments else "")
        + "\n.SH DESCRIPTION\n"
        + ".PP\n".join(f"{_prose(text)}\n" for text in [*facts.paragraphs, _SHARED_WITH_ALL])
        + ".SH OPTIONS\n"
        + _tagged(options)
        + ".SH EXIT STATUS\n"
        + _tagged([(_bold(number), text) for number, text in facts.exits])
        + (".SH EXAMPLES\n" + _tagged([(_bold(line), text) for line, text in facts.examples]) if facts.examples else "")
    )
    return _page(f"mpconv-{facts.name}", version, facts.summary, body, ["mpconv", "qemu-img"])


def main_page(commands: list[Facts], version: str, summary: str) -> str:
    """mpconv.1."""
    body = (
        ".SH SYNOPSIS\n\\fBmpconv\\fR \\fIcommand\\fR [\\fIoptions\\fR] ...\n.SH DESCRIPTION\n"
        + _prose(
            "mpconv does what `qemu-img convert` does, with the same options, by many processes on one host or on "
            "many. Each command has a page of its own, such as `mpconv-convert`(1)."
        )
        + "\n.SH COMMANDS\n"
        + _tagged([(_bold(facts.name), facts.summary + ".") for facts in commands])
        + _shared()
        + ".SH EXIT STATUS\n"
        + _prose("0: it is done; 1: it is not, and a line on stderr says why. Some commands have more.")
        + "\n"
    )
    return _page("mpconv", version, summary, body, [f"mpconv-{facts.name}" for facts in commands])
