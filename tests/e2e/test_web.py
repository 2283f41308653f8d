"""`--web`: the page, in headless Chromium."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.conftest import Lun, identical, make_image, mpconv
from tests.support.relay import Relay, relay
from tests.support.watching import Watched

MiB = 1 << 20
SIZE = 16 * MiB
SECONDS = 30_000
"""In milliseconds: what a page may take to show something."""
expect.set_options(timeout=SECONDS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A page on which no script fails and nothing is blocked; of a phone's width."""
    context = chromium.new_context(viewport={"width": 390, "height": 844})
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text) if "Policy" in message.text else None)
    yield opened
    context.close()
    assert not complaints


def done(page: Page) -> int:
    return int(page.locator(".job").first.get_attribute("data-done") or 0)


def moves(page: Page, beyond: int) -> int:
    """Wait until more is done: how much."""
    page.wait_for_function("(than) => Number(document.querySelector('.job')?.dataset.done) > than", arg=beyond)
    return done(page)


def pixels(page: Page) -> int:
    """How many different colours the map has, so that an empty one is told from one that is drawn."""
    script = """() => { const c = document.querySelector('canvas.map');
        const d = new Uint32Array(c.getContext('2d').getImageData(0, 0, c.width, c.height).data.buffer);
        return new Set(d).size; }"""
    return page.evaluate(script)


def fits(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_the_page_moves_while_a_copy_runs_and_says_that_it_has_ended(tmp_path: Path, page: Page):
    make_image(tmp_path / "a.raw", SIZE)
    with Watched(tmp_path, "convert", "-W", "-r", "2M", "--workers", "2", "--web", "0", "a.raw", "b.raw") as copy:
        page.goto(copy.urls[0])
        expect(page.locator("#link")).to_have_text("live")
        first = moves(page, 0)
        more = moves(page, first)
        assert 0 < first < more <= SIZE
        expect(page.locator(".job h2")).to_have_text("a.raw → b.raw")
        expect(page.locator(".state")).to_have_text("running")
        expect(page.locator("tbody tr")).to_have_count(2)
        assert "pid" in page.locator("tbody").inner_text()
        expect(page.locator("ol.events")).to_contain_text("copying")
        assert pixels(page) >= 3 and fits(page)
        page.set_viewport_size({"width": 1280, "height": 900})
        assert pixels(page) >= 3 and fits(page)
        expect(page.locator("#link")).to_have_text("the command has ended: finished")
        expect(page.locator(".state")).to_have_text("finished")
        assert done(page) == SIZE and page.title().startswith("100 %")
        code, said = copy.end()
    assert code == 0, said
    assert identical(tmp_path / "a.raw", tmp_path / "b.raw")


def test_it_says_that_the_copy_failed_and_why(tmp_path: Path, page: Page):
    """The disk is full: a file system of 8 MiB, which this process's namespace alone has mounted."""
    make_image(tmp_path / "a.raw", SIZE)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small], check=True)
    try:
        with Watched(tmp_path, "convert", "-S", "0", "-r", "3M", "--web", "0", "a.raw", "small/b.raw") as copy:
            page.goto(copy.urls[0])
            moves(page, 0)
            expect(page.locator("#link")).to_have_text("the command has ended: failed")
            expect(page.locator("#link")).to_have_class("bad")
            expect(page.locator(".state")).to_have_text("failed")
            expect(page.locator(".why")).to_contain_text("No space left on device")
            expect(page.locator("ol.events .alarm b").first).to_have_text("failed")
            assert page.title().startswith("failed") and fits(page)
            assert copy.end()[0] == 1
    finally:
        subprocess.run(["umount", small], check=True)


def test_it_says_that_nothing_is_heard_any_more_when_all_is_killed(tmp_path: Path, page: Page):
    make_image(tmp_path / "a.raw", SIZE)
    with Watched(tmp_path, "convert", "-r", "1M", "--web", "0", "a.raw", "b.raw") as copy:
        page.goto(copy.urls[0])
        moves(page, 0)
        copy.process.kill()
        expect(page.locator("#link")).to_contain_text("connection lost: the command was killed")


def test_ctrl_c_is_no_failure(tmp_path: Path, page: Page):
    make_image(tmp_path / "a.raw", SIZE)
    with Watched(tmp_path, "convert", "-r", "1M", "--web", "0", "a.raw", "b.raw") as copy:
        page.goto(copy.urls[0])
        moves(page, 0)
        copy.process.send_signal(signal.SIGINT)
        expect(page.locator("#link")).to_have_text("the command has ended: stopped")
        assert copy.end()[0] == 130


def test_a_deployment_shows_the_target_that_failed(tmp_path: Path, page: Page):
    make_image(tmp_path / "a.raw", SIZE)
    with Watched(tmp_path, "deploy", "-r", "3M", "--web", "0", "a.raw", "b.raw", "absent/c.raw", "d.raw") as copy:
        page.goto(copy.urls[0])
        expect(page.locator("dl")).to_contain_text("1 of 3")
        expect(page.locator("ol.events")).to_contain_text("absent/c.raw")
        expect(page.locator("#link")).to_have_text("the command has ended: finished")
        assert copy.end()[0] == 2


def test_names_are_text_and_not_markup(tmp_path: Path, page: Page):
    name = "<img src=x onerror=document.title='owned'>.raw"
    make_image(tmp_path / name, SIZE)
    with Watched(tmp_path, "convert", "-r", "4M", "--web", "0", name, "b.raw") as copy:
        page.goto(copy.urls[0])
        moves(page, 0)
        expect(page.locator(".job h2")).to_have_text(f"{name} → b.raw")
        assert page.locator("img").count() == 0 and page.title() != "owned"


@pytest.fixture
def slow(lun: Callable[..., Lun]) -> Iterator[tuple[str, Path, Relay]]:
    """A LUN of SIZE bytes, what is stored of it, and the relay that lets no more than 2 MiB a second out of it."""
    made = lun(SIZE)
    make_image(made.backing, SIZE)
    host, port = re.findall(r"//([^:/]+):(\d+)/", made.url)[0]
    with relay(host, int(port)) as link:
        link.slow(rate=2 * MiB)
        yield made.url.replace(f":{port}/", f":{link.port}/"), made.backing, link


def test_a_comparison_moves_and_says_that_the_images_are_equal(tmp_path: Path, page: Page, slow):
    url, backing, _ = slow
    with Watched(tmp_path, "compare", "--workers", "2", "--web", "0", backing, url) as comparing:
        page.goto(comparing.urls[0])
        assert 0 < moves(page, 0) < SIZE
        expect(page.locator(".state")).to_have_text("running")
        expect(page.locator(".job h2")).to_have_text(f"{backing} and {url}")
        expect(page.locator("th:visible")).to_have_text(["worker", "state", "rate", "leases", "retries"])
        expect(page.locator("ol.events")).to_contain_text("comparing")
        expect(page.locator("dl")).not_to_contain_text("durable")
        expect(page.locator("dl")).not_to_contain_text("written")
        assert pixels(page) >= 3 and fits(page)
        page.set_viewport_size({"width": 1280, "height": 900})
        expect(page.locator("th:visible")).to_have_text(["worker", "state", "rate", "compared", "leases", "retries"])
        expect(page.locator("#link")).to_have_text("the command has ended: finished")
        expect(page.locator(".state")).to_have_text("finished: equal")
        expect(page.locator(".why.good")).to_have_text("Images are identical.")
        assert done(page) == SIZE and fits(page)
        assert comparing.end()[0] == 0


def test_a_difference_is_what_became_of_a_comparison(tmp_path: Path, page: Page, slow):
    url, backing, link = slow
    other = tmp_path / "other.raw"
    other.write_bytes(backing.read_bytes())
    with other.open("r+b") as file:
        file.seek(8 * MiB + 700)
        file.write(b"something else")
    with Watched(tmp_path, "compare", "--workers", "1", "-m", "1", "--web", "0", other, url) as comparing:
        page.goto(comparing.urls[0])
        moves(page, 0)
        link.slow()
        expect(page.locator("#link")).to_have_text("the command has ended: the images differ")
        expect(page.locator("#link")).to_have_class("bad")
        expect(page.locator(".state")).to_have_text("finished: different")
        expect(page.locator(".why")).to_have_text(f"Content mismatch at offset {8 * MiB + 512}!")
        expect(page.locator("ol.events .alarm b").first).to_have_text("different")
        assert page.title().startswith("different") and done(page) < SIZE
        assert comparing.end()[0] == 1


def test_digests_of_several_images_are_on_one_page_from_the_first_to_the_last(tmp_path: Path, page: Page, slow):
    """One of them cannot be read, and one is named twice."""
    url, backing, link = slow
    words = ["checksum", "--workers", "2", "--web", "0", "--metrics", "0", url, "absent.raw", url, backing]
    with Watched(tmp_path, *words, count=2) as reading:
        [where] = [found for found in reading.urls if found.endswith("/")]
        page.goto(where)
        expect(page.locator(".job")).to_have_count(4)
        expect(page.locator(".state")).to_have_text(["running: read", "waiting", "waiting", "waiting"])
        expect(page.locator(".job h2")).to_have_text([url, "absent.raw", url, str(backing)])
        expect(page.locator(".legend").first).to_contain_text("data, to read")
        moves(page, 0)
        link.slow()
        expect(page.locator("#link")).to_have_text("the command has ended: 1 of 4 did not finish")
        expect(page.locator(".state")).to_have_text(["finished", "failed", "finished", "finished"])
        expect(page.locator(".failed .why")).to_contain_text("No such file or directory")
        digests = page.locator("dl .wide dd").all_inner_texts()
        assert len(digests) == 3 and len(set(digests)) == 1 and fits(page)
        assert done(page) == SIZE
        out, err = reading.process.communicate(timeout=60)
    assert reading.process.returncode == 1 and len(err.splitlines()) == 1
    assert [line.split()[0] for line in out.splitlines()] == digests


def get(url: str, *, host: str | None = None, method: str = "GET") -> int:
    """The answer's code."""
    request = urllib.request.Request(url, method=method, headers={"Host": host} if host else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as refused:
        return refused.code


def test_on_another_address_the_token_is_needed(tmp_path: Path, page: Page):
    make_image(tmp_path / "a.raw", SIZE)
    with Watched(tmp_path, "convert", "-q", "-r", "3M", "--web", "0.0.0.0:0", "a.raw", "b.raw") as copy:
        [url] = copy.urls
        found = re.fullmatch(rf"http://{re.escape(socket.gethostname())}:(\d+)/\?token=([\w-]{{24}})", url)
        assert found, url
        here, token = f"http://127.0.0.1:{found[1]}", found[2]
        for path in (
            "/",
            "/events",
            f"/?token={token[:-1]}",
            "/?token=",
            f"/events?token={token}x",
            "/?token=%ff",
            "/other",
        ):
            assert get(here + path) in {403, 404}, path
        assert get(f"{here}/?token={token}") == 200
        page.goto(f"{here}/?token={token}")
        moves(page, 0)
        assert get(here + "/events") == 403
        code, said = copy.end()
    assert code == 0 and said.count(token) == 1


def test_on_loopback_only_its_own_names_are_answered_and_only_get(tmp_path: Path):
    """A name of somebody else's that leads to 127.0.0.1 would have the page read by somebody else's scripts."""
    make_image(tmp_path / "a.raw", SIZE)
    with Watched(tmp_path, "convert", "-r", "3M", "--web", "0", "a.raw", "b.raw") as copy:
        url = copy.urls[0]
        port = url.rstrip("/").rpartition(":")[2]
        assert [get(url, host=host) for host in (f"localhost:{port}", "evil.example", f"evil.example:{port}")] == [
            200, 403, 403,
        ]  # fmt: skip
        assert [get(url, method=method) for method in ("POST", "PUT", "DELETE", "HEAD")] == [405] * 4
        assert [get(url + path) for path in ("favicon.ico", "../etc/passwd", "metrics")] == [404] * 3


def test_a_client_that_reads_nothing_and_one_that_talks_nonsense_hold_nothing_up(tmp_path: Path):
    make_image(tmp_path / "a.raw", SIZE)
    with Watched(tmp_path, "convert", "-r", "6M", "--web", "0", "a.raw", "b.raw") as copy:
        port = int(copy.urls[0].rstrip("/").rpartition(":")[2])
        deaf = socket.create_connection(("127.0.0.1", port))
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        deaf.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        mad = socket.create_connection(("127.0.0.1", port))
        mad.sendall(b"\x00\xff nonsense \r\n\r\n" * 20)
        with socket.create_connection(("127.0.0.1", port)) as gone:
            gone.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert gone.recv(15) == b"HTTP/1.1 200 OK"
        code, said = copy.end()
        deaf.close()
        mad.close()
    assert (code, said.splitlines()[1:]) == (0, [])
    assert identical(tmp_path / "a.raw", tmp_path / "b.raw")


def test_both_at_once_and_the_same_facts(tmp_path: Path):
    make_image(tmp_path / "a.raw", SIZE)
    words = ["convert", "-r", "3M", "--web", "0", "--metrics", "0", "a.raw", "b.raw"]
    with Watched(tmp_path, *words, count=2) as copy:
        [page] = [url for url in copy.urls if url.endswith("/")]
        with urllib.request.urlopen(f"{page}events", timeout=10) as events:
            told = [json.loads(line[6:]) for line in events if line.startswith(b'data: {"name')]
        assert told[-1]["state"] == "finished" and told[-1]["done"] == SIZE
        assert [job["done"] for job in told] == sorted(job["done"] for job in told)
        assert copy.end()[0] == 0


def test_a_port_that_is_taken_is_an_error_in_one_line(tmp_path: Path):
    make_image(tmp_path / "a.raw", MiB)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = mpconv("convert", "--web", port, "a.raw", "b.raw", cwd=tmp_path)
    assert found.returncode == 1 and len(found.stderr.splitlines()) == 1
    assert f"--web: cannot listen on 127.0.0.1:{port}: Address already in use" in found.stderr


PLAN = """
[limits]
jobs = 2
[defaults]
oob_writes = true
rate_limit = "4M"
retries = 0
[[job]]
name = "alpha"
source = "a.raw"
target = "alpha.raw"
[[job]]
name = "beta"
source = "a.raw"
target = "beta.raw"
rate_limit = "3M"
[[job]]
name = "gamma"
source = "a.raw"
target = "small/gamma.raw"
sparse_size = "0"
"""


def test_a_fan_out_shows_each_of_its_jobs(tmp_path: Path, page: Page):
    """And so does its journal, while it runs and afterwards."""
    make_image(tmp_path / "a.raw", SIZE)
    (tmp_path / "plan.toml").write_text(PLAN)
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", small], check=True)
    try:
        words = ["fanout", "--workers", "2", "--web", "0", "--metrics", "0", "--journal", "j", "plan.toml"]
        with Watched(tmp_path, *words, count=2) as run:
            [url] = [url for url in run.urls if url.endswith("/")]
            page.goto(url)
            expect(page.locator(".job")).to_have_count(3)
            expect(page.locator(".state")).to_have_text(["running", "running", "waiting"])
            expect(page.locator(".job h2").first).to_have_text("a.raw → alpha.raw")
            expect(page.locator(".job").first.locator("tbody")).to_contain_text("pid")
            assert fits(page)
            expect(page.locator("#link")).to_have_text("the command has ended: 1 of 3 did not finish")
            expect(page.locator(".state")).to_have_text(["finished", "finished", "failed"])
            expect(page.locator("#sum")).to_contain_text("3 jobs: 2 finished, 1 failed; ")
            expect(page.locator(".job.failed .why")).to_contain_text("No space left on device")
            assert run.end()[0] == 2
    finally:
        subprocess.run(["umount", small], check=True)
    for name in ("alpha", "beta"):
        assert identical(tmp_path / "a.raw", tmp_path / f"{name}.raw")
    with Watched(tmp_path, "status", "--web", "0", "j") as status:
        page.goto(status.urls[0])
        expect(page.locator(".state")).to_have_text(["finished", "finished", "failed"])
