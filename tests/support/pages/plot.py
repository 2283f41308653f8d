"""The recorded figures of docs/benchmarks.md -> one picture of them, as SVG. Pure."""

from __future__ import annotations

import re
from html import escape

import msgspec

_ROWS = {
    "nfs-iscsi": "NFS to iSCSI",
    "link-nfs-iscsi": "the same over 1 Gbit/s",
    "file-iscsi": "local file to iSCSI",
    "iscsi-nfs": "iSCSI to NFS, thin LUN",
    "full-iscsi-nfs": "iSCSI to NFS, full LUN",
    "compare": "compare NFS with iSCSI",
    "qcow2-nfs-iscsi": "qcow2 on NFS to iSCSI",
    "nfs-iscsi-qcow2": "NFS to qcow2 on iSCSI",
    "deploy-4": "NFS to four LUNs",
    "compress-zlib": "to qcow2, -c, zlib",
    "compress-zstd": "to qcow2, -c, zstd",
}
"""Rows of the bench, and what they are called in the picture."""
_HEAD = re.compile(r"^    ([\w-]+), -t writeback \(best of qemu-img: (qemu-img.*)\)$")
_FIGURES = re.compile(r"^      ((?:qemu-img|mpconv)\S*(?: -\S+| \d+)*) +(\d+\.\d+) ")
_COLOURS = {"qemu-img": "#8a8f98", "mpconv": "#2f6fdb", "mpconv -W": "#1f9d6b"}
_LEFT, _UNIT, _BAR, _GAP, _TOP = 200, 420, 13, 15, 64
_WIDTH = _LEFT + _UNIT + 110


class Row(msgspec.Struct, frozen=True):
    """Seconds of one row of the bench: qemu-img's best, mpconv in order and out of order, where it has them."""

    name: str
    seconds: dict[str, float]


def recorded(page: str) -> list[Row]:
    """What the page's tables say; of a row that stands there twice, the first."""
    found: dict[str, dict[str, float]] = {}
    name = best = ""
    for line in page.splitlines():
        head, figures = _HEAD.match(line), _FIGURES.match(line)
        if head:
            name, best = ("" if head[1] in found else head[1]), head[2]
            found.setdefault(head[1], {})
        elif figures and name:
            program = "qemu-img" if figures[1] == best else figures[1].replace(" -c", "")
            if program in _COLOURS:
                found[name].setdefault(program, float(figures[2]))
    return [Row(name, found[name]) for name in _ROWS if "qemu-img" in found.get(name, {})]


def picture(rows: list[Row]) -> str:
    """Bars as long as the time, as a part of qemu-img's best; the seconds stand behind them."""
    parts = []
    y = _TOP
    for row in rows:
        height = _BAR * len(row.seconds)
        label = escape(_ROWS[row.name])
        parts.append(f'<text x="{_LEFT - 10}" y="{y + height / 2 + 4:.0f}" text-anchor="end">{label}</text>')
        for program, seconds in sorted(row.seconds.items(), key=lambda one: list(_COLOURS).index(one[0])):
            width = _UNIT * seconds / row.seconds["qemu-img"]
            parts.append(
                f'<rect x="{_LEFT}" y="{y}" width="{width:.1f}" height="{_BAR - 2}" fill="{_COLOURS[program]}"/>'
                f'<text class="s" x="{_LEFT + width + 5:.1f}" y="{y + _BAR - 4}">{seconds:.2f} s</text>'
            )
            y += _BAR
        y += _GAP
    legend, x = [], _LEFT
    for program, colour in _COLOURS.items():
        text = "qemu-img, its best setting" if program == "qemu-img" else program
        legend.append(
            f'<rect x="{x}" y="36" width="11" height="11" fill="{colour}"/><text x="{x + 16}" y="46">{text}</text>'
        )
        x += 200 if program == "qemu-img" else 90
    size = f'width="{_WIDTH}" height="{y}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" {size} role="img">\n'
        "<title>Time of mpconv beside the best setting of qemu-img</title>\n"
        "<style>text{font:13px sans-serif;fill:#222}.s{font-size:11px}.t{font-weight:bold}</style>\n"
        f'<rect {size} fill="#fff"/>\n'
        f'<text class="t" x="{_LEFT}" y="22">Time, as a part of qemu-img\'s best: shorter is better</text>\n'
        + "\n".join([*legend, *parts])
        + "\n</svg>\n"
    )
