"""What stands in a plan, and what is said of what is wrong with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpconv.jobs.fanout.plan import filled_in, read

JOB = '[[job]]\nname = "a"\nsource = "x"\ntarget = "y"\n'


def said(text: str) -> list[str]:
    return [str(problem) for problem in read(text)[1]]


def test_defaults_fill_in_what_a_job_leaves_open():
    text = """
    [limits]
    jobs = 3
    [defaults]
    target = "d/{name}"
    options = { cluster_size = "64k", compat = "v2" }
    digest = true
    [[job]]
    name = "one"
    source = ["a", "b"]
    options = { compat = "v3" }
    [[job]]
    name = "two"
    options = {}
    source = "c"
    target = "e"
    digest = false
    """
    plan, problems = read(text)
    assert problems == []
    one, two = plan.jobs
    assert (one.target, two.target) == ("d/{name}", "e")
    assert (one.sources, two.sources) == (["a", "b"], ["c"])
    assert one.options == {"cluster_size": "64k", "compat": "v3"}
    assert two.options == {}
    assert (one.digest, two.digest) == (True, False)
    assert plan.limits.jobs == 3


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = z\n", "it is no TOML: invalid value (at line 1, column 5)"),
        ("", "it has no job: write [[job]], and below it name, source and target"),
        (f"x = {'1' * 5000}", "it has a number of thousands of digits"),
        (f"x = {'[' * 5000}", "its tables or lists lie too deep in one another"),
        ("[job]\nname = 'a'", "a job begins with [[job]], in double brackets, not with [job]"),
        (f"[default]\n{JOB}", "unknown key 'default': did you mean 'defaults'?"),
        (f"[limits]\nbandwidth = 1\n{JOB}", "limits: unknown key 'bandwidth': there are jobs, workers, rate, servers"),
        (f"[limits]\njobs = '3'\n{JOB}", "limits: jobs: expected a number, got a text"),
        (f"[defaults]\nname = 'x'\n{JOB}", "defaults: name: each job has its own: write it below [[job]]"),
        (f"{JOB}sparse_sise = 1", "job 'a': unknown key 'sparse_sise': did you mean 'sparse_size'?"),
        (f"{JOB}digest = 1", "job 'a': digest: expected true or false, got a number"),
        (f"{JOB}allow_backing = 3", "job 'a': allow_backing: expected true or false or a text or a list, got a number"),
        (f"{JOB}weight = 0", "job 'a': weight: it must be between 1 and 1000"),
        (f"{JOB}{JOB}", "job 'a': another job has that name: give each its own"),
        ("[[job]]\nname = 'a'\nsource = 'x'", "job 'a': it has no target: target = \"...\""),
        ("[[job]]\nname = 'a'\ntarget = 'x'", "job 'a': it has no source: source = \"...\""),
        ("[[job]]\nname = 'a'\ntarget = 'x'\nsource = []", "job 'a': it has no source: source = \"...\""),
        ("[[job]]\nsource = 'a'\ntarget = 'x'", 'job 1: it has no name: name = "..."'),
        (JOB.replace('"y"', '"{day}"'), "job 'a': target: there is no {day}, only {name} and {date}"),
    ],
)
def test_each_mistake_is_named(text, problem):
    assert said(text) == [problem]


@pytest.mark.parametrize("name", ["../a", "a/b", ".a", "", "-a", "a b", "a" * 101])
def test_a_name_is_one_of_a_file(name):
    [problem] = said(JOB.replace('"a"', f'"{name}"'))
    assert "a name is at most 100 letters" in problem


def test_all_mistakes_are_named_at_once():
    text = "[limits]\na = 1\nb = 2\n[[job]]\nname = 'x'\nc = 1\ndigest = 'yes'\n[[job]]\nname = 'x'\n"
    assert len(said(text)) == 9


def test_names_and_dates_in_targets():
    assert filled_in("b/{date}/{name}-{date}.img", "vm", "2026-11-25") == "b/2026-11-25/vm-2026-11-25.img"


@given(st.text())
def test_nothing_that_is_read_raises(text):
    plan, problems = read(text)
    assert problems or plan.jobs
