"""Random cases for both programs: images and options. Pure; the same seed and number give the same case.

A case says nothing about folders or servers: an image has a name and a place, and `run` decides where that is.
Bytes of data come from one long text of numbers (`seq -f %07.0f`), so that a block in the wrong place is noticed
and a shell can make the same image.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass

KIB, MIB = 1 << 10, 1 << 20

FILE, NFS, LUN512, LUN4096 = "file", "nfs", "lun512", "lun4096"
ABSENT, FOLDER = "absent", "folder"
LUNS = {LUN512: 512, LUN4096: 4096}
LUN_SIZES = (MIB, 4 * MIB + 3 * 4096, 9 * MIB)
_NUMBERS = 2_400_000
_STARTS = 6_000_000

Option = tuple[str, ...]


@functools.cache
def numbers() -> bytes:
    """What data is taken from: `seq -f %07.0f` up to 19 MB."""
    return b"".join(b"%07d\n" % number for number in range(1, _NUMBERS + 1))


@dataclass(frozen=True)
class Piece:
    """A run of `length` bytes: "data", "zeros" that are written, or a "hole"."""

    kind: str
    length: int


@dataclass(frozen=True)
class Image:
    """What lies under a name, and how the command line spells it; `salt` is where in `numbers` its data begins.

    Not `made`: the place is there, the image is not yet.
    """

    name: str
    place: str = FILE
    pieces: tuple[Piece, ...] = ()
    salt: int = 0
    spelled: str = "{}"
    made: bool = True

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(piece.length for piece in self.pieces)

    @property
    def local(self) -> bool:
        """No server is needed."""
        return self.place != NFS and self.place not in LUNS

    @property
    def exists(self) -> bool:
        """There is an image, not nothing and not a folder."""
        return self.made and self.place not in (ABSENT, FOLDER)

    def spans(self) -> list[tuple[int, Piece]]:
        """The pieces and where they start."""
        found, at = [], 0
        for piece in self.pieces:
            found.append((at, piece))
            at += piece.length
        return found

    def taken_from(self, at: int) -> int:
        """Where in `numbers` the data at byte `at` begins."""
        return (at + self.salt) % _STARTS

    def content(self) -> bytes:
        """All its bytes."""
        parts = []
        for at, piece in self.spans():
            start = self.taken_from(at)
            parts.append(numbers()[start : start + piece.length] if piece.kind == "data" else bytes(piece.length))
        return b"".join(parts)


@dataclass(frozen=True)
class Case:
    """One run of each program. `spelling` and `workers` are for mpconv alone."""

    kind: str
    options: tuple[Option, ...]
    sources: tuple[Image, ...]
    target: Image | None
    spelling: str = "short"
    workers: int | None = None

    @property
    def images(self) -> tuple[Image, ...]:
        """Sources, then the target."""
        return (*self.sources, self.target) if self.target else self.sources

    def values(self, name: str) -> list[str]:
        """The values that an option was given."""
        return [option[-1] for option in self.options if option[0] == name]

    def has(self, *names: str) -> bool:
        """One of these options is there."""
        return any(option[0] in names for option in self.options)


SIZES = (
    *(0, 1, 511, 512, 513, 1000, 1024, 1536, 4095, 4096, 4097, 5000, 8192, 65_535, 65_536, 65_537, 66_048, 100_001),
    *(MIB - 1, MIB, MIB + 1, MIB + 512, 2 * MIB - 512, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 2 * MIB + 4096),
    *(4 * MIB - 4096, 4 * MIB, 4 * MIB + 512, 6 * MIB + 513, 8 * MIB + 4095, 12 * MIB),
)
LENGTHS = (
    *(1, 8, 100, 511, 512, 513, 1024, 1535, 1536, 2048, 3584, 4095, 4096, 4097, 4608, 5000, 6144, 8192, 12_288),
    *(20_480, 32_768, 65_024, 65_535, 65_536, 65_537, 69_632, 131_072, MIB - 512, MIB, MIB + 512, MIB + 4096),
    *(2 * MIB - 512, 2 * MIB, 2 * MIB + 512),
)


def a_size(chance: random.Random) -> int:
    """Awkward, or any; small ones more often."""
    sort = chance.random()
    if sort < 0.45:
        return chance.choice(SIZES[:18])
    if sort < 0.6:
        return chance.choice(SIZES)
    if sort < 0.8:
        return chance.randrange(1, 300) * 512
    return chance.randrange(400_000)


def pieces(chance: random.Random, size: int) -> tuple[Piece, ...]:
    """Up to a dozen pieces that fill `size`, sometimes one alone."""
    if size == 0:
        return ()
    if chance.random() < 0.12:
        return (Piece(chance.choice(["data", "zeros", "hole"]), size),)
    found: list[Piece] = []
    left, longest = size, max(1, size // chance.choice([1, 2, 4, 12]))
    while left and len(found) < 12:
        length = min(left, chance.choice([length for length in LENGTHS if length <= longest]))
        found.append(Piece(chance.choice(["data", "data", "zeros", "hole"]), length))
        left -= length
    if left:
        found.append(Piece(chance.choice(["data", "zeros", "hole"]), left))
    return tuple(found)


def _source(chance: random.Random, number: int = 0, place: str = FILE, size: int | None = None) -> Image:
    size = chance.choice(LUN_SIZES) if place in LUNS else a_size(chance) if size is None else size
    return Image(f"{'abcd'[number]}.raw", place, pieces(chance, size), salt=number * 1_000_001)


def _old_target(chance: random.Random, needed: int, place: str = FILE) -> Image:
    """A target that exists: full of old data, sparse or mixed; about as large as needed."""
    if place in LUNS:
        size = chance.choice([size for size in LUN_SIZES if size >= needed] or [LUN_SIZES[-1]])
    else:
        rounded = -(-needed // 512) * 512
        size = chance.choice(
            [rounded] * 4 + [needed, rounded + 512, rounded + chance.randrange(1, 100_000), needed - 1]
        )
        if chance.random() < 0.05:
            size = a_size(chance)
        size = max(0, size)
    how = chance.random()
    parts = pieces(chance, size) if how < 0.4 else (Piece("data" if how < 0.8 else "hole", size),) if size else ()
    return Image("target.raw", place, parts, salt=5_000_003)


def _new_target() -> Image:
    return Image("target.raw", ABSENT)


def _sectors(sources: tuple[Image, ...]) -> int:
    return sum(-(-source.size // 512) * 512 for source in sources)


CACHES = ("none", "off", "writeback", "writethrough", "directsync", "unsafe")
_ORDINARY: tuple[tuple[float, Callable[[random.Random], Option]], ...] = (
    (0.35, lambda chance: ("-W",)),
    (0.35, lambda chance: ("-m", str(chance.randrange(1, 17)))),
    (
        0.45,
        lambda chance: ("-S", chance.choice(["0", "0", "512", "1k", "1536", "4k", "6k", "64k", "65024", "1M", "16M"])),
    ),
    (0.20, lambda chance: ("-t", chance.choice(CACHES))),
    (0.20, lambda chance: ("-T", chance.choice(CACHES))),
    (0.06, lambda chance: ("-r", chance.choice(["0", "100M", "1G", "200000k", "1T"]))),
    (0.10, lambda chance: ("-U",)),
    (0.06, lambda chance: ("--salvage",)),
    (0.30, lambda chance: ("-f", "raw")),
    (0.25, lambda chance: ("-O", "raw")),
    (0.15, lambda chance: ("-p",)),
    (0.08, lambda chance: ("-q",)),
)


def _ordinary(chance: random.Random) -> list[Option]:
    """Options that any copy can have."""
    found = [make(chance) for share, make in _ORDINARY if chance.random() < share]
    if chance.random() < 0.1 and not any(option[0] in ("-S", "--salvage") for option in found):
        found.append(("-C",))
    return found


_CREATION = (
    *(
        "preallocation=off",
        "preallocation=falloc",
        "preallocation=full",
        "size=1M",
        "size=0",
        "size=5,preallocation=off",
    ),
    *("preallocation=full,preallocation=off", "preallocation=falloc,size=64k"),
)
_BAD_CREATION = (
    *("", "help", "?", "preallocation=metadata", "preallocation=invalid", "preallocation", "foo=1", "size=abc", "size"),
    *("size=1M,help", "cluster_size=64k", "backing_file=x.raw", ",", "size=1M,", "preallocation=", "=1", "nocow=on"),
    *("extent_size_hint=1M", "nocow=maybe", "size=-1", "compat=1.1", "preallocation=OFF", "foo", "foo=1,help"),
)
_BAD_OPTIONS: tuple[Option, ...] = (
    *(("-S", size) for size in ("1", "511", "513", "100", "17M", "16777728", "abc", "-512", "", "4kk", "1e3", "0x200")),
    *(("-S", size) for size in ("0.5k", "1.5k", "1b", "4K", "12345678901234567890", "1E", " 4k", "4 k")),
    *(("-m", number) for number in ("0", "-1", "1025", "abc", "", "4k", "1.5", "0x4", " 4", "99999999999999999999")),
    *(("-r", rate) for rate in ("abc", "-1", "", "1.5M", "0x10000000", "9E", "1kB")),
    *(("-t", mode) for mode in ("", "invalid", "NONE", "write", "Writeback")),
    *(("-T", mode) for mode in ("", "invalid", "NONE", "unsafe ")),
    *(("-f", name) for name in ("qcow9", "", "RAW", "host_device9")),
    *(("-O", name) for name in ("qcow9", "", "RAW", "raww")),
    *(("-o", text) for text in _BAD_CREATION),
    *(("-c",), ("-B", "base.raw"), ("-B", ""), ("-F", "raw"), ("-F", "qcow9"), ("-l", "snap"), ("-l", "")),
    *(("-l", "snapshot.id=1"), ("-l", "snapshot.name=x"), ("-l", "snapshot.foo=1"), ("-l", "snapshot.id=1,foo=2")),
    *(("--bitmaps",), ("--skip-broken-bitmaps",), ("--target-is-zero",), ("--target-image-opts",), ("--image-opts",)),
)
_BAD_COMBINATIONS: tuple[tuple[Option, ...], ...] = (
    (("-C",), ("-S", "4k")),
    (("-C",), ("-S", "0")),
    (("-C",), ("-c",)),
    (("-C",), ("--salvage",)),
    (("-n",), ("-o", "size=1M")),
    (("-n",), ("-o", "help")),
    (("-n",), ("-c",)),
    (("-n",), ("-B", "a.raw")),
    (("-n",), ("-F", "raw")),
    (("-n",), ("--target-is-zero",), ("-B", "a.raw")),
    (("-n",), ("--target-is-zero",), ("-B", "a.raw"), ("-F", "raw")),
    (("-c",), ("-o", "preallocation=full")),
    (("-c",), ("-o", "preallocation=off")),
    (("-B", "a.raw"), ("-F", "raw")),
    (("-B", "a.raw"), ("-o", "preallocation=full")),
    (("-o", "backing_file=a.raw"), ("-F", "raw")),
    (("-l", "snap"), ("-c",)),
    (("--bitmaps",), ("--skip-broken-bitmaps",)),
    (("--bitmaps",), ("-l", "snap")),
    (("--image-opts",), ("-f", "raw")),
    (("-n",), ("--target-image-opts",), ("-O", "raw")),
    (("--target-image-opts",), ("-O", "raw")),
    (("--salvage",), ("-l", "snap")),
    (("-o", "size=1M"), ("-o", "")),
    (("-o", "help"), ("-O", "qcow9")),
    (("-q",), ("-p",), ("-S", "1")),
)
_SPELLED_SOURCES = (
    *("driver=raw,file.filename={}", "driver=raw,file.driver=file,file.filename={}", "file.filename={}"),
    *("driver=file,filename={}", "driver=raw,file.driver=file,file.filename={},file.locking=off", "filename={}"),
    *("driver=raw,file.driver=file,file.filename={},read-only=on", "driver=raw,offset=512,file.filename={}"),
    *("driver=raw,file.filename={},size=512", "driver=raw,file.filename={},cache.direct=on"),
)
_BAD_SPELLED_SOURCES = (
    *(
        "{}",
        "driver=qcow9,file.filename={}",
        "driver=raw,file.driver=nope,file.filename={}",
        "driver=raw",
        "",
        "driver",
    ),
    *("driver=raw,file.filename={},foo=1", "driver=raw,filename={}", "driver=raw,file.driver=file", "foo={}"),
    *("driver=raw,file.filename={},offset=1", "driver=raw,file.filename={},size=9999999999", "file.filename=no{}"),
)


def _plain(chance: random.Random) -> Case:
    return Case("plain", tuple(_ordinary(chance)), (_source(chance),), _new_target())


def _over_a_file(chance: random.Random) -> Case:
    """Without -n, a file in the way is made anew."""
    source = _source(chance)
    return Case("overwrite", tuple(_ordinary(chance)), (source,), _old_target(chance, source.size))


def _existing(chance: random.Random) -> Case:
    source = _source(chance)
    target = _old_target(chance, source.size)
    options = [*_ordinary(chance), ("-n",)]
    if chance.random() < 0.12:
        options.append(("--target-is-zero",))
        if chance.random() < 0.7:
            target = Image(target.name, pieces=(Piece("hole", target.size),) if target.size else ())
    return Case("existing", tuple(options), (source,), target)


def _concatenation(chance: random.Random) -> Case:
    sources = tuple(_source(chance, number) for number in range(chance.randrange(2, 5)))
    if chance.random() < 0.15:
        sources = (*sources[:-1], sources[0])
    if chance.random() < 0.35:
        return Case("concatenation", (*_ordinary(chance), ("-n",)), sources, _old_target(chance, _sectors(sources)))
    return Case("concatenation", tuple(_ordinary(chance)), sources, _new_target())


def _creation(chance: random.Random) -> Case:
    source = _source(chance)
    options = [*_ordinary(chance), ("-o", chance.choice(_CREATION))]
    if chance.random() < 0.2:
        options.append(("-o", chance.choice(_CREATION)))
    return Case("creation", tuple(options), (source,), _new_target())


def _refusal(chance: random.Random) -> Case:
    """A bad value or a bad combination among good options."""
    sources = tuple(
        _source(chance, number, size=chance.choice([512, 5000])) for number in range(chance.choice([1, 1, 2]))
    )
    few = _ordinary(chance)[:1] if chance.random() < 0.3 else []
    bad: list[Option] = (
        list(chance.choice(_BAD_COMBINATIONS)) if chance.random() < 0.35 else [chance.choice(_BAD_OPTIONS)]
    )
    if chance.random() < 0.08:
        bad.append(chance.choice(_BAD_OPTIONS))
    options = [option for option in few if option not in bad] + bad
    chance.shuffle(options)
    target = _old_target(chance, _sectors(sources)) if ("-n",) in options else _new_target()
    return Case("refusal", tuple(options), sources, target)


def _usage(chance: random.Random) -> Case:
    """Missing or impossible files and arguments."""
    source, target = _source(chance, size=chance.choice([0, 512, 5000])), _new_target()
    options: list[Option] = [option for option in _ordinary(chance) if chance.random() < 0.2]
    absent, folder = Image("absent.raw", ABSENT), Image("folder", FOLDER)
    existing = Image("target.raw", FILE, (Piece("data", 8192),), 5_000_003)
    sources: tuple[Image, ...] = (source,)
    end: Image | None = target
    which = chance.randrange(17)
    if which == 0:
        sources, end = (), None
    elif which == 1:
        sources = ()
    elif which == 2:
        sources = (absent,)
    elif which == 3:
        sources = (source, absent)
    elif which == 4:
        sources = (folder,)
    elif which == 5:
        end = folder
        options += [("-n",)] * chance.randrange(2)
    elif which == 6:
        end = Image("target.raw", ABSENT, spelled="missing/{}")
        options += [("-n",)] * chance.randrange(2)
    elif which == 7:
        options.append(("-n",))
    elif which == 8:
        end = source
        options += [("-n",)] * chance.randrange(2)
    elif which == 9:
        sources = (
            Image("a.raw", FILE, source.pieces, spelled=chance.choice(["file:{}", "./{}", "x:{}", "x-y://h/{}"])),
        )
    elif which == 10:
        end = Image("target.raw", ABSENT, spelled=chance.choice(["file:{}", "./{}", "x:{}", "file:", ""]))
    elif which == 11:
        sources = (Image("a.raw", FILE, source.pieces, spelled=""),)
    elif which == 12:
        options.append((chance.choice(["-Z", "-z", "--nonsense", "--target-format-nonsense", "-x"]),))
    elif which == 13:
        end = existing
        options.append(("-n",))
        sources = (_source(chance, size=9000),)
    elif which == 14:
        sources = (source, source)
        end = Image("target.raw", ABSENT, spelled="missing/{}")
    elif which == 15:
        end = None
        options.append((chance.choice(["-S", "-m", "-o", "-t", "-T", "-r", "-f", "-O", "-B", "-F", "-l"]),))
        return Case("usage", tuple(options[-1:]), (), None)
    else:
        sources, end = (absent,), Image("target.raw", ABSENT, spelled="missing/{}")
    return Case("usage", tuple(options), sources, end)


def _image_opts(chance: random.Random) -> Case:
    options = [option for option in _ordinary(chance) if option[0] not in ("-f", "-O")]
    forms = _BAD_SPELLED_SOURCES if chance.random() < 0.3 else _SPELLED_SOURCES
    source = _source(chance)
    spelled_source, spelled_target = chance.choice([(True, False), (False, True), (True, True)])
    if spelled_source:
        options.append(("--image-opts",))
        source = Image(source.name, FILE, source.pieces, source.salt, spelled=chance.choice(forms))
    if not spelled_target:
        return Case("image-opts", tuple(options), (source,), _new_target())
    target = _old_target(chance, source.size)
    target = Image(target.name, FILE, target.pieces, target.salt, spelled=chance.choice(forms))
    return Case("image-opts", (*options, ("-n",), ("--target-image-opts",)), (source,), target)


def _remote(chance: random.Random, places: tuple[str, ...]) -> Case:
    """From or to a place that is not a file here."""
    remote = chance.choice(places)
    options = [option for option in _ordinary(chance) if option != ("-C",)]
    if chance.random() < 0.4:
        source = _source(chance, place=remote)
        target = _new_target() if chance.random() < 0.6 else _old_target(chance, source.size)
    else:
        source = _source(chance)
        exists = remote in LUNS or chance.random() < 0.5
        target = _old_target(chance, source.size, remote) if exists else Image("target.raw", remote, made=False)
    # Without -n, qemu-img leaves old bytes in an NFS file that was there, where zeros should be.
    if target.exists and (remote == NFS or chance.random() < 0.8):
        options.append(("-n",))
    return Case(f"remote {remote}", tuple(options), (source,), target)


_KINDS: tuple[tuple[int, Callable[[random.Random], Case]], ...] = (
    (20, _plain),
    (4, _over_a_file),
    (22, _existing),
    (12, _concatenation),
    (8, _creation),
    (16, _refusal),
    (8, _usage),
    (8, _image_opts),
)


def make_case(seed: int, number: int, remote: tuple[str, ...] = ()) -> Case:
    """The case of that number. `remote`: places besides files, for one case in eight."""
    chance = random.Random(f"{seed}/{number}")
    if chance.random() < 0.125 and remote:
        case = _remote(chance, remote)
    else:
        [make] = chance.choices([make for _, make in _KINDS], [weight for weight, _ in _KINDS])
        case = make(chance)
    spelling = chance.choice(["short", "short", "long"])
    if case.kind == "usage":
        spelling = "short"
    workers = chance.choice([None, None, 1, 2, 3])
    return Case(case.kind, case.options, case.sources, case.target, spelling, workers)
