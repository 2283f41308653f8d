"""The page that follows jobs, and the report of one: the same drawing, in an HTML file with nothing from elsewhere.

It draws what the record tells, and keeps nothing.
"""

from __future__ import annotations

from importlib.resources import files
from string import Template

from mpconv.model.errors import one_line

_REPORT_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; base-uri 'none'"
)


def policy(nonce: str) -> str:
    """The live page's Content-Security-Policy: its own script and style, its own events, nothing else."""
    return (
        f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def live_page(nonce: str) -> str:
    """The page that listens to events."""
    return _page("mpconv", f' nonce="{nonce}"', _text("live.js"), meta="", content="")


def report_page(title: str, facts: bytes) -> str:
    """The page that shows `facts`, a JSON text, and needs nobody to serve it."""
    inside = facts.decode().replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    content = f'<script type="application/json" id="facts">{inside}</script>'
    meta = f'<meta http-equiv="Content-Security-Policy" content="{_REPORT_POLICY}">'
    return _page(_escaped(one_line(title)), "", _text("report.js"), meta=meta, content=content)


def _page(title: str, nonce: str, script: str, *, meta: str, content: str) -> str:
    return Template(_text("page.html")).substitute(
        title=title,
        meta=meta,
        nonce=nonce,
        style=_text("style.css"),
        content=content,
        script=f"{_text('charts.js')}\n{_text('draw.js')}\n{script}",
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _text(name: str) -> str:
    return files(__name__).joinpath(name).read_text(encoding="utf-8")
