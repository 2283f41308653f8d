"""The plan that the documentation shows."""

from __future__ import annotations

from pathlib import Path

from mpconv.cli.plan import resolved
from mpconv.jobs.fanout.plan import JobTable, LimitsTable
from mpconv.jobs.fanout.validation import problems_of

ROOT = Path(__file__).parents[3]
EXAMPLE = (ROOT / "contrib" / "fanout.toml").read_text()
PAGE = (ROOT / "docs" / "fanout.md").read_text()


def test_the_example_is_a_plan():
    plan, problems = resolved(EXAMPLE, "journal", None, jobs=None, workers=None)
    assert problems == problems_of(plan, "journal", None) == []
    assert plan.limits.servers == {"10.0.0.9": 250 << 20}
    mail, files, _, desk = plan.jobs
    assert (mail.priority, files.weight, files.options.rate, desk.retry_delay) == (10, 3, 50 << 20, 10)
    assert mail.target.url.startswith("nfs://10.0.0.9/backup/mail-2") and mail.options.verify == 0.05
    assert mail.options.qcow2 is not None and mail.options.qcow2.compression_type == "zstd"
    assert desk.options.verify == 1 and not desk.options.create and desk.options.target_format == "raw"


def test_the_page_shows_it_and_knows_every_key():
    assert EXAMPLE.split("\n\n", 1)[1] in PAGE
    for key in (*JobTable.__struct_fields__, *LimitsTable.__struct_fields__):
        assert f"`{key}`" in PAGE or f"\n{key} = " in PAGE, key
