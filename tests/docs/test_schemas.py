"""What commands print for programs is what the schemas in the reference say, and has no key that they lack."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from mpconv.jobs.fanout.plan import read
from tests.conftest import make_image, mpconv

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "reference" / "schemas"
PAGE = SCHEMAS.parent / "documents.md"
MiB = 1 << 20


def qemu_img(*arguments: object) -> None:
    subprocess.run(["qemu-img", *map(str, arguments)], check=True, capture_output=True)


def closed(schema: Any) -> Any:
    """The same schema with no room for keys that it does not name."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    return {"additionalProperties": False, **inner} if "properties" in schema else inner


def fits(name: str, document: Any) -> bool:
    schema = json.loads((SCHEMAS / f"{name}.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.Draft202012Validator(closed(schema)).validate(document)
    return True


@pytest.fixture
def image(tmp_path: Path) -> Path:
    make_image(tmp_path / "a.raw", 4 * MiB)
    return tmp_path / "a.raw"


def test_the_page_names_every_schema():
    assert set(re.findall(r"\(schemas/([\w-]+\.json)\)", PAGE.read_text())) == {path.name for path in SCHEMAS.iterdir()}


def test_a_key_that_no_schema_names_is_noticed():
    assert fits("measure", {"required": 1, "fully-allocated": 1})
    with pytest.raises(jsonschema.ValidationError, match="new"):
        fits("measure", {"required": 1, "fully-allocated": 1, "new": 1})


def test_of_a_copy(image, tmp_path):
    done = mpconv("convert", "--progress=json", "--digest", "--verify", image, tmp_path / "b.raw")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    shown = [line for line in lines if "phase" in line]
    assert [fits("progress", line) for line in shown] and shown[-1]["phase"] == "done"
    assert sum(fits("progress-results", line) for line in lines if "phase" not in line) == 2


def test_of_a_deployment(image, tmp_path):
    done = mpconv("deploy", "--json", "--digest", image, tmp_path / "b.raw", "/no/such/directory/c.raw")
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert fits("deploy", document)
    assert [one["outcome"] for one in document["targets"]] == ["written", "failed"]


def test_of_many_jobs(image, tmp_path):
    jobs = [("a", image), ("b", tmp_path / "none.raw")]
    job = '[[job]]\nname = "{0}"\nsource = "{1}"\ntarget = "{2}/{0}.img"\n'
    plan = [job.format(name, source, tmp_path) for name, source in jobs]
    (tmp_path / "plan.toml").write_text("\n".join(plan))
    done = mpconv("fanout", "--json", "--journal", tmp_path / "j", tmp_path / "plan.toml")
    assert done.returncode == 2, done.stderr
    document = json.loads(done.stdout)
    assert fits("fanout", document)
    assert [one["result"] for one in document["jobs"]] == ["written", "failed"]
    assert document["jobs"][1]["why"].startswith("Could not open '")
    status = json.loads(mpconv("status", "--output", "json", tmp_path / "j").stdout)
    assert fits("status-fanout", status) and status["finished"] == 1


def test_of_many_jobs_as_they_go(image, tmp_path):
    """One of them fails at first, waits, and is begun again."""
    job = '[[job]]\nname = "{0}"\nsource = "{1}"\ntarget = "{2}/b.img"\nretries = 1\nretry_delay = 0.1\n'
    (tmp_path / "plan.toml").write_text(job.format("a", image, tmp_path) + job.format("b", image, tmp_path / "none"))
    done = mpconv("fanout", "--progress=json", tmp_path / "plan.toml")
    assert done.returncode == 2, done.stderr
    *lines, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert all(fits("progress-fanout", line) for line in lines) and fits("fanout", last)
    phases = {name: [line["phase"] for line in lines if line["job"] == name] for name in "ab"}
    assert phases["a"][-1] == "done" and phases["b"][-1] == "failed" and "waiting" in phases["b"]


def test_of_the_live_page(image, tmp_path):
    watch = ["--web", "127.0.0.1:0", "-r", "4M", "--digest"]
    command = [sys.executable, "-m", "mpconv", "convert", *watch, image, tmp_path / "b.raw"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as copy:
        assert copy.stderr is not None
        [url] = re.findall(r"watch at (\S+)", copy.stderr.readline())
        with urllib.request.urlopen(f"{url}events", timeout=20) as answer:
            messages = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: ")]
        assert copy.wait(timeout=20) == 0
    *jobs, over = [json.loads(message) for message in messages]
    assert all(fits("events", one) for one in [*jobs, over]) and over == {"journals": False}
    assert jobs[-1]["state"] == "finished" and jobs[-1]["map"]["marks"] and jobs[-1]["workers"]


def test_of_a_storage_url(image, tmp_path):
    done = mpconv("doctor", "--output", "json", "--seconds", "0.2", image, "/no/such/directory/b.raw")
    assert done.returncode == 2, done.stderr
    document = json.loads(done.stdout)
    assert fits("doctor", document) and [one["ok"] for one in document["images"]] == [True, False]


def test_the_plan_of_the_nightly_backups_is_one():
    page = (SCHEMAS.parents[1] / "how-to" / "nightly-backups.md").read_text()
    [plan] = re.findall(r"^```toml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found, problems = read(plan)
    assert problems == []
    assert [job.name for job in found.jobs] == ["mail", "files"]


def test_of_a_journal(image, tmp_path):
    assert mpconv("convert", "--journal", tmp_path / "j", "--digest", image, tmp_path / "b.raw").returncode == 0
    document = json.loads(mpconv("status", "--output", "json", tmp_path / "j").stdout)
    assert fits("status", document) and document["state"] == "finished"
    report = json.loads(mpconv("report", "--json", tmp_path / "j").stdout)
    assert fits("report", report) and report["jobs"][0]["done"] == 4 * MiB


def test_of_images(image, tmp_path):
    qcow2, overlay = tmp_path / "a.qcow2", tmp_path / "b.qcow2"
    qemu_img("convert", "-c", "-O", "qcow2", image, qcow2)
    qemu_img("create", "-q", "-f", "qcow2", "-b", qcow2, "-F", "qcow2", overlay)
    qemu_img("snapshot", "-c", "monday", overlay)
    for name in (image, qcow2, overlay):
        for command in ("info", "map", "measure", "checksum"):
            done = mpconv(command, "--output", "json", "--allow-backing", name)
            assert done.returncode == 0, done.stderr
            assert fits(command, json.loads(done.stdout))
    assert fits("check", json.loads(mpconv("check", "--output", "json", qcow2).stdout))
    chain = json.loads(mpconv("info", "--output", "json", "--backing-chain", "--allow-backing", overlay).stdout)
    assert len(chain) == 2 and all(fits("info", one) for one in chain)
