"""`-o`, beside qemu-img's own reading of the same options."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mpconv.cli.qemu.create_opts import CreateOptions, parse_create_opts
from mpconv.model.errors import MpconvError, UsageError


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.raw").write_bytes(bytes(4096))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def qemu(options: list[str], target: str = "b.raw") -> tuple[str, str]:
    """qemu-img's output, and its first line on stderr without its name."""
    given = [word for option in options for word in ("-o", option)]
    command = ["qemu-img", "convert", "-f", "raw", "-O", "raw", *given, *(["a.raw", target] if target else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.rstrip("\n"), done.stderr.partition("\n")[0].removeprefix("qemu-img: ")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], CreateOptions()),
        (["size=1"], CreateOptions()),
        (["size= 1.5k,size=8E"], CreateOptions()),
        (["preallocation=full"], CreateOptions(preallocation="full")),
        (["preallocation=huh", "preallocation=off"], CreateOptions()),
        (["preallocation=off", "preallocation=falloc"], CreateOptions(preallocation="falloc")),
        (["nocow=y,extent_size_hint=1M"], CreateOptions(nocow=True)),
        (["nocow=on", "nonocow"], CreateOptions()),
        (["extent_size_hint=4294967295"], CreateOptions()),
        (["id=x"], CreateOptions()),
    ],
)
def test_what_qemu_takes(folder: Path, options: list[str], expected: CreateOptions) -> None:
    assert qemu(options) == ("", "")
    assert parse_create_opts(options, "b.raw") == expected


@pytest.mark.parametrize(
    "options",
    [
        [""],
        [","],
        [",size=1"],
        ["preallocation=off,"],
        ["preallocation=off,,,"],
        ["a=b", ""],
        ["size="],
        ["size=huh"],
        ["size=-1"],
        ["size=1.5"],
        ["size=.5k"],
        ["size=1kB"],
        ["size=16E"],
        ["size=1,,,size=2"],
        ["size=16E,nonsense=1"],
        ["nonsense=1,size=16E"],
        ["preallocation=huh"],
        ["preallocation"],
        ["preallocation="],
        ["preallocation=metadata"],
        ["preallocation=off,,"],
        ["preallocation=help"],
        ["preallocation=OFF"],
        ["preallocation=huh,extent_size_hint=8G"],
        ["extent_size_hint=4G"],
        ["extent_size_hint=huh"],
        ["nocow=huh"],
        ["nocow=ON"],
        ["nocow"],
        ["nonsense"],
        ["nonsense=1"],
        ["backing_file=x"],
        ["helpx"],
        ["help=1"],
        ["nohelp"],
        ["=1"],
        [" size=1"],
        ["SIZE=1"],
    ],
)
def test_what_qemu_refuses_is_refused_in_its_words(folder: Path, options: list[str]) -> None:
    _, expected = qemu(options)
    assert expected
    with pytest.raises(MpconvError) as caught:
        parse_create_opts(options, "b.raw")
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    "options", [["help"], ["?"], ["size=1,?"], ["preallocation=huh,help"], ["help,nonsense"], ["size=huh", "help"]]
)
@pytest.mark.parametrize("target", ["", "b.raw", "nfs://127.0.0.1/x/y", "iscsi://127.0.0.1/x/1", "/dev/null"])
def test_help_is_laid_out_as_qemus(folder: Path, options: list[str], target: str) -> None:
    text, _ = qemu(options, target)
    assert text.startswith("Supported ")
    assert parse_create_opts(options, target).help == text


@pytest.mark.parametrize(
    ("options", "target"),
    [
        (["preallocation=off"], "nfs://127.0.0.1/x/y"),
        (["nocow=on"], "iscsi://127.0.0.1/x/1"),
        (["preallocation=huh"], "/dev/null"),
        (["preallocation=metadata"], "/dev/null"),
        (["preallocation=full"], "/dev/null"),
        (["extent_size_hint=1"], "/dev/null"),
    ],
)
def test_every_kind_of_target_has_its_own(folder: Path, options: list[str], target: str) -> None:
    _, expected = qemu(options, target)
    with pytest.raises(MpconvError) as caught:
        parse_create_opts(options, target)
    assert str(caught.value) == expected


def test_a_size_is_taken_everywhere() -> None:
    for target in ("nfs://127.0.0.1/x/y", "iscsi://127.0.0.1/x/1", "null:", "/dev/null"):
        assert parse_create_opts(["size=1G"], target) == CreateOptions()


def test_no_password_in_a_message() -> None:
    with pytest.raises(MpconvError) as caught:
        parse_create_opts(["preallocation=full"], "iscsi://me%sesame@127.0.0.1/x/1")
    assert "me@127.0.0.1" in str(caught.value)
    assert "sesame" not in str(caught.value)


def test_without_a_target_only_the_list_is_looked_at() -> None:
    assert parse_create_opts(["nonsense=1"], "") == CreateOptions()
    with pytest.raises(UsageError, match="Invalid option list: ,"):
        parse_create_opts([","], "")
