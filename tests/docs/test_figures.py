"""The README's figures are those of docs/benchmarks.md."""

from __future__ import annotations

import re

from tests.support.pages.files import ROOT
from tests.support.pages.plot import picture, recorded

ROW = re.compile(r"^\| [^|]+ \| ([\d.]+) s \| ([\d.]+) s \| (?:([\d.]+) s )?\|$", re.MULTILINE)
PROGRAMS = ("qemu-img", "mpconv", "mpconv -W")


def test_the_readme_says_what_was_measured():
    rows = recorded((ROOT / "docs/benchmarks.md").read_text())
    told = ROW.findall((ROOT / "README.md").read_text())
    assert len(told) == len(rows) == 11
    for row, figures in zip(rows, told, strict=True):
        for program, figure in zip(PROGRAMS, figures, strict=True):
            decimals = len(figure.partition(".")[2])
            measured = row.seconds.get(program)
            assert figure == ("" if measured is None else f"{measured:.{decimals}f}"), row.name


def test_of_a_row_that_stands_twice_the_first_counts():
    page = """
    nfs-iscsi, -t writeback (best of qemu-img: qemu-img -m 8 -W)
      setting                       seconds    min
      qemu-img -m 1                    2.75   2.71
      qemu-img -m 8 -W                 2.73   2.71
      mpconv                           1.67   1.60
      mpconv -W                        1.53   1.53

    nfs-iscsi, -t writeback (best of qemu-img: qemu-img -m 8 -W)
      qemu-img -m 8 -W                 9.99   2.71

    link-nfs3-iscsi, -t writeback (best of qemu-img: mpconv)
      mpconv                          18.22  18.21
"""
    [row] = recorded(page)
    assert row.seconds == {"qemu-img": 2.73, "mpconv": 1.67, "mpconv -W": 1.53}
    drawn = picture([row])
    assert drawn.count("<rect") == 1 + 3 + 3 and "NFS to iSCSI" in drawn and "1.53 s" in drawn
