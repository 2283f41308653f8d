"""What the bench compares: rows of copies, and the settings of both programs in each. Pure."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field

QCOW2_COMPRESSED = "compressed.qcow2"
"""The format qcow2 with compressed clusters. Formats are also the ends of files' names."""


@dataclass(frozen=True)
class Setting:
    """One program with its options."""

    program: str
    options: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join((self.program, *self.options))

    @property
    def is_qemu(self) -> bool:
        return self.program == "qemu-img"


@dataclass(frozen=True)
class Row:
    """One copy, or comparison.

    `image`: what is copied: template, zeros, sparse or programs. `source`: nfs, lun or file; `target`: one of these or
    null. The formats: raw, qcow2 or QCOW2_COMPRESSED. `link`: behind which, limited or distant; the NFS server has what
    it `offers`. `thin`: the source LUN has holes. `compression`: of a target that is compressed, zlib or zstd.
    `copies`: to so many LUNs, by as many qemu-img that are started together.
    """

    image: str = "template"
    source: str = "nfs"
    source_format: str = "raw"
    target: str = "lun"
    target_format: str = "raw"
    work: str = "convert"
    link: str = ""
    offers: dict[str, str] = field(default_factory=dict)
    thin: bool = True
    copies: int = 1
    compression: str | None = None

    @property
    def target_name(self) -> str:
        """Of a file."""
        return f"{'back' if self.target == 'nfs' else 'new'}.{self.target_format}"

    @property
    def counts_what_is_left(self) -> bool:
        """Whether it tells what the target takes up afterwards."""
        return self.image in ("zeros", "sparse") and self.target != "null"


ROWS: dict[str, Row] = {
    "nfs-iscsi": Row(),
    "nfs-null": Row(target="null"),
    "file-iscsi": Row(source="file"),
    "iscsi-nfs": Row(source="lun", target="nfs"),
    "full-iscsi-nfs": Row(source="lun", target="nfs", thin=False),
    "link-nfs-iscsi": Row(link="limited"),
    "link-nfs3-iscsi": Row(link="limited", offers={"protocols": "3"}),
    "link-nfs41-iscsi": Row(link="limited", offers={"minor_versions": "0,1"}),
    "far-nfs-iscsi": Row(link="distant"),
    "zero-iscsi": Row(image="zeros", source="file"),
    "sparse-8T": Row(image="sparse", source="file", target="file"),
    "sparse-8T-null": Row(image="sparse", source="file", target="null"),
    "compare": Row(work="compare"),
    "qcow2-nfs-iscsi": Row(source_format="qcow2"),
    "nfs-iscsi-qcow2": Row(target_format="qcow2"),
    "compressed-nfs-iscsi": Row(image="programs", source_format=QCOW2_COMPRESSED),
    "deploy-4": Row(work="deploy", copies=4),
    "compress-zlib": Row(
        image="programs", source="file", target="file", target_format=QCOW2_COMPRESSED, compression="zlib"
    ),
    "compress-zstd": Row(
        image="programs", source="file", target="file", target_format=QCOW2_COMPRESSED, compression="zstd"
    ),
}
USUAL = ("nfs-iscsi", "nfs-null", "file-iscsi", "iscsi-nfs", "full-iscsi-nfs")
MORE = tuple(name for name in ROWS if name not in USUAL)


def settings(row: Row, workers: list[str], requests: list[str]) -> list[Setting]:
    """Everything that is compared in a row. `workers` and `requests`: of mpconv, numbers or "default"."""
    if row.compression is not None:
        made = [("qemu-img", "-c -m 16 -W"), ("qemu-img", "-c -m 8"), ("mpconv", "-c -W"), ("mpconv", "-c")]
        return [Setting(program, tuple(options.split())) for program, options in made]
    qemu, orders = ["-m 1", "-m 8", "-m 8 -W", "-m 16 -W"], ["", "-W"]
    if row.work == "deploy":
        qemu = ["-m 8", "-m 8 -W"]
    if row.work == "compare":  # takes no order, and qemu-img's no -m
        qemu, orders = [""], [""]
    numbers = [f"{one} {other}" for one in _given("--workers", workers) for other in _given("-m", requests)]
    own = [f"{order} {number}" for order in orders for number in numbers]
    return [Setting("qemu-img", tuple(options.split())) for options in qemu] + [
        Setting("mpconv", tuple(options.split())) for options in own
    ]


def _given(option: str, numbers: list[str]) -> list[str]:
    return ["" if number == "default" else f"{option} {number}" for number in numbers]


def command(row: Row, setting: Setting, cache: str, source: str, target: str) -> list[str]:
    """All but the program. `target`: bytes, if it is null: qemu-img needs the right size."""
    if row.work == "compare":
        return ["compare", *setting.options, "-T", cache, "-f", "raw", "-F", "raw", source, target]
    if row.work == "deploy" and not setting.is_qemu:
        return ["deploy", "-f", "raw", *setting.options, "-t", cache, "-n", source, target]
    fmt = "raw" if row.source_format == "raw" else "qcow2"
    return ["convert", "-f", fmt, *setting.options, "-t", cache, source, *_target(row, setting, target)]


def together(commands: list[list[str]]) -> list[str]:
    """One command that starts all of these at once, and ends when they have ended; well only when all did."""
    each = " ".join(f'{shlex.join(one)} & pids="$pids $!";' for one in commands)
    return ["sh", "-c", f"{each} code=0; for pid in $pids; do wait $pid || code=1; done; exit $code"]


def _target(row: Row, setting: Setting, target: str) -> list[str]:
    if row.target == "null":
        if setting.is_qemu:
            return ["-n", "--target-image-opts", f"driver=raw,file.driver=null-co,file.size={target}"]
        return ["-O", "raw", "null:"]
    if row.target_format != "raw":
        kind = ["-o", f"compression_type={row.compression}"] if row.compression is not None else []
        return ["-O", "qcow2", *kind, target]
    return ["-n", target] if row.target == "lun" else [target]
