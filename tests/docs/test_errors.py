"""What the page of errors quotes is what mpconv says."""

from __future__ import annotations

import ast
import errno
import os
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reference" / "errors.md"
SYSTEM = [os.strerror(number) for number in errno.errorcode]
NAME = "\0"


def texts(node: ast.AST) -> list[str]:
    """The texts of a module, with a mark for each value that comes into them."""
    found = []
    for one in ast.walk(node):
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            found.append(one.value)
        elif isinstance(one, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else NAME for part in one.values)
            found.append("".join(map(str, parts)))
    return found


SAID = "\n".join(
    text for path in sorted((ROOT / "mpconv").rglob("*.py")) for text in texts(ast.parse(path.read_text()))
)


def quoted() -> list[str]:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", row)[0] for row in rows]


def in_code(part: str) -> bool:
    """Whether some text has it as it stands; the system's own words may come into it."""
    for words in SYSTEM:
        part = part.removesuffix(words).removeprefix(words)
    return part.strip(" (:'") in SAID


@pytest.mark.parametrize("line", quoted())
def test_each_is_said(line: str):
    parts = [part for part in line.split("…") if re.search(r"[A-Za-z]{3}", part)]
    assert parts and all(in_code(part) for part in parts), parts


def test_another_text_would_be_noticed():
    assert len(quoted()) >= 25
    assert not in_code("the journal is in use by another program")
