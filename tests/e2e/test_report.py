"""`mpconv report` and `mpconv status --web`: what journals tell, in headless Chromium."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.conftest import identical, make_image, mpconv
from tests.e2e.test_resume import Journaled
from tests.e2e.test_web import chromium, fits, page, pixels
from tests.support.watching import Watched

__all__ = ["chromium", "page"]

MiB = 1 << 20
SIZE = 32 * MiB


@pytest.fixture
def killed(tmp_path: Path) -> Path:
    """A directory with the journal `j.db` of a copy that was killed on its way."""
    make_image(tmp_path / "a.raw", SIZE)
    copy = Journaled(tmp_path, "-W", "-r", "4M", "--digest", "--verify", "a.raw", "b.raw")
    copy.until_durable(0.2)
    copy.kill()
    return tmp_path


def facts(directory: Path) -> dict:
    told = mpconv("report", "--json", "j.db", cwd=directory)
    assert told.returncode == 0, told.stderr
    [job] = json.loads(told.stdout)["jobs"]
    return job


def test_a_report_needs_nothing_else_and_tells_what_the_journal_has(killed: Path, page: Page):
    job = facts(killed)
    assert (job["state"], job["go_on"]) == ("killed", "mpconv resume j.db")
    assert 0 < job["done"] < SIZE == job["size"] and {"s", "."} <= set(job["map"]["marks"])
    assert "d" in job["map"]["kinds"] and job["timeline"][-1][2] > 0
    assert mpconv("resume", "-q", "-r", "0", "j.db", cwd=killed).returncode == 0
    assert identical(killed / "a.raw", killed / "b.raw")
    done = mpconv("report", "j.db", "-o", "r.html", cwd=killed)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((killed / "r.html").as_uri())
    expect(page.locator(".state")).to_have_text("finished")
    digest = mpconv("checksum", "a.raw", cwd=killed).stdout.split()[0]
    expect(page.locator("dl")).to_contain_text(digest)
    expect(page.locator("dl")).to_contain_text("32.0 MiB of 32.0 MiB")
    expect(page.locator("ol.events b")).to_have_text(["began", "resumed", "verified", "digest", "finished"])
    assert set(facts(killed)["map"]["marks"]) == {"v"}
    assert pixels(page) >= 2 and fits(page)
    page.set_viewport_size({"width": 1280, "height": 900})
    assert pixels(page) >= 2 and fits(page)
    assert {re.match(r"[a-z]+:", url)[0] for url in asked} <= {"file:", "data:"}


def test_faults_and_what_was_done_about_them_are_told(tmp_path: Path, page: Page):
    make_image(tmp_path / "a.raw", SIZE)
    copy = Journaled(tmp_path, "-W", "-r", "3M", "--workers", "2", "a.raw", "b.raw")
    copy.until_durable(0.1)
    workers = subprocess.run(
        ["ps", "-o", "pid=,ppid=", "-g", str(copy.process.pid)], capture_output=True, text=True, check=True
    )
    parents = {int(child): int(parent) for child, parent in map(str.split, workers.stdout.splitlines())}
    victim = next(pid for pid, parent in parents.items() if parent in parents and parent != copy.process.pid)
    subprocess.run(["kill", "-9", str(victim)], check=True)
    assert copy.process.wait(timeout=60) == 0
    assert identical(tmp_path / "a.raw", tmp_path / "b.raw")
    assert mpconv("report", "j.db", "-o", "r.html", cwd=tmp_path).returncode == 0
    page.goto((tmp_path / "r.html").as_uri())
    expect(page.locator("ol.events .alarm").first).to_contain_text(
        f"a worker process (pid {victim}) ended (signal 9): its work is done again by others"
    )


def test_markup_in_names_is_text_in_the_report(tmp_path: Path, page: Page):
    name = "<script>document.title='owned'<\u2028>.raw"
    make_image(tmp_path / name, MiB)
    assert mpconv("convert", "--journal", "j.db", name, "b.raw", cwd=tmp_path).returncode == 0
    assert mpconv("report", "j.db", "-o", "r.html", cwd=tmp_path).returncode == 0
    page.goto((tmp_path / "r.html").as_uri())
    expect(page.locator(".job h2")).to_contain_text("<script>document.title='owned'<")
    assert "owned" in page.title() and page.title() != "owned"


def test_control_characters_in_names_are_escapes_in_the_report(tmp_path: Path, page: Page):
    name = "a\x1b[31m\n\u202eb.raw"
    make_image(tmp_path / name, MiB)
    assert mpconv("convert", "--journal", "j.db", name, "c.raw", cwd=tmp_path).returncode == 0
    assert mpconv("report", "j.db", "-o", "r.html", cwd=tmp_path).returncode == 0
    text = (tmp_path / "r.html").read_text()
    assert "\x1b" not in text and "\u202e" not in text.partition("</title>")[0]
    page.goto((tmp_path / "r.html").as_uri())
    expect(page.locator("body")).to_contain_text("a\\x1b[31m\\n\\u202eb.raw")
    assert "a\\x1b[31m\\n\\u202eb.raw" in page.title()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["j.db"], "-o FILE is needed, where the report is to be written; or --json"),
        (["j.db", "-o", "j.db"], "'j.db' is the journal itself: choose another file for the report"),
        (["j.db", "-o", "absent/r.html"], "the report 'absent/r.html': No such file or directory"),
        (["absent.db", "-o", "r.html"], "error while opening the journal 'absent.db': No such file or directory"),
        (["a.raw", "-o", "r.html"], "'a.raw' is not a journal of mpconv"),
        ([], "Expecting one journal"),
    ],
)
def test_what_cannot_be_reported_is_told_in_a_line(tmp_path: Path, words, told):
    make_image(tmp_path / "a.raw", MiB)
    assert mpconv("convert", "--journal", "j.db", "a.raw", "b.raw", cwd=tmp_path).returncode == 0
    before = (tmp_path / "j.db").read_bytes()
    done = mpconv("report", *words, cwd=tmp_path)
    assert done.returncode == 1 and told in done.stderr and len(done.stderr.splitlines()) == 1
    assert (tmp_path / "j.db").read_bytes() == before


def test_journals_are_watched_while_their_copies_run(killed: Path, page: Page):
    with Watched(killed, "status", "--web", "0", "j.db") as status:
        page.goto(status.urls[0])
        expect(page.locator(".state")).to_have_text("killed")
        expect(page.locator("dl")).to_contain_text("mpconv resume j.db")
        going_on = subprocess.Popen(
            [sys.executable, "-m", "mpconv", "resume", "-r", "6M", "j.db"],
            cwd=killed,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        expect(page.locator(".state")).to_have_text("running")
        expect(page.locator(".state")).to_have_text("finished")
        assert going_on.wait(timeout=60) == 0
        status.process.send_signal(signal.SIGINT)
        expect(page.locator("#link")).to_contain_text("mpconv status has ended")
        code, said = status.end()
    assert code == 0 and len(said.splitlines()) == 1
