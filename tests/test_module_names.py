"""Modules that strings name, since they are imported late or by tests: each is there, with what is named in it."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NAME = re.compile(r"(mpconv(?:\.\w+)+)(?::(\w+(?:\.\w+)*))?")
NO_MODULES = {"mpconv.ui.monitor"}
"""Names of loggers, and of what has no module."""


def python_files() -> list[Path]:
    """The sources, with those scripts that are Python."""
    scripts = [path for path in (ROOT / "scripts").iterdir() if path.read_text().startswith("#!/usr/bin/env python")]
    return [*sorted((ROOT / "mpconv").rglob("*.py")), *sorted((ROOT / "tests").rglob("*.py")), *sorted(scripts)]


def named() -> dict[str, Path]:
    """Every string that is the name of a module and nothing else, and a file that has it."""
    found: dict[str, Path] = {}
    for path in python_files():
        if path.name in {"test_imports.py", "test_module_names.py"}:  # some of theirs are invented
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.fullmatch(node.value):
                found[node.value] = path.relative_to(ROOT)
    return found


def resolved(name: str) -> object:
    """What a dotted name leads to: the longest part of it that is a module, then attributes."""
    match = NAME.fullmatch(name)
    assert match is not None
    module, rest = match.group(1), match.group(2).split(".") if match.group(2) else []
    while True:
        try:
            found: object = importlib.import_module(module)
            break
        except ModuleNotFoundError as error:
            if not f"{module}.".startswith(f"{error.name}."):
                raise
            module, _, last = module.rpartition(".")
            rest.insert(0, last)
    for attribute in rest:
        found = getattr(found, attribute)
    return found


@pytest.mark.parametrize("name", sorted(set(named()) - NO_MODULES))
def test_what_a_string_names_is_there(name):
    assert resolved(name) is not None, named()[name]


def test_the_names_are_found():
    assert {"mpconv.transports.nfs.store", "mpconv.cli.commands.convert:convert", "mpconv.coordinator._TICK"} <= set(
        named()
    )


def test_a_name_of_nothing_is_found_out():
    with pytest.raises((AttributeError, ModuleNotFoundError)):
        resolved("mpconv.transports.nowhere")
