"""The arrows between the rooms run one way (docs/architecture.md); the imports are read, nothing is run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mpconv

ROOT = Path(mpconv.__file__).parent

MAY_IMPORT: dict[str, str] = {
    "model": "",
    "core": "model",
    "protocol": "model",
    "transports": "model",
    "formats": "model transports",
    "options": "model protocol formats",
    "journal": "model core",
    "workers": "model protocol transports formats",
    "coordination": "model core protocol transports formats journal workers",
    "jobs": "model core protocol transports formats options journal workers coordination",
    "inspection": "model transports formats options",
    "ui": "model core protocol transports journal coordination jobs",
    "cli": "model core protocol transports formats options journal workers coordination jobs inspection ui",
    "api": "model core protocol transports formats options journal workers coordination jobs inspection ui",
}
"""What the modules of each row may import besides those of their own: `docs/architecture.md` says what a row is."""
ROW_OF = {
    "": "api",
    "_version": "model",
    "__main__": "cli",
    "blocking": "api",
    "coordinator": "coordination",
}
"""The row of modules that do not lie in a folder of its name."""
PLAN = "mpconv.cli.plan"
"""A plan's keys are convert's options: so programs may import this, and nothing else of the command line."""
SHELL = {"os", "socket", "asyncio", "time", "logging", "pathlib", "random", "zmq"}
"""What a module whose docstring says "Pure." does without; and what in it is no more than a function of values."""
NO_SHELL = {"os.fsdecode", "os.fsencode", "os.strerror"}
ONLY_IN = {
    "click": ["mpconv.cli"],
    "cffi": ["mpconv.transports.native"],
    "zmq": [
        "mpconv.protocol",
        "mpconv.workers",
        "mpconv.coordinator",
        "mpconv.coordination",
        "mpconv.jobs.fanout.pool",
        "mpconv.cli.options.keys",
    ],
    "msgspec.msgpack": ["mpconv.protocol"],
    "msgspec.json": ["mpconv.jobs", "mpconv.journal", "mpconv.inspection", "mpconv.ui", "mpconv.cli"],
    "multiprocessing": ["mpconv.workers"],
}
"""Modules from elsewhere, and who may import them: a module, or all of a folder. Records are msgspec's structs
everywhere; what travels is the business of few.
"""
CORE_IS_WITHOUT = {"multiprocessing", "threading", "subprocess", "sqlite3", "datetime"}


def name_of(path: Path) -> str:
    """The dotted name of a module file."""
    parts = ["mpconv", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def within(module: str, folder: str) -> bool:
    """Whether it is that module, or lies in that folder."""
    return f"{module}.".startswith(f"{folder}.")


def row_of(module: str) -> str:
    """Which row of the table a module belongs to."""
    own = module.removeprefix("mpconv").lstrip(".")
    named = [name for name in ROW_OF if name and within(own, name)]
    return ROW_OF[max(named, key=len)] if named else ROW_OF.get(own) or own.partition(".")[0]


def imports(source: str, module: str) -> set[str]:
    """Every module that `source` imports, wherever the statement stands."""
    found: set[str] = set()
    package = module if MODULES.get(module, ROOT).name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, *filter(None, [base])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                found.add(inner if inner in MODULES or inner in ONLY_IN or inner in NO_SHELL else base)
    return found


def wrong_arrows(source: str, module: str) -> list[str]:
    """The imports that the tables do not allow, in words."""
    row = row_of(module)
    wrong = []
    for imported in sorted(imports(source, module)):
        top = imported.partition(".")[0]
        if top == "mpconv":
            allowed = row_of(imported) in {row, *MAY_IMPORT[row].split()} or (row, imported) == ("api", PLAN)
        else:
            known = {name: folders for name, folders in ONLY_IN.items() if within(imported, name)}
            allowed = all(any(within(module, folder) for folder in folders) for folders in known.values())
            pure = row == "core" or "Pure." in (ast.get_docstring(ast.parse(source)) or "")
            allowed = allowed and not (row == "core" and top in CORE_IS_WITHOUT)
            allowed = allowed and not (pure and top in SHELL and imported not in NO_SHELL)
        if not allowed:
            wrong.append(f"{module} imports {imported}")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_runs_the_wrong_way(module):
    assert row_of(module) in MAY_IMPORT, f"{module} is in no row of MAY_IMPORT: decide what it may import"
    assert wrong_arrows(MODULES[module].read_text(), module) == []


@pytest.mark.parametrize(
    ("module", "source", "imported"),
    [
        ("mpconv.model.extent", "import mpconv.core.cursor", "mpconv.core.cursor"),
        ("mpconv.core.cursor", "import os.path", "os.path"),
        ("mpconv.core.cursor", "def now():\n    from time import monotonic", "time"),
        ("mpconv.core.cursor", "from mpconv.protocol import messages", "mpconv.protocol.messages"),
        ("mpconv.core.cursor", "from ..protocol.codec import encode", "mpconv.protocol.codec"),
        ("mpconv.core", "from ..transports import connect", "mpconv.transports"),
        ("mpconv.protocol.codec", "from mpconv.core.leases import Lease", "mpconv.core.leases"),
        ("mpconv.transports.null", "import zmq", "zmq"),
        ("mpconv.transports.null", "import click", "click"),
        ("mpconv.formats.raw", "from msgspec import json", "msgspec.json"),
        ("mpconv.transports.null", "from mpconv.workers import buffers", "mpconv.workers.buffers"),
        ("mpconv.formats.raw", "from mpconv.protocol import messages", "mpconv.protocol.messages"),
        ("mpconv.workers.worker", "from mpconv import coordinator", "mpconv.coordinator"),
        ("mpconv.workers.worker", "from mpconv.core import state", "mpconv.core.state"),
        ("mpconv.ui.terminal.progress", "from mpconv.workers import worker", "mpconv.workers.worker"),
        ("mpconv.coordinator", "from mpconv.cli import main", "mpconv.cli"),
        ("mpconv.jobs.fanout.schedule", '"""Pure."""\nimport time', "time"),
    ],
)
def test_an_invented_wrong_arrow_is_caught(module, source, imported):
    assert wrong_arrows(source, module) == [f"{module} imports {imported}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mpconv.core.cursor", "from mpconv.model.extent import Extent\nfrom collections import deque"),
        ("mpconv.core.state", "from .cursor import Cursor"),
        ("mpconv.core.leases", "from msgspec import Struct"),
        ("mpconv.workers.worker", "import os\nimport zmq\nfrom mpconv import transports"),
        ("mpconv.coordinator", "from mpconv.workers.launch.local import LocalWorkers"),
        ("mpconv.cli", "from mpconv._version import __version__\nfrom mpconv.options import copy"),
    ],
)
def test_a_right_arrow_is_let_through(module, source):
    assert wrong_arrows(source, module) == []


def test_the_rows_have_one_order():
    above: set[str] = set()
    for row, below in MAY_IMPORT.items():
        assert set(below.split()) <= above, f"{row} may import what stands below it in the table"
        above.add(row)


def test_no_modules_import_each_other():
    """Wherever the statement stands: a late import is late for its time, never to hide a circle."""
    arrows = {
        module: {name for name in imports(path.read_text(), module) if name in MODULES} - {module}
        for module, path in MODULES.items()
        if module != "mpconv"
        # it imports nothing but its version before somebody uses it
    }
    while True:
        leaves = {module for module, below in arrows.items() if not below & arrows.keys()}
        if not leaves:
            break
        arrows = {module: below for module, below in arrows.items() if module not in leaves}
    assert not arrows, f"among these is a circle: {', '.join(sorted(arrows))}"


def test_every_module_was_read():
    assert {"mpconv", "mpconv.core.leases", "mpconv.transports.nfs.v42.client", "mpconv.cli.commands.convert"} <= set(
        MODULES
    )
