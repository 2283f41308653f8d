"""Random copies onto qcow2 images, made by mpconv and by qemu-img, which also judges what mpconv made.

The same seed and number make the same case. A case is told as a script for a shell.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

KiB, MiB = 1 << 10, 1 << 20
CLUSTERS = (512, 1 * KiB, 4 * KiB, 16 * KiB, 64 * KiB, 64 * KiB, 256 * KiB, 2 * MiB)
EXTENDED_L2_LEAST = 16 * KiB
SPARSE = (None, None, None, "0", "512", "8k", "64k", "1M")
TARGET = "made.qcow2"
_LARGEST = 9 * MiB
_SPARSE_BYTES = {"0": 0, "512": 512, "4k": 4 * KiB, "8k": 8 * KiB, "64k": 64 * KiB, "1M": MiB}
_KINDS = ("depth", "present", "zero", "data")
_TEXT = b"".join(b"%07d, line by line; " % number for number in range(6000))
_PROGRAMS = {"ours": [sys.executable, "-m", "mpconv"], "theirs": ["qemu-img"]}


@dataclass(frozen=True, slots=True)
class Image:
    """One that is copied or lies below; sizes in bytes. `runs`: length and what is there: noise, text, zero or hole.

    `below`: its backing file. Without one it is raw or qcow2, by `format`; with one it is qcow2.
    """

    name: str
    size: int
    runs: tuple[tuple[int, str], ...]
    format: str = "raw"
    cluster: int = 64 * KiB
    below: Image | None = None


@dataclass(frozen=True, slots=True)
class Case:
    """One copy. `options`: what `-o` gets; `words`: the rest of the command line, for both programs. `own`: for ours.

    `backing`: of the target; when it is a source's own, the copy leaves to it what the source does.
    """

    sources: tuple[Image, ...]
    options: dict[str, str] = field(default_factory=dict)
    words: tuple[str, ...] = ()
    own: tuple[str, ...] = ()
    backing: Image | None = None

    def command(self, program: str) -> list[str]:
        """Run in a folder beside the images'. `program`: ours or theirs."""
        made = ",".join(f"{key}={value}" for key, value in self.options.items())
        over = [] if self.backing is None else ["-B", f"../{self.backing.name}", "-F", self.backing.format]
        words = ["convert", "-O", "qcow2", *(["-o", made] if made else []), *over, *self.words]
        if program == "ours":
            words += [*self.own, "--allow-backing=.."]
        return [*_PROGRAMS[program], *words, *(f"../{source.name}" for source in self.sources), TARGET]

    @property
    def data_file(self) -> str | None:
        """Its name."""
        return self.options.get("data_file")


def make_case(seed: int, number: int) -> Case:
    """The case of that number."""
    chance = random.Random(f"{seed}/{number}")
    cluster = chance.choice(CLUSTERS)
    options = {"cluster_size": str(cluster), **_options(chance, cluster)}
    words = tuple(_words(chance, options))
    own = tuple(chance.choice([[], ["--workers", "1"], ["--workers", "3"], ["--workers", "2", "-m", "3"]]))
    size = _size(chance, cluster)
    if chance.random() < 0.15:
        count = chance.choice([2, 3])
        sizes = [_size(chance, cluster, _LARGEST // count) for _ in range(count)]
        parts = [_image(chance, f"part{index}", size, cluster) for index, size in enumerate(sizes)]
        return Case(tuple(parts), options, words, own)
    source = _image(chance, "source", size, cluster)
    backing = None
    if "data_file_raw" not in options and chance.random() < 0.4:
        if options.get("extended_l2") != "on":
            options.pop("preallocation", None)
        other = size if chance.random() < 0.4 else _size(chance, cluster)
        backing = _image(chance, "backing", other, chance.choice(CLUSTERS))
        if chance.random() < 0.6:
            source = replace(source, name="source.qcow2", format="qcow2", below=backing)
    elif chance.random() < 0.15:
        source = replace(source, name="source.qcow2", format="qcow2", below=_image(chance, "below", size, cluster))
    return Case((source,), options, words, own, backing)


def _options(chance: random.Random, cluster: int) -> dict[str, str]:
    if chance.random() < 0.2:
        found = {"compat": "0.10"}
    else:
        found = {
            "refcount_bits": str(chance.choice([1, 2, 4, 8, 16, 16, 32, 64])),
            "lazy_refcounts": chance.choice(["on", "off"]),
        }
        if cluster >= EXTENDED_L2_LEAST:
            found["extended_l2"] = chance.choice(["on", "off"])
        if chance.random() < 0.4:
            found["compression_type"] = "zstd"
        if chance.random() < 0.2:
            found["data_file"] = "made.data"
            if chance.random() < 0.5:
                found["data_file_raw"] = "on"
    if chance.random() < 0.3:
        found["preallocation"] = chance.choice(["metadata", "falloc", "full"])
    return found


def _words(chance: random.Random, options: dict[str, str]) -> Iterator[str]:
    plain = "preallocation" not in options and "data_file" not in options
    if chance.random() < (0.6 if plain else 0.04):
        yield "-c"
    if chance.random() < 0.5:
        yield "-W"
    sparse = chance.choice(SPARSE)
    if sparse is not None:
        yield from ("-S", sparse)


def _size(chance: random.Random, cluster: int, most: int = _LARGEST) -> int:
    clusters = chance.randint(1, max(1, min(most // cluster, chance.choice([3, 70, 5000]))))
    match chance.randrange(8):
        case 0:
            return chance.choice([0, 512, cluster])
        case 1:
            return max(512, clusters * cluster - 512)
        case 2:
            return clusters * cluster
        case 3:
            return max(1, clusters * cluster - chance.randrange(1, 512))
        case _:
            return clusters * cluster + 512 * chance.randrange(cluster // 512)


def _image(chance: random.Random, name: str, size: int, cluster: int) -> Image:
    lengths = [512, 4096, 5120, max(512, cluster // 32), cluster, 3 * cluster, 70_144, MiB]
    runs: list[tuple[int, str]] = []
    left = size
    while left:
        length = min(left, chance.choice(lengths) * chance.choice([1, 1, 2, 7]), 4 * MiB)
        runs.append((length, chance.choice(["noise", "text", "text", "zero", "hole"])))
        left -= length
    fmt = "raw" if size % 512 else chance.choice(["raw", "raw", "qcow2"])
    return Image(f"{name}.{fmt}", size, tuple(runs), fmt, chance.choice(CLUSTERS))


def make_image(image: Image, folder: Path) -> None:
    """Make it, and what lies below. A raw file gets its bytes; a qcow2 one is copied from such a file, and where it has
    a backing file, written over it.
    """
    if image.below is not None:
        make_image(image.below, folder)
    raw = folder / (image.name if image.format == "raw" else f"{image.name}.raw")
    chance = random.Random(f"{image.name}/{image.size}")
    steps: list[str] = []
    at = 0
    with raw.open("wb") as file:
        file.truncate(image.size)
        for length, what in image.runs:
            if what != "hole":
                content = _content(chance, length, what)
                file.seek(at)
                file.write(content)
                steps += ["-c", _step(chance, at, length, what)]
            at += length
        file.flush()
        os.fsync(file.fileno())
    if image.format == "raw":
        return
    if image.below is None:
        _run(folder, "convert", "-O", "qcow2", "-o", f"cluster_size={image.cluster}", raw.name, image.name)
    else:
        below = ["-b", image.below.name, "-F", image.below.format]
        size = str(-(-image.size // 512) * 512)
        _run(folder, "create", "-q", "-f", "qcow2", "-o", f"cluster_size={image.cluster}", *below, image.name, size)
        if steps:
            command = ["qemu-io", "-f", "qcow2", *steps, image.name]
            subprocess.run(command, cwd=folder, check=True, capture_output=True)
    raw.unlink()


def _content(chance: random.Random, length: int, what: str) -> bytes:
    if what == "zero":
        return bytes(length)
    if what == "noise":
        return chance.randbytes(length)
    start = chance.randrange(len(_TEXT))
    return (_TEXT[start:] + _TEXT * (length // len(_TEXT) + 1))[:length]


def _step(chance: random.Random, at: int, length: int, what: str) -> str:
    """For qemu-io; the last piece may be no whole sector, and is left out then."""
    length = max(512, length // 512 * 512)
    at = at // 512 * 512
    return f"write -z {at} {length}" if what == "zero" else f"write -P {chance.randrange(1, 256)} {at} {length}"


def _run(folder: Path, *words: str) -> str:
    return subprocess.run(["qemu-img", *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def script(case: Case) -> str:
    """The two copies, for a shell."""
    names = {"ours": "mpconv", "theirs": "qemu-img"}
    words = {folder: [name, *case.command(folder)[len(_PROGRAMS[folder]) :]] for folder, name in names.items()}
    images = [*case.sources, *([case.backing] if case.backing else [])]
    lines = [f"(cd {folder}; {shlex.join(command)})" for folder, command in words.items()]
    return "\n".join([*(f"# {image}" for image in images), *lines])


def differences(case: Case, folder: Path) -> list[str]:
    """What mpconv makes otherwise than qemu-img, in words."""
    for image in case.sources:
        make_image(image, folder)
    if case.backing is not None and case.sources[0].below != case.backing:
        make_image(case.backing, folder)
    outcomes = {}
    for program in _PROGRAMS:
        (folder / program).mkdir()
        outcomes[program] = subprocess.run(
            case.command(program), cwd=folder / program, capture_output=True, text=True, check=False, timeout=100
        )
    ours, theirs = outcomes["ours"], outcomes["theirs"]
    if ours.returncode != theirs.returncode:
        return [f"exit codes {ours.returncode} and {theirs.returncode}: {ours.stderr}{theirs.stderr}"]
    lines = [line for line in ours.stderr.splitlines() if "warning" not in line]
    if ours.returncode:
        return [] if len(lines) == 1 else [f"words: {ours.stderr}"]
    size = None if case.backing is None else case.backing.size
    sparse = case.words[case.words.index("-S") + 1] if "-S" in case.words else "4k"
    told_apart = _SPARSE_BYTES[sparse] if case.options.get("extended_l2") == "on" else 0
    return [f"words: {line}" for line in lines] + judged(
        folder / "ours", folder / "theirs", case.data_file, size, sparse_size=told_apart
    )


def judged(
    ours: Path,
    theirs: Path,
    data_file: str | None = None,
    backing_size: int | None = None,
    *,
    sparse_size: int = 0,
) -> list[str]:
    """What differs between the two folders' images.

    Zeros past the end of a backing file need not be stored. qemu-img leaves out those that it was told of, and stores
    those that it read; mpconv leaves out both, but with -c in version 2, which has no zero clusters, stores both.
    """
    for name in (TARGET, *([data_file] if data_file else [])):
        for path in (ours / name, theirs / name):
            _sync(path)
    check = subprocess.run(
        ["qemu-img", "check", "--output", "json", TARGET], cwd=ours, capture_output=True, text=True, check=False
    )
    found = [] if check.returncode == 0 else [f"check: {check.returncode} {check.stdout}{check.stderr}"]
    if data_file:
        # QEMU looks for a data file in the working directory.
        copies = [folder / "copy.raw" for folder in (ours, theirs)]
        for copy in copies:
            _run(copy.parent, "convert", "-f", "qcow2", "-O", "raw", TARGET, copy.name)
        names = [("raw", copy) for copy in copies]
    else:
        names = [("qcow2", folder / TARGET) for folder in (ours, theirs)]
    (fmt, one), (_, other) = names
    compare = subprocess.run(
        ["qemu-img", "compare", "-f", fmt, "-F", fmt, str(one), str(other)], capture_output=True, text=True, check=False
    )
    found += [] if compare.returncode == 0 else [f"compare: {compare.stdout}{compare.stderr}"]
    if found:
        return found
    mapped = [_map(folder, backing_size) for folder in (ours, theirs)]
    found += [
        f"map: {one} and {other}"
        for one, other in _overlapping(*mapped)
        if [one[key] for key in _KINDS] != [other[key] for key in _KINDS]
        and not _tolerable(one, other, backing_size, sparse_size)
    ]
    told = [_info(folder) for folder in (ours, theirs)]
    found += [
        f"info: {key} {told[0].get(key)} and {told[1].get(key)}" for key in told[1] if told[0].get(key) != told[1][key]
    ]
    return found


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _map(folder: Path, backing_size: int | None) -> list[dict[str, Any]]:
    """Without offsets, nor holes in the file where clusters are; neighbours of one kind joined."""
    found: list[dict[str, Any]] = []
    for entry in json.loads(_run(folder, "map", "--output", "json", TARGET)):
        end = entry["start"] + entry["length"]
        cut = end if backing_size is None else min(max(entry["start"], backing_size), end)
        for start, length in ((entry["start"], cut - entry["start"]), (cut, end - cut)):
            kind = {key: entry[key] for key in _KINDS}
            kind["zero"] = not kind["data"]
            if start == cut and not kind["data"]:
                kind |= {"depth": 0, "present": False}
            if found and kind == {key: found[-1][key] for key in kind}:
                found[-1]["length"] += length
            elif length:
                found.append({"start": start, "length": length, **kind})
    return found


def _tolerable(ours: dict[str, Any], theirs: dict[str, Any], backing_size: int | None, sparse_size: int) -> bool:
    """Over a backing file, qemu-img may store more: it cuts what it reads inside of clusters, and then writes the two
    halves of one that is all zeros, and one of which only a part is the source's own. And where there are subclusters,
    it may be told of zeros without a whole block of -S at a multiple of it, which is what is looked for in the bytes.
    """
    start = max(ours["start"], theirs["start"])
    if backing_size is not None and ((theirs["present"] and theirs["depth"] == 0) or start >= backing_size):
        return True
    end = min(ours["start"] + ours["length"], theirs["start"] + theirs["length"])
    return bool(ours["data"]) and end - start < 2 * sparse_size


def _overlapping(
    first: list[dict[str, Any]], second: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Pairs of entries that have a byte in common."""
    for one in first:
        for other in second:
            if other["start"] < one["start"] + one["length"] and one["start"] < other["start"] + other["length"]:
                yield one, other


def _info(folder: Path) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(_run(folder, "info", "--output", "json", TARGET))
    return {key: value for key, value in told.items() if key not in ("filename", "actual-size")}
