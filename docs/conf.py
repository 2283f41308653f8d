"""How Sphinx builds docs/: `scripts/docs`. Pages are Markdown that also reads well where it lies."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import mpconv

project = "mpconv"
author = "the authors of mpconv"
version = release = mpconv.__version__

extensions = ["myst_parser"]
nitpicky = True
smartquotes = False  # --option is no dash
myst_heading_anchors = 3
myst_links_external_new_tab = False

html_theme = "furo"
html_title = f"mpconv {release}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False

_PROTOCOL = "mpconv/protocol/PROTOCOL.md"


def _inside(app: object, name: str, text: list[str]) -> None:
    """What is read in the repository leads to the protocol's own file; here, to the page that includes it."""
    up = "../" * (name.count("/") + 1)
    text[0] = text[0].replace(f"]({up}{_PROTOCOL}", f"]({up[3:]}protocol.md")


def setup(app: object) -> None:
    """Sphinx calls it."""
    app.connect("source-read", _inside)  # type: ignore[attr-defined]
