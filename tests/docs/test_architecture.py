"""docs/architecture.md tells the truth: the rooms are these, they import that, and "Where to add" is all it takes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import Struct

from tests.test_imports import MAY_IMPORT

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "mpconv"
PAGE = (ROOT / "docs" / "architecture.md").read_text()
MiB = 1 << 20
MOST_LINES = 110


def section(title: str) -> str:
    """What stands below a heading, up to the next one of any level."""
    [found] = re.findall(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    return found


ROWS = re.findall(r"^\| `(\w+)/` \| (.*) \| (.*) \|$", section("The rooms"), re.MULTILINE)
"""Room, what it holds, what it may import."""


def imported(words: str, above: list[str]) -> set[str]:
    """The rooms that the last cell of a row means. `above`: the rooms above it."""
    named = set(re.findall(r"`(\w+)`", words))
    if words.startswith("all above"):
        return set(above) - named
    return named


def test_the_page_is_short():
    assert len(PAGE.splitlines()) <= MOST_LINES


def test_the_rows_say_what_may_be_imported():
    rooms = [room for room, _, _ in ROWS]
    told = {room: imported(words, rooms[:number]) for number, (room, _, words) in enumerate(ROWS)}
    assert told == {room: set(below.split()) for room, below in MAY_IMPORT.items()}
    assert rooms == list(MAY_IMPORT)


def test_every_folder_is_in_the_picture():
    told = {room: what for room, what, _ in ROWS}
    for init in PACKAGE.rglob("*/__init__.py"):
        room, *below = init.parent.relative_to(PACKAGE).parts
        assert room in told
        assert not below or f"`{below[-1]}/`" in told[room] or f"`{'/'.join(below)}/`" in told[room], init.parent


def test_the_modules_that_are_named_are_there():
    made = {f"mpconv/{path}" for addition in ADDITIONS.values() for path in addition.new}
    for name in re.findall(r"`([\w/]+/[\w/.]+)`", PAGE):
        near = [
            place for place in (ROOT, PACKAGE, PACKAGE / "transports", PACKAGE / "formats") if (place / name).exists()
        ]
        assert near or f"mpconv/{name}" in made, name


class Addition(Struct):
    """`new`: files and what stands in them. `edits`: to files that are there, a text that stands in one once and what
    comes in its place. All below mpconv/.
    """

    new: dict[str, str]
    edits: dict[str, list[tuple[str, str]]]

    def files(self) -> set[str]:
        """All that are touched."""
        return {*self.new, *self.edits}

    def made_in(self, package: Path) -> None:
        """Make it in a copy of the package."""
        for name, text in self.new.items():
            assert not (package / name).exists()
            (package / name).write_text(text)
        for name, edits in self.edits.items():
            text = (package / name).read_text()
            for old, new in edits:
                assert text.count(old) == 1, f"{name} has not once: {old}"
                text = text.replace(old, new)
            (package / name).write_text(text)


ONES = '''
"""`ones:BYTES` reads bytes of 0xff."""

from mpconv.transports.base import AS_USUAL, Access, Opening, Transport


class OnesTransport(Transport):
    def __init__(self, url, size):
        self.name, self.identity, self.size = url, ("ones", url), size

    async def read_into(self, offset, buffer):
        self._check("reading", offset, len(buffer))
        buffer[:] = b"\\xff" * len(buffer)

    async def write(self, offset, buffer):
        raise NotImplementedError

    async def flush(self):
        pass

    async def close(self):
        pass


async def connect(url, access: Access, *, create_size=None, opening: Opening = AS_USUAL):
    return OnesTransport(url, int(url.partition(":")[2]))
'''

TINY = '''
"""tiny: a sector that begins with TINY, and the guest disk behind it."""

from mpconv.formats.raw import RawImage
from mpconv.model.extent import Extent
from mpconv.model.units import SECTOR


class TinyImage(RawImage):
    format = "tiny"

    def __init__(self, store):
        super().__init__(store)
        self.size -= SECTOR

    async def read_into(self, offset, buffer):
        await self.transport.read_into(SECTOR + offset, buffer)

    async def block_status(self, offset, length):
        return [Extent(offset, length)]

    def locate(self, offset, length):
        return []
'''

HELLO = '''
"""`mpconv hello`: a greeting."""

import click


@click.command()
def hello() -> int:
    """Greet."""
    print("hello")
    return 0
'''

ADDITIONS = {
    "A transport": Addition(
        new={"transports/ones.py": ONES},
        edits={
            "transports/__init__.py": [
                (
                    '    "memory": "mpconv.transports.memory",\n',
                    '    "memory": "mpconv.transports.memory",\n    "ones": "mpconv.transports.ones",\n',
                )
            ]
        },
    ),
    "A format that is read": Addition(
        new={"formats/tiny.py": TINY},
        edits={
            "formats/probe.py": [('    "qed": (b"QED\\0",),\n', '    "qed": (b"QED\\0",),\n    "tiny": (b"TINY",),\n')],
            "formats/opening.py": [
                ('READABLE = ("raw", "qcow2")', 'READABLE = ("raw", "qcow2", "tiny")'),
                (
                    '        if fmt != "qcow2":\n',
                    '        if fmt == "tiny":\n'
                    "            from mpconv.formats.tiny import TinyImage\n\n"
                    '            return TinyImage(store), place.resolved("tiny", store.marks)\n'
                    '        if fmt != "qcow2":\n',
                ),
            ],
            "cli/completion.py": [('"FMT": Words("raw", "qcow2")', '"FMT": Words("raw", "qcow2", "tiny")')],
            "cli/qemu/format_names.py": [("frozenset((RAW, QCOW2))", 'frozenset((RAW, QCOW2, "tiny"))')],
            "inspection/info.py": [
                (
                    "    qcow2: Qcow2Info | None = None\n",
                    '    qcow2: Qcow2Info | None = None\n    named: str = "raw"\n',
                ),
                ('return "raw" if self.qcow2', "return self.named if self.qcow2"),
                ("flagged, told)", "flagged, told, image.format)"),
            ],
        },
    ),
    "A command": Addition(
        new={"cli/commands/hello.py": HELLO},
        edits={
            "cli/__init__.py": [
                (
                    '    "map": "mpconv.cli.commands.map:map_",\n',
                    '    "map": "mpconv.cli.commands.map:map_",\n    "hello": "mpconv.cli.commands.hello:hello",\n',
                )
            ]
        },
    ),
    "An option of convert": Addition(
        new={},
        edits={
            "cli/commands/convert.py": [
                (
                    '@click.argument("names"',
                    '@click.option("--greeting", metavar="TEXT", help="Say so first.")\n@click.argument("names"',
                )
            ],
            "cli/qemu/copy_options.py": [
                (
                    "        listening=listening,\n",
                    '        listening=listening,\n        greeting=options["greeting"],\n',
                )
            ],
            "options/copy.py": [
                (
                    "    allow_same_image: bool = False\n",
                    "    allow_same_image: bool = False\n    greeting: str | None = None\n",
                )
            ],
            "jobs/copy/convert.py": [
                (
                    "    backed = options.qcow2 is not None",
                    "    if options.greeting is not None:\n        context.observer.warn(options.greeting)\n"
                    "    backed = options.qcow2 is not None",
                )
            ],
        },
    ),
}


@pytest.fixture
def extended(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with a copy of the package in which what the test is marked with was added, as the page says."""
    shutil.copytree(PACKAGE, tmp_path / "mpconv")
    ADDITIONS[request.param].made_in(tmp_path / "mpconv")
    return tmp_path


def mpconv(where: Path, *words: str, **environment: str) -> str:
    """What the command of that copy prints, on both ways."""
    done = subprocess.run(
        [sys.executable, str(Path(sys.executable).with_name("mpconv")), *words],
        cwd=where,
        env={**os.environ, "PYTHONPATH": str(where), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.mark.parametrize("what", ADDITIONS)
def test_the_list_has_the_files_that_are_touched(what):
    assert set(re.findall(r"^- `([\w/.]+)`: ", section(what), re.MULTILINE)) == ADDITIONS[what].files()


def test_each_list_is_tried():
    titles = re.findall(r"^### (.*)$", PAGE.partition("\n## Where to add\n")[2], re.MULTILINE)
    assert titles == list(ADDITIONS)


@pytest.mark.parametrize("extended", ["A transport"], indirect=True)
def test_a_transport_can_be_added(extended):
    mpconv(extended, "convert", f"ones:{3 * MiB}", "made.raw")
    assert (extended / "made.raw").read_bytes() == b"\xff" * (3 * MiB)


@pytest.mark.parametrize("extended", ["A format that is read"], indirect=True)
def test_a_format_can_be_added(extended):
    disk = os.urandom(3 * MiB)
    (extended / "disk.tiny").write_bytes(b"TINY".ljust(512, b"\0") + disk)
    assert "file format: tiny\nvirtual size: 3 MiB" in mpconv(extended, "info", "disk.tiny")
    for words in ([], ["-f", "tiny"]):
        mpconv(extended, "convert", *words, "disk.tiny", "made.raw")
        assert (extended / "made.raw").read_bytes() == disk
    assert mpconv(extended, "compare", "disk.tiny", "made.raw") == "Images are identical.\n"
    pressed = {"_MPCONV_COMPLETE": "bash_complete", "COMP_WORDS": "mpconv convert -f t", "COMP_CWORD": "3"}
    assert mpconv(extended, **pressed) == "plain,tiny\n"


@pytest.mark.parametrize("extended", ["A command"], indirect=True)
def test_a_command_can_be_added(extended):
    assert mpconv(extended, "hello") == "hello\n"
    assert "  hello     Greet.\n" in mpconv(extended, "--help")


@pytest.mark.parametrize("extended", ["An option of convert"], indirect=True)
def test_an_option_can_be_added(extended):
    (extended / "disk.raw").write_bytes(os.urandom(MiB))
    said = mpconv(extended, "convert", "--greeting", "good morning", "disk.raw", "made.raw")
    assert said == "mpconv: warning: good morning\n"
    assert (extended / "made.raw").read_bytes() == (extended / "disk.raw").read_bytes()
