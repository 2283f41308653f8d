"""docs/ is built, strictly: `scripts/docs` does the same. And links that nobody builds lead somewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"\]\((?!https?://|#)([^)#\s]+)")
READ_IN_THE_REPOSITORY = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "tests/README.md")),
    *sorted(DOCS.rglob("*.md")),
]


def build(source: Path, target: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", str(source), str(target)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_pages_are_built_without_a_warning_and_all_are_found(tmp_path):
    done = build(DOCS, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for page in DOCS.rglob("*.md"):
        assert (tmp_path / page.relative_to(DOCS)).with_suffix(".html").is_file()
    protocol = (tmp_path / "protocol.html").read_text()
    assert "The crash table" in protocol
    assert 'href="protocol.html"' in (tmp_path / "journal.html").read_text()


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ("[x](nowhere.md)", "'myst' cross-reference target not found: 'nowhere.md'"),
        ("[x](journal.md#no-such-heading)", "no-such-heading"),
        ("```{toctree}\nmissing\n```", "missing"),
    ],
)
def test_what_leads_nowhere_is_an_error(tmp_path, added, said):
    source = tmp_path / "docs"
    source.mkdir()
    for name in ("conf.py", "journal.md"):
        shutil.copy(DOCS / name, source)
    (source / "index.md").write_text(f"# Index\n\n{added}\n\n```{{toctree}}\njournal\n```\n")
    done = build(source, tmp_path / "html")
    assert done.returncode == 1
    assert said in done.stderr


@pytest.mark.parametrize("page", READ_IN_THE_REPOSITORY, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_also_where_the_page_lies(page):
    links = LINK.findall(page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "tests/README.md"])
def test_files_that_are_named_are_there(page):
    text = (ROOT / page).read_text()
    named = re.findall(r"`((?:[\w.]+/)+[\w.-]*|\w+\.py)`", text)
    assert [
        name for name in named if not any((near / name).exists() for near in (ROOT, ROOT / "tests", ROOT / "mpconv"))
    ] == []
