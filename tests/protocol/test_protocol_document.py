"""PROTOCOL.md says what messages.py says."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from mpconv.core import events
from mpconv.model.errors import KINDS
from mpconv.model.extent import Kind
from mpconv.protocol import codec, messages
from mpconv.protocol.job import Clusters, Job

TEXT = (Path(messages.__file__).parent / "PROTOCOL.md").read_text()
FROM_WORKER, FROM_COORDINATOR = get_args(messages.FromWorker), get_args(messages.FromCoordinator)
EXAMPLES = (Path(__file__).parents[1] / "core" / "test_coordination.py").read_text()
SECTIONS = {"Messages from a worker": FROM_WORKER, "Messages from the coordinator": FROM_COORDINATOR}


def section(title: str) -> str:
    """The text under a heading, up to the next one."""
    return TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0]


def rows(title: str) -> dict[str, list[str]]:
    """tag -> the cells beside it."""
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section(title).splitlines() if "|" in line
    ]
    return {row[0].strip("`"): row[1:] for row in cells[2:]}


def tag_of(message: type) -> str:
    return str(msgspec.inspect.type_info(message).tag)


@pytest.mark.parametrize("title", SECTIONS)
def test_every_message_is_described_and_no_unknown_one(title):
    assert set(rows(title)) == {tag_of(message) for message in SECTIONS[title]}


@pytest.mark.parametrize("title", SECTIONS)
def test_every_field_is_described_and_no_unknown_one(title):
    for message in SECTIONS[title]:
        fields = rows(title)[tag_of(message)][0]
        assert set(re.findall("`([a-z_]+)`", fields)) == set(message.__struct_fields__), tag_of(message)


def test_every_field_of_the_job_is_described():
    job = section("Messages from the coordinator").partition("The job, a map")[2]
    assert set(re.findall("`([a-z_]+)`", job)) == set(Job.__struct_fields__)


def test_every_field_of_the_job_s_clusters_is_described():
    clusters = section("Places").partition("The map `clusters`:")[2].partition("\n\n- ")[0]
    assert set(re.findall("`([a-z_]+)`", clusters)) == set(Clusters.__struct_fields__)


def test_every_kind_of_error_is_described_and_no_unknown_one():
    assert list(rows("Errors")) == list(KINDS)


def test_the_document_names_the_current_version():
    assert re.findall(r"Version \*\*(\d+)\*\*", TEXT) == [str(messages.VERSION)]


def test_the_bounds_are_those_of_the_code():
    assert f"{codec.MAX_FRAME} bytes (`MAX_FRAME`)" in TEXT
    assert f"1 to {messages.MAX_WANT} (`MAX_WANT`)" in TEXT
    assert f"up to {messages.MAX_RANGES} (`MAX_RANGES`)" in TEXT
    assert TEXT.count(f"up to {messages.MAX_CLUSTERS} (`MAX_CLUSTERS`)") == 2
    assert f"up to {messages.MAX_DIGESTS} (`MAX_DIGESTS`)" in TEXT
    assert f"up to {messages.MAX_DEAD} (`MAX_DEAD`)" in TEXT
    assert f"up to {messages.MAX_FENCE:g} (`MAX_FENCE`)" in TEXT
    kinds = ", ".join(f"{int(kind)} {kind.name.lower()}" for kind in Kind)
    assert f"`kind`: {kinds}" in TEXT


@pytest.mark.parametrize("message", [*FROM_WORKER, *FROM_COORDINATOR])
def test_every_message_carries_its_tag_as_its_type(message):
    assert msgspec.inspect.type_info(message).tag_field == "type"


def quoted() -> list[str]:
    """The examples that the document quotes."""
    return re.findall("```python\n(.*?)```", section("Examples"), re.DOTALL)


def test_examples_are_quoted_from_the_tests_word_for_word_and_whole():
    tests = {f"{test.strip()}\n" for test in EXAMPLES.split("\n\n\n")}
    assert len(quoted()) >= 5
    assert [example for example in quoted() if example not in tests] == []


def test_every_message_beside_an_event_or_an_action_is_one():
    tags = {tag_of(message) for message in (*FROM_WORKER, *FROM_COORDINATOR)}
    for name, [told] in rows("Examples").items():
        assert hasattr(events, name)
        assert told.partition(",")[0].strip("`") in tags


def test_every_event_and_action_of_the_examples_is_explained():
    explained = section("Examples").partition("```")[0]
    used = {name for name in re.findall("[A-Z][A-Za-z]+", "".join(quoted())) if name in vars(events)}
    assert used - {"Extent"} == {name for name in re.findall("`([A-Za-z]+)`", explained) if name in vars(events)}
