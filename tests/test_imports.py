"""The arrows between the packages run one way (the design's "directions"); the imports are read, nothing is run."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mpconv

ROOT = Path(mpconv.__file__).parent

BOTTOM = {"extent", "job", "errors", "units", "digest", "names"}
MAY_IMPORT: dict[str, set[str]] = {
    "": BOTTOM
    | {"api", "blocking", "cache", "doctor", "fanout", "formats", "inspection", "jobs", "many", "options", "ui"},
    "extent": BOTTOM,
    "job": BOTTOM,
    "errors": BOTTOM,
    "units": BOTTOM,
    "digest": BOTTOM,
    "names": BOTTOM,
    "core": BOTTOM,
    "protocol": BOTTOM | {"limits"},
    "transports": BOTTOM,
    "formats": BOTTOM | {"transports"},
    "ui": BOTTOM,
    "journal": BOTTOM | {"core"},
    "workers": BOTTOM | {"interruption", "protocol", "transports", "formats"},
    "cache": set(),
    "tuning": BOTTOM,
    "options": BOTTOM | {"cache", "formats", "protocol"},
    "target": BOTTOM | {"formats", "transports", "options"},
    "lineage": BOTTOM | {"formats", "transports"},
    "qcow2_target": BOTTOM | {"formats", "lineage", "transports", "options", "target"},
    "observer": BOTTOM | {"core"},
    "interruption": BOTTOM,
    "crew": BOTTOM,
    "leftovers": set(),
    "limits": BOTTOM,
    "outages": BOTTOM,
    "guests": BOTTOM,
    "room": BOTTOM | {"core", "crew", "guests", "observer", "protocol", "transports"},
    "staff": BOTTOM | {"core", "crew", "observer", "workers"},
    "reception": BOTTOM | {"core", "crew", "protocol", "guests", "observer"},
    "sharing": BOTTOM | {"protocol", "target", "transports"},
    "placing": BOTTOM | {"protocol", "formats"},
    "walk": BOTTOM | {"formats"},
    "coordinator": BOTTOM
    | {"core", "protocol", "transports", "formats", "workers", "journal", "observer", "interruption", "crew", "outages"}
    | {"limits", "placing", "reception", "room", "staff", "walk"},
    "jobs": BOTTOM
    | {"coordinator", "core", "formats", "interruption", "journal", "observer", "options", "protocol", "qcow2_target"}
    | {"sharing", "target", "transports", "tuning", "workers"},
    "watch": BOTTOM | {"core", "limits", "observer", "journal", "jobs"},
    "inspection": BOTTOM | {"transports", "formats"},
    "doctor": BOTTOM | {"transports", "formats", "inspection", "options", "tuning"},
    "api": BOTTOM
    | {
        "doctor",
        "formats",
        "inspection",
        "interruption",
        "jobs",
        "journal",
        "options",
        "protocol",
        "soundness",
        "transports",
    }
    | {"ui", "workers"},
    "soundness": BOTTOM | {"cache", "formats", "options"},
    "many": BOTTOM | {"api", "cli", "fanout", "interruption", "journal", "observer", "protocol", "workers"},
    "blocking": {"api", "many"},
    "cli": BOTTOM
    | {
        "api",
        "cache",
        "core",
        "formats",
        "inspection",
        "interruption",
        "jobs",
        "leftovers",
        "limits",
        "journal",
        "observer",
        "options",
        "protocol",
        "doctor",
        "fanout",
        "sharing",
    }
    | {"transports", "ui", "watch", "workers", ""},
    "fanout": BOTTOM
    | {
        "formats",
        "guests",
        "interruption",
        "jobs",
        "journal",
        "observer",
        "options",
        "protocol",
        "sharing",
        "soundness",
        "transports",
        "watch",
        "workers",
    },
    "__main__": {"cli"},
}
"""What each part of mpconv may import besides itself; the part "" is mpconv/__init__.py."""

SHELL = {"os", "socket", "asyncio", "time", "logging", "pathlib", "random", "zmq"}
CODECS = {"msgspec.json", "msgspec.msgpack"}
"""Records are msgspec's structs everywhere; what travels is the business of few."""
MUST_NOT: dict[str, set[str]] = {
    "tuning": SHELL | {"click"},
    "extent": SHELL | {"click"},
    "job": SHELL | {"click"},
    "errors": SHELL | {"click"},
    "units": SHELL | {"click"},
    "digest": SHELL | {"click"},
    "names": SHELL | {"click"},
    "crew": SHELL | {"click"},
    "outages": SHELL | {"click"},
    "guests": SHELL | {"click"},
    "soundness": SHELL | {"click"},
    "core": SHELL | CODECS | {"click", "multiprocessing", "cffi", "threading", "subprocess", "sqlite3", "datetime"},
    "protocol": {"click", "cffi", "multiprocessing"},
    "transports": CODECS | {"zmq", "click", "multiprocessing"},
    "formats": CODECS | {"zmq", "click", "multiprocessing"},
    "workers": {"click"},
    "ui": {"zmq"},
    "fanout": {"click"},
    **dict.fromkeys(("mpconv.fanout.plan", "mpconv.fanout.schedule", "mpconv.fanout.spec"), SHELL | CODECS | {"click"}),
}
"""Modules from elsewhere that a part does without, or a module of one that is not like the others of it."""


def name_of(path: Path) -> str:
    """The dotted name of a module file."""
    parts = ["mpconv", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(ROOT.rglob("*.py"))}


def part_of(module: str) -> str:
    """Which part of mpconv a module belongs to."""
    return module.removeprefix("mpconv").lstrip(".").partition(".")[0]


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
                found.add(inner if inner in MODULES or inner in CODECS else base)
    return found


def wrong_arrows(source: str, module: str) -> list[str]:
    """The imports that the tables do not allow, in words."""
    part = part_of(module)
    wrong = []
    for imported in sorted(imports(source, module)):
        top = imported.partition(".")[0]
        if top == "mpconv":
            allowed = part_of(imported) in MAY_IMPORT[part] | {part}
        else:
            allowed = not {top, imported} & MUST_NOT.get(module, MUST_NOT.get(part, set()))
        if not allowed:
            wrong.append(f"{module} imports {imported}")
    return wrong


@pytest.mark.parametrize("module", MODULES)
def test_no_arrow_runs_the_wrong_way(module):
    assert part_of(module) in MAY_IMPORT, f"{module} is in no row of MAY_IMPORT: decide what it may import"
    assert wrong_arrows(MODULES[module].read_text(), module) == []


@pytest.mark.parametrize(
    ("module", "source", "imported"),
    [
        ("mpconv.extent", "import mpconv.core.cursor", "mpconv.core.cursor"),
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
        ("mpconv.workers.worker", "from mpconv.core import coordination", "mpconv.core.coordination"),
        ("mpconv.ui.progress", "from mpconv import transports", "mpconv.transports"),
        ("mpconv.coordinator", "from mpconv.cli import main", "mpconv.cli"),
        ("mpconv.fanout.schedule", "import time", "time"),
    ],
)
def test_an_invented_wrong_arrow_is_caught(module, source, imported):
    assert wrong_arrows(source, module) == [f"{module} imports {imported}"]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("mpconv.core.cursor", "from mpconv.extent import Extent\nfrom collections import deque"),
        ("mpconv.core.coordination", "from .cursor import Cursor"),
        ("mpconv.core.leases", "from msgspec import Struct"),
        ("mpconv.workers.worker", "import os\nimport zmq\nfrom mpconv import transports"),
        ("mpconv.coordinator", "from mpconv.workers.launch.local import LocalWorkers"),
        ("mpconv.cli", "from mpconv import __version__, options"),
    ],
)
def test_a_right_arrow_is_let_through(module, source):
    assert wrong_arrows(source, module) == []


def test_the_tables_make_a_house_without_circles():
    for part, below in MAY_IMPORT.items():
        for other in below - {part}:
            assert part not in MAY_IMPORT[other] or {part, other} <= BOTTOM, f"{part} and {other} import each other"


def test_every_module_was_read():
    assert {"mpconv", "mpconv.core.leases", "mpconv.transports.nfs4.client", "mpconv.cli.convert"} <= set(MODULES)
