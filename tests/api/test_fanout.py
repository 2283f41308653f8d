"""Fan-outs of programs: plans as text, files and objects; judged by qemu-img."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

import mpconv
from mpconv.jobs.fanout.journal_dir import stored
from tests.api.test_copying import children
from tests.conftest import identical, make_image
from tests.conftest import mpconv as command

MiB = 1 << 20


def job(name: str, source: Path, target: object, **options: object) -> mpconv.FanoutJob:
    places = [mpconv.Place(url=str(source), format="raw")]
    return mpconv.FanoutJob(
        name=name, sources=places, target=mpconv.Place(url=str(target)), options=mpconv.Options(**options), retries=0
    )


@pytest.fixture
def sources(tmp_path: Path) -> list[Path]:
    for number in range(3):
        make_image(tmp_path / f"vm{number}.raw", 4 * MiB, seed=number)
    return [tmp_path / f"vm{number}.raw" for number in range(3)]


def results(outcomes: list[mpconv.FanoutOutcome]) -> list[str]:
    return [outcome.result.value for outcome in outcomes]


def test_jobs_of_objects_over_nfs_and_iscsi(sources, tmp_path, nfs, lun):
    disk = lun(4 * MiB)
    plan = mpconv.Fanout(
        jobs=[
            job("to-nfs", sources[0], nfs.url("many.raw"), digest=True),
            job("to-iscsi", sources[1], disk.url),
            job("to-qcow2", sources[2], tmp_path / "many.qcow2", target_format="qcow2", compress=True, verify=1.0),
            job("nowhere", tmp_path / "absent", tmp_path / "b.raw"),
        ],
        limits=mpconv.FanoutLimits(jobs=2),
    )
    heard: list[tuple[str, str]] = []
    before = children()
    outcomes = mpconv.blocking.fan_out(plan, on_progress=lambda one: heard.append((one.name, one.result.value)))
    assert results(outcomes) == ["written", "written", "written", "failed"]
    assert identical(sources[0], nfs.export / "many.raw") and identical(sources[1], disk.backing)
    assert mpconv.blocking.compare(str(sources[2]), str(tmp_path / "many.qcow2")).differs_at is None
    assert outcomes[0].digest == mpconv.blocking.checksum(str(sources[0])).digest
    assert (outcomes[2].verified, outcomes[2].size, outcomes[2].done) == (4 * MiB, 4 * MiB, 4 * MiB)
    assert outcomes[3].why == f"Could not open '{tmp_path / 'absent'}': No such file or directory"
    for outcome in outcomes:
        assert [said for name, said in heard if name == outcome.name][-1] == outcome.result.value
    assert children() == before


PLAN = """
[defaults]
target = "{where}/{{name}}.qcow2"
target_format = "qcow2"
[[job]]
name = "one"
source = "{where}/vm0.raw"
[[job]]
name = "two"
source = "{where}/vm1.raw"
"""


def test_a_plan_as_text_and_as_a_file(sources, tmp_path):
    text = PLAN.format(where=tmp_path)
    (tmp_path / "plan.toml").write_text(text)
    plan = mpconv.read_plan(tmp_path / "plan.toml")
    assert plan == mpconv.read_plan(text)
    assert [one.name for one in plan.jobs] == ["one", "two"]
    plans: list[mpconv.Fanout | str | Path] = [plan, text, tmp_path / "plan.toml"]
    for one in plans:
        for name in ("one", "two"):
            (tmp_path / f"{name}.qcow2").unlink(missing_ok=True)
        assert results(mpconv.blocking.fan_out(one, workers=2)) == ["written", "written"]
    for source, name in zip(sources, ("one", "two"), strict=False):
        assert mpconv.blocking.compare(str(source), str(tmp_path / f"{name}.qcow2")) == mpconv.Verdict()


def test_all_that_is_wrong_with_a_text_is_told(tmp_path):
    text = PLAN.format(where=tmp_path).replace("target_format", "targte_format")
    with pytest.raises(mpconv.MpconvError) as caught:
        mpconv.read_plan(text + 'name = "two"\nsourcee = "x"\n[[job]]\nname = "three"\nweight = 0\n')
    assert "it is no TOML" in str(caught.value)
    with pytest.raises(mpconv.MpconvError) as caught:
        mpconv.read_plan(text + 'digest = 1\n[[job]]\nname = "three"\nweight = 0\n')
    assert str(caught.value) == (
        "the plan cannot be carried out: defaults: unknown key 'targte_format': did you mean 'target_format'?; "
        "job 'two': digest: expected true or false, got a number; job 'three': it has no source: source = \"...\"; "
        "job 'three': weight: it must be between 1 and 1000"
    )
    with pytest.raises(mpconv.MpconvError, match="a file is given as a Path"):
        mpconv.read_plan("plan.toml")
    with pytest.raises(mpconv.MpconvError, match="cannot be read: No such file or directory"):
        mpconv.read_plan(tmp_path / "plan.toml")


def test_all_that_is_wrong_with_an_object_is_told(sources, tmp_path):
    target = tmp_path / "a.raw"
    jobs = [
        job("../escapes", sources[0], target),
        job("two", sources[1], target),
        job("two", target, tmp_path / "b.raw"),
    ]
    jobs.append(mpconv.FanoutJob(name="none", sources=[], target=mpconv.Place(url="null:"), weight=0))
    plan = mpconv.Fanout(jobs=jobs, limits=mpconv.FanoutLimits(workers=1000))
    with pytest.raises(mpconv.MpconvError) as caught:
        mpconv.blocking.fan_out(plan, journal=str(target))
    for why in (
        "job '../escapes': a name is at most 100 letters",
        "job 'two': another job has that name",
        "job 'two': job '../escapes' has the same target",
        "job 'two': its source is the target of job '../escapes'",
        "job 'none': it has no source",
        "job 'none': weight: it must be between 1 and 1000",
        "limits: workers: it must be between 0 and 256",
        f"the journal '{target}' is one of the images",
    ):
        assert why in str(caught.value)
    assert not target.exists()
    for wrong, why in (
        (mpconv.Fanout(jobs=[]), "it has no job"),
        (mpconv.Fanout(jobs=jobs[1:2], limits=mpconv.FanoutLimits(workers=0)), "nobody would copy"),
    ):
        with pytest.raises(mpconv.MpconvError, match=why):
            mpconv.blocking.fan_out(wrong)


def test_cancelled_it_leaves_no_process_and_goes_on(tmp_path):
    """One job runs then, one is over, and one was never begun."""
    (tmp_path / "big.raw").write_bytes(os.urandom(24 * MiB))
    make_image(tmp_path / "small.raw", MiB)
    journal = str(tmp_path / "journal")
    plan = mpconv.Fanout(
        jobs=[
            job("first", tmp_path / "small.raw", tmp_path / "a.raw"),
            job("second", tmp_path / "big.raw", tmp_path / "b.raw", rate=6 * MiB),
            job("third", tmp_path / "small.raw", tmp_path / "c.raw"),
        ],
        limits=mpconv.FanoutLimits(jobs=1),
    )
    before = children()
    last: dict[str, mpconv.FanoutOutcome] = {}

    async def cancelled() -> None:
        def look(outcome: mpconv.FanoutOutcome) -> None:
            last[outcome.name] = outcome
            if outcome.name == "second" and outcome.done:
                found = stored(journal, "second")
                if found is not None and found.bytes_done:
                    work.cancel()

        work = asyncio.ensure_future(mpconv.fan_out(plan, journal=journal, on_progress=look))
        with pytest.raises(asyncio.CancelledError):
            await work

    asyncio.run(cancelled())
    assert children() == before
    assert {name: (one.result.value, one.why) for name, one in last.items()} == {
        "first": ("written", None),
        "second": ("stopped", "cancelled"),
    }
    assert not identical(tmp_path / "big.raw", tmp_path / "b.raw")
    with pytest.raises(mpconv.MpconvError, match="has an unfinished fan-out"):
        mpconv.blocking.fan_out(plan, journal=journal)
    attempts: list[str] = []
    outcomes = mpconv.blocking.resume_fan_out(journal, on_progress=lambda one: attempts.append(one.name))
    assert results(outcomes) == ["written"] * 3
    assert "first" not in attempts
    for source, target in (("small", "a"), ("big", "b"), ("small", "c")):
        assert identical(tmp_path / f"{source}.raw", tmp_path / f"{target}.raw")
    assert command("status", journal).returncode == 0


def test_a_callback_that_fails_ends_all_of_it(sources, tmp_path):
    plan = mpconv.Fanout(jobs=[job(str(n), source, tmp_path / f"{n}.out") for n, source in enumerate(sources)])
    before = children()

    def fails(_: mpconv.FanoutOutcome) -> None:
        raise ValueError("the program's own mistake")

    with pytest.raises(ValueError, match="the program's own mistake"):
        mpconv.blocking.fan_out(plan, on_progress=fails)
    assert children() == before


def test_journals_of_another_kind(sources, tmp_path):
    journal = tmp_path / "single.db"
    mpconv.blocking.convert(str(sources[0]), str(tmp_path / "a.raw"), journal=str(journal))
    (tmp_path / "empty").mkdir()
    for name, why in (
        ("single.db", "Not a directory"),
        ("absent", "is no journal of mpconv fanout"),
        ("empty", "is no journal of mpconv fanout"),
    ):
        with pytest.raises(mpconv.MpconvError, match=why) as caught:
            mpconv.blocking.resume_fan_out(str(tmp_path / name))
        assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path / "empty") == []
