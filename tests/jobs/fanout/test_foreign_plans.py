"""Plans that nobody would write: whatever stands in them, each mistake is one line, and none a traceback."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from mpconv import FanoutJob, Place, blocking
from mpconv.cli.plan import resolved, text_of
from mpconv.jobs.fanout.plan import JobTable, LimitsTable, Problem
from mpconv.jobs.fanout.spec import Fanout
from mpconv.model.errors import Fatal, MpconvError
from tests.conftest import mpconv

JOB = {"name": '"a"', "source": '"/src"', "target": '"/tgt-{name}"'}
VALUES = (
    *("-1", "0", "9223372036854775808", f"1{'0' * 70}", "1e308", "inf", "nan", "true", "1979-05-27", "07:32:00"),
    *('""', r'"a\u0000b"', '"-"', '"-O"', '"{name}"', '"{"', '"99999999999999999999E"', '"1e999"', '"nan"'),
    *("[]", "[1]", '[""]', r'["\u0000"]', "{}", "{a=1}", r'{"\u0000"="x"}', r'{size="\u0000"}', '{"a,b"="c"}'),
    *('"nfs://[::1/x"', '"nfs://h:99999999/x"', r'"nfs://h/x\u0000"', '"iscsi://[x]/iqn/1"', '"http://x"', '"file:"'),
    *(r'"file:\u0000"', '"json:{"', r'"\u001b[2J"', '"/proc/self/fd/99"', f'"{"x" * 5000}"', '"\ud800"', '"\udc80"'),
)
SEED = """[limits]
rate = "1M"
servers = { h = "2M" }
[[job]]
name = "a"
source = ["nfs://h/a", "/b"]
target = "/{name}-{date}"
target_format = "qcow2"
options = { cluster_size = "64k" }
retry_delay = 5
verify = true
"""


def told(text: str) -> list[Problem]:
    problems = resolved(text, None, None, jobs=None, workers=None)[1]
    for problem in problems:
        assert "\n" not in str(problem)
    return problems


def with_job(words: dict[str, str], limits: str = "", defaults: str = "") -> str:
    lines = (f"{key} = {value}" for key, value in words.items())
    return "\n".join(("[limits]", limits, "[defaults]", defaults, "[[job]]", *lines))


@pytest.mark.parametrize("value", VALUES, ids=lambda value: ascii(value)[:30])
def test_any_value_in_any_place(value):
    for key in JobTable.__struct_fields__:
        told(with_job({**JOB, key: value}))
        told(with_job(JOB, defaults=f"{key} = {value}"))
    for key in LimitsTable.__struct_fields__:
        told(with_job(JOB, limits=f"{key} = {value}"))
    for text in (f"limits = {value}", f"defaults = {value}", f"job = {value}", f"job = [{value}]", f"x = {value}"):
        assert told(text)


def test_plans_with_a_few_changed_characters():
    chance = random.Random(16)
    for _ in range(300):
        text = list(SEED)
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(text))
            how = chance.randrange(3)
            if how == 0:
                text[at] = chr(chance.randrange(0x180))
            elif how == 1:
                del text[at : at + chance.randint(1, 8)]
            else:
                text[at:at] = text[chance.randrange(len(text)) :][: chance.randint(1, 20)]
        told("".join(text))


NO_NAMES = ("a\0b", "\ud800", "file:\0", "nfs://h/\0", "iscsi://h/iqn\ud800/1", "null:\0")


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_is_no_name_is_said_of_its_job(name, tmp_path):
    for key in ("source", "target"):
        escaped = name.replace("\0", r"\u0000")
        [problem] = told(with_job({**JOB, key: f'"{escaped}"'}))
        assert problem.job == "job 'a'" and "a name cannot have" in problem.text


@pytest.mark.parametrize("name", NO_NAMES, ids=ascii)
def test_what_is_no_name_is_one_line_everywhere(name, tmp_path):
    good = tmp_path / "good.raw"
    good.write_bytes(bytes(4096))
    copy, place = str(tmp_path / "copy"), Place(url=name)
    job = FanoutJob(name="a", sources=[place], target=Place(url=copy))
    for attempt in (
        lambda: blocking.convert(name, copy),
        lambda: blocking.convert(str(good), name),
        lambda: blocking.deploy(str(good), [copy, name]),
        lambda: blocking.compare(str(good), name),
        lambda: blocking.checksum(name),
        lambda: blocking.info(name),
        lambda: blocking.measure(name),
        lambda: blocking.fan_out(Fanout(jobs=[job])),
        lambda: blocking.convert(str(good), copy, journal=name),
        lambda: blocking.resume(name),
        lambda: blocking.resume_fan_out(name),
    ):
        with pytest.raises(MpconvError, match=r"a name cannot have .* in it") as caught:
            attempt()
        assert "\n" not in str(caught.value) and not str(caught.value).startswith("internal")


def test_files_that_are_no_plans_nor_lists(tmp_path):
    with pytest.raises(Fatal, match=r"the plan 'a.*b' cannot be read: a name cannot have a NUL character in it"):
        text_of("a\0b")
    plan, image = tmp_path / "plan", tmp_path / "image"
    image.write_bytes(bytes(4096))
    for content in (b"\0", b"a\0b\n", bytes(range(256))):
        plan.write_bytes(content)
        for words in (("fanout", plan), ("deploy", "--targets", plan, image)):
            ran = mpconv(*words)
            lines = ran.stderr.splitlines()
            assert ran.returncode == 1 and lines and all(line.startswith("mpconv: ") for line in lines), lines
    assert sorted(Path(tmp_path).iterdir()) == [image, plan]
