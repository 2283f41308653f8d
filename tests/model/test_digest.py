"""How a digest is written, and what of it a lease carries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mpconv.model.digest import BLOCK, REGION, WIDTH, packed, regions, text
from tests.support.digests import block_digests, digest_of

DOCUMENT = Path(__file__).parents[2] / "docs" / "digests.md"


def test_the_text_is_of_the_size_and_the_sum():
    content = b"x" * BLOCK + bytes(BLOCK) + b"y"
    total = sum(block_digests(content).values()) % (1 << 128)
    assert text(len(content), total) == digest_of(content)
    assert text(len(content) + 1, total) != digest_of(content)
    assert len(text(0, 0)) == len("xxh3-64k:") + 32


def test_a_known_digest_stays_what_it_is():
    """Somebody may have written it down."""
    assert text(0, 0) == "xxh3-64k:10e45c7ce2292320743df94ee4c78a2a"
    assert digest_of(bytes(range(256)) * 1000) == "xxh3-64k:8652f4c9f7e28f700711124efad889bf"


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, 1, range(1)),
        (0, REGION, range(1)),
        (REGION - BLOCK, 2 * BLOCK, range(2)),
        (3 * REGION, 2 * REGION + 1, range(3, 6)),
        (REGION, 0, range(1, 1)),
    ],
)
def test_the_regions_of_a_range(start, length, expected):
    assert regions(start, length) == expected


def test_packed_sums_are_16_bytes_a_region_modulo_2_to_the_128():
    found = packed(REGION - BLOCK, 2 * BLOCK, {1: (1 << 128) + 5})
    assert found == bytes(WIDTH) + (5).to_bytes(WIDTH, "little")
    assert packed(0, 10 * REGION, {}) == b""


def test_the_program_in_the_document_computes_it(tmp_path):
    program = DOCUMENT.read_text().partition("```python\n")[2].partition("```")[0]
    content = b"\x01" * BLOCK + bytes(2 * BLOCK) + b"\x02" * 1024
    (tmp_path / "a.raw").write_bytes(content)
    ran = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.raw")], capture_output=True, text=True, check=True
    )
    assert ran.stdout == f"{digest_of(content)}\n"


def test_who_wants_no_digest_does_not_load_the_library():
    modules = (
        "mpconv.cli.commands.convert, mpconv.jobs.copy.convert, mpconv.workers.worker, mpconv.workers.allocating_copier"
    )
    program = f"import sys, {modules}; sys.exit('xxhash' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
