"""`--metrics`: what Prometheus is told of copies that run."""

from __future__ import annotations

import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import Lun, identical, make_image, mpconv
from tests.support.relay import relay
from tests.support.servers import IscsiServer
from tests.support.watching import Watched

MiB = 1 << 20
SIZE = 16 * MiB
Labels = frozenset[tuple[str, str]]


def scraped(url: str) -> dict[tuple[str, Labels], float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def of(found: dict[tuple[str, Labels], float], name: str) -> list[float]:
    return [value for (one, _), value in found.items() if one == name]


def until(url: str, name: str, least: float) -> dict[tuple[str, Labels], float]:
    """Scrape until a metric is so large."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        found = scraped(url)
        if sum(of(found, name)) >= least:
            return found
    raise AssertionError(f"{name} stays below {least}: {found}")


@pytest.mark.parametrize("command", ["convert", "deploy"])
def test_a_copy_that_runs_tells_how_far_it_is(tmp_path: Path, command: str):
    make_image(tmp_path / "a.raw", SIZE)
    with Watched(tmp_path, command, "-W", "-r", "4M", "--workers", "2", "--metrics", "0", "a.raw", "b.raw") as copy:
        first = until(copy.urls[0], "mpconv_job_written_bytes_total", 1)
        more = until(copy.urls[0], "mpconv_job_done_bytes", of(first, "mpconv_job_done_bytes")[0] + 1)
        for found in (first, more):
            assert of(found, "mpconv_job_size_bytes") == [SIZE]
            for what in ("read", "written"):
                [total] = of(found, f"mpconv_job_{what}_bytes_total")
                assert sum(of(found, f"mpconv_worker_{what}_bytes_total")) == total <= SIZE
            assert of(found, "mpconv_worker_up") == [1, 1]
            assert sum(of(found, "mpconv_worker_leases")) == of(found, "mpconv_job_leases")[0]
        running = frozenset({("job", "b.raw" if command == "convert" else "a.raw"), ("state", "running")})
        assert more["mpconv_job_state", running] == 1
        code, said = copy.end()
    assert code == 0, said
    assert identical(tmp_path / "a.raw", tmp_path / "b.raw")


def test_a_comparison_tells_how_far_it_is_and_what_it_found(tmp_path: Path, lun: Callable[..., Lun]):
    made = lun(SIZE)
    make_image(made.backing, SIZE)
    host, port = re.findall(r"//([^:/]+):(\d+)/", made.url)[0]
    with relay(host, int(port)) as link:
        link.slow(rate=2 * MiB)
        url = made.url.replace(f":{port}/", f":{link.port}/")
        with Watched(tmp_path, "compare", "--workers", "2", "--metrics", "0", made.backing, url) as comparing:
            found = until(comparing.urls[0], "mpconv_job_read_bytes_total", 1)
            assert of(found, "mpconv_job_size_bytes") == [SIZE]
            assert of(found, "mpconv_job_written_bytes_total") == of(found, "mpconv_job_durable_bytes") == [0]
            assert of(found, "mpconv_job_differs") == [0]
            running = frozenset({("job", f"{made.backing} and {url}"), ("state", "running")})
            assert found["mpconv_job_state", running] == 1
            link.slow()
            assert comparing.end()[0] == 0


def test_a_resumed_copy_begins_with_what_is_durable(tmp_path: Path):
    make_image(tmp_path / "a.raw", SIZE)
    with Watched(tmp_path, "convert", "-r", "2M", "--journal", "j", "--metrics", "0", "a.raw", "b.raw") as copy:
        until(copy.urls[0], "mpconv_job_durable_bytes", MiB)
        copy.process.terminate()
        assert copy.end()[0] == 143
    with Watched(tmp_path, "resume", "-r", "4M", "--metrics", "0", "j") as copy:
        found = until(copy.urls[0], "mpconv_job_durable_bytes", MiB)
        assert of(found, "mpconv_job_written_bytes_total")[0] < SIZE - MiB
        assert copy.end()[0] == 0
    assert identical(tmp_path / "a.raw", tmp_path / "b.raw")


def test_only_metrics_are_served_and_only_by_get(tmp_path: Path):
    make_image(tmp_path / "a.raw", SIZE)
    with Watched(tmp_path, "convert", "-r", "4M", "--metrics", "0", "a.raw", "b.raw") as copy:
        [url] = copy.urls
        for wrong, data, code in ((url, b"x", 405), (url.replace("/metrics", "/"), None, 404)):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(wrong, data=data, timeout=10)
            assert refused.value.code == code
        assert copy.end() == (0, "".join(copy.said)), "what clients do wrong is not told to who copies"


def test_a_password_is_in_no_metric(tmp_path: Path, iscsi: IscsiServer):
    make_image(tmp_path / "a.raw", SIZE)
    with (tmp_path / "lun.img").open("wb") as file:
        file.truncate(SIZE)
    iqn = iscsi.add_target("iqn.2026-11.org.mpconv:metrics", chap=("carol", "swordfish-1234"))
    url = iscsi.url(iqn, iscsi.add_lun(iqn, tmp_path / "lun.img")).replace("//", "//carol%swordfish-1234@")
    with Watched(tmp_path, "convert", "-n", "-r", "4M", "--metrics", "0", "a.raw", url) as copy:
        found = until(copy.urls[0], "mpconv_job_written_bytes_total", 1)
        assert "carol" in str(found) and "swordfish" not in str(found)
        code, said = copy.end()
    assert code == 0 and "swordfish" not in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--metrics", "x"], "--metrics must be ADDR:PORT, or PORT for this host alone, not 'x'"),
        (["--metrics", "203.0.113.1:9100"], "--metrics: cannot listen on 203.0.113.1:9100: Cannot assign requested"),
    ],
)
def test_an_address_that_cannot_be_had_ends_the_copy_before_it_begins(tmp_path: Path, words, told):
    make_image(tmp_path / "a.raw", MiB)
    done = mpconv("convert", *words, "a.raw", "b.raw", cwd=tmp_path)
    assert done.returncode == 1 and told in done.stderr and len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "b.raw").exists()


def test_what_is_not_installed_is_named(tmp_path: Path):
    """In an interpreter that finds no prometheus_client."""
    make_image(tmp_path / "a.raw", MiB)
    code = (
        "import importlib.util as u, sys; found = u.find_spec\n"
        "u.find_spec = lambda name, *rest: None if name == 'prometheus_client' else found(name, *rest)\n"
        "from mpconv.cli import main; sys.exit(main())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", "--metrics", "0", "a.raw", "b.raw"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == (
        "mpconv: --metrics needs prometheus-client, which is not installed: pip install 'mpconv[metrics]'\n"
    )


def test_who_does_not_watch_loads_nothing_of_it(tmp_path: Path):
    make_image(tmp_path / "a.raw", MiB)
    code = (
        "import sys; from mpconv.cli import main; code = main()\n"
        "print([name for name in sys.modules if name.startswith(('mpconv.ui.monitor', 'aiohttp', 'prometheus'))], code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "convert", "a.raw", "b.raw"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[] 0\n"


def test_a_fan_out_tells_of_each_job(tmp_path: Path):
    names = {"one", "two", "three"}
    jobs = ""
    for name in sorted(names):
        make_image(tmp_path / f"{name}.raw", SIZE)
        jobs += f'[[job]]\nname = "{name}"\nsource = "{tmp_path}/{name}.raw"\ntarget = "{tmp_path}/{name}.copy"\n'
    plan = tmp_path / "plan.toml"
    plan.write_text(f'[limits]\njobs = 3\nworkers = 3\nrate = "8M"\n{jobs}')
    with Watched(tmp_path, "fanout", "--metrics", "0", plan) as copies:
        found = until(copies.urls[0], "mpconv_job_written_bytes_total", 3)
        assert {dict(labels)["job"] for name, labels in found if name == "mpconv_job_size_bytes"} == names
        code, words = copies.end()
    assert code == 0, words
    assert all(identical(tmp_path / f"{name}.raw", tmp_path / f"{name}.copy") for name in names)
