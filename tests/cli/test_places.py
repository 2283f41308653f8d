"""Where images lie, of which format they are said to be, and what they may open besides themselves."""

from __future__ import annotations

import click
import pytest

from mpconv.cli import cli
from mpconv.cli.options.command import trust_of
from mpconv.cli.qemu.places import places
from mpconv.model.errors import MpconvError
from mpconv.model.place import NO_TRUST, Place, Trust


@pytest.mark.parametrize("fmt", [None, "raw", "qcow2"])
def test_the_format_goes_with_the_place(fmt: str | None) -> None:
    assert places(["a", "b"], fmt, False, True) == [Place(url=name, direct=True, format=fmt) for name in ("a", "b")]


@pytest.mark.parametrize(
    ("text", "fmt"),
    [
        ("driver=qcow2,file.filename=a", "qcow2"),
        ("driver=raw,file.filename=a", "raw"),
        ("driver=file,filename=a", "raw"),
        ("file.filename=a", None),
        ("file.driver=file,file.filename=a", None),
    ],
)
def test_driver_options_name_the_format(text: str, fmt: str | None) -> None:
    assert [place.format for place in places([text], None, True)] == [fmt]


@pytest.mark.parametrize(
    "fmt", ["bochs", "cloop", "dmg", "luks", "parallels", "qcow", "qed", "vdi", "vhdx", "vmdk", "vpc"]
)
def test_other_formats_are_refused_by_name(fmt: str) -> None:
    with pytest.raises(MpconvError, match=f"Could not open 'a': mpconv cannot read {fmt} images yet"):
        places(["a"], fmt, False)


@pytest.mark.parametrize("command", ["convert", "compare", "info", "map", "measure"])
@pytest.mark.parametrize(
    ("arguments", "trust"),
    [
        ([], NO_TRUST),
        (["--allow-backing"], Trust(backing=[""])),
        (["--allow-backing=/srv/base", "--allow-backing"], Trust(backing=["/srv/base", ""])),
        (["--allow-data-file"], Trust(data_file=[""])),
        (["--allow-data-file=/srv/data", "--allow-data-file"], Trust(data_file=["/srv/data", ""])),
        (["--allow-data-file", "--allow-backing=x"], Trust(backing=["x"], data_file=True)),
    ],
)
def test_trust_takes_no_image_for_a_directory(command: str, arguments: list[str], trust: Trust) -> None:
    known = cli.get_command(click.Context(cli), command)
    for words in ([*arguments, "a", "b"], ["a", *arguments, "b"]):
        context = known.make_context(command, list(words), resilient_parsing=False)
        assert context.params["names"] == ("a", "b")
        assert trust_of(context.params["allow_backing"], context.params["allow_data_file"]) == trust


def test_after_two_dashes_everything_is_a_name() -> None:
    context = cli.get_command(click.Context(cli), "compare").make_context("compare", ["--", "--allow-backing", "b"])
    assert isinstance(context, click.Context)
    assert context.params["names"] == ("--allow-backing", "b")
