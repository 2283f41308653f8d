"""Sound qcow2 images in many shapes, made by qemu-img and qemu-io, to be changed afterwards."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

KiB, MiB = 1 << 10, 1 << 20
BASE = "base.raw"


@dataclass(frozen=True, slots=True)
class Shape:
    """`options`: what `-o` gets; `steps`: qemu-io's commands, before each of the `snapshots` and after the last one.

    `compressed`: the first bytes come by `convert -c`. `bitmap`: it has a persistent bitmap.
    """

    name: str
    size: int = MiB
    options: str = ""
    steps: tuple[tuple[str, ...], ...] = ()
    snapshots: tuple[str, ...] = ()
    backed: bool = False
    compressed: bool = False
    bitmap: bool = False

    @property
    def data_file(self) -> str | None:
        """Its name."""
        return f"{self.name}.data" if "data_file=" in self.options else None


USUAL = ("write -P 1 0 200k", "write -P 2 400k 64k", "write -z 256k 64k", "write -z 0 64k", "write -P 3 700k 100k")
LATER = ("write -P 4 64k 64k", "write -P 5 500k 70k", "write -z 400k 64k")
FEW = ("write -P 1 0 20k", "write -z 4k 4k", "write -P 2 100k 9k")
SHAPES = (
    Shape("plain", options="cluster_size=64k", steps=(USUAL,)),
    Shape("old", options="compat=0.10", steps=(USUAL,)),
    Shape("old-snapshots", options="compat=0.10,cluster_size=4k", steps=(USUAL, LATER), snapshots=("one",)),
    Shape("tiny-clusters", size=200 * KiB, options="cluster_size=512,refcount_bits=64", steps=(FEW,)),
    Shape("bits", size=300 * KiB, options="cluster_size=4k,refcount_bits=1", steps=(FEW,)),
    Shape("two-bits", size=300 * KiB, options="cluster_size=512,refcount_bits=2", steps=(FEW, FEW), snapshots=("a",)),
    Shape("nibbles", options="cluster_size=4k,refcount_bits=4", steps=(USUAL, LATER, FEW), snapshots=("one", "two")),
    Shape("bytes", options="cluster_size=4k,refcount_bits=8", steps=(USUAL, LATER), snapshots=("one",)),
    Shape("words", options="refcount_bits=32,lazy_refcounts=on", steps=(USUAL,)),
    Shape("snapshots", steps=(USUAL, LATER, LATER), snapshots=("one", "two")),
    Shape("shared", steps=(USUAL, ()), snapshots=("one",)),
    Shape("subclusters", options="extended_l2=on", steps=((*USUAL, "write -P 9 330k 3k"),)),
    Shape("small-subclusters", options="extended_l2=on,cluster_size=16k", steps=(USUAL, LATER), snapshots=("one",)),
    Shape("compressed", steps=(USUAL,), compressed=True),
    Shape("zstd", options="compression_type=zstd,cluster_size=16k", steps=(USUAL, LATER), snapshots=("one",),
          compressed=True),
    Shape("preallocated", options="preallocation=metadata", steps=(USUAL,)),
    Shape("reserved", options="preallocation=falloc,cluster_size=4k", steps=(USUAL, FEW), snapshots=("one",)),
    Shape("bitmaps", steps=(USUAL,), bitmap=True),
    Shape("large-clusters", size=6 * MiB, options="cluster_size=2M", steps=(("write -P 1 0 2M",),)),
    Shape("overlay", steps=(LATER,), backed=True),
    Shape("old-overlay", options="compat=0.10,cluster_size=4k", steps=(LATER,), backed=True),
    Shape("data-file", options="data_file=data-file.data", steps=(USUAL,)),
    Shape("raw-data-file", options="data_file=raw-data-file.data,data_file_raw=on", steps=(USUAL,)),
    Shape("empty", size=640 * KiB),
    Shape("odd", size=MiB - 512 * 3, options="cluster_size=8k", steps=(USUAL,)),
)  # fmt: skip


def build(shape: Shape, folder: Path) -> Path:
    """In a folder of its own inside `folder`."""
    place = folder / shape.name
    place.mkdir(parents=True)
    image = place / "image.qcow2"
    (place / BASE).write_bytes(b"base" * (shape.size // 8))

    def run(*words: object) -> None:
        subprocess.run([str(word) for word in words], cwd=place, check=True, capture_output=True)

    over = ["-b", BASE, "-F", "raw"] if shape.backed else []
    made = ["-o", shape.options] if shape.options else []
    if shape.compressed:
        text = b"".join(b"%08d, line by line;" % number for number in range(shape.size // 18))
        (place / "text.raw").write_bytes(text[: shape.size // 2].ljust(shape.size, b"\0"))
        run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", *made, "text.raw", image)
        (place / "text.raw").unlink()
    else:
        run("qemu-img", "create", "-q", "-f", "qcow2", *made, *over, image, shape.size)
    for number, steps in enumerate(shape.steps):
        if steps:
            run("qemu-io", "-f", "qcow2", *(word for step in steps for word in ("-c", step)), image)
        if number < len(shape.snapshots):
            run("qemu-img", "snapshot", "-q", "-c", shape.snapshots[number], image)
    if shape.bitmap:
        run("qemu-img", "bitmap", "--add", image, "bits")
    return image


def build_all(folder: Path) -> dict[str, Path]:
    """Each under its name. And what sources are filled from."""
    (folder / "noise").write_bytes(os.urandom(8 * MiB))
    return {shape.name: build(shape, folder) for shape in SHAPES}
