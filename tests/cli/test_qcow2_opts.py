"""`-o`, `-B` and `-F` for a qcow2 target, beside qemu-img's own reading of the same options."""

from __future__ import annotations

import itertools
import re
import subprocess
from pathlib import Path

import pytest

from mpconv.cli.qemu.qcow2_opts import Wish, qcow2_help, wish
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.model.errors import UsageError
from tests.conftest import mpconv

BACKED = "backing_file=base.raw,backing_fmt=raw"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.raw").write_bytes(b"\1" * 4096)
    (tmp_path / "base.raw").write_bytes(bytes(4096))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def qemu(arguments: list[str]) -> tuple[str, int, str]:
    """qemu-img convert's output, exit code, and first line on stderr without its name."""
    command = ["qemu-img", "convert", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    return done.stdout.rstrip("\n"), done.returncode, done.stderr.partition("\n")[0].removeprefix("qemu-img: ")


def qemu_makes(*options: str) -> str:
    """Why qemu-img does not; empty when it does."""
    given = [word for option in options for word in ("-o", option)]
    _, code, error = qemu(["-f", "raw", "-O", "qcow2", *given, "a.raw", "b.qcow2"])
    assert (code == 0) == (error == "")
    return error


def found(*options: str, backing: str | None = None, fmt: str | None = None) -> Wish:
    return wish(list(options), "b.qcow2", backing, fmt)


def refused(*options: str) -> str | None:
    try:
        return found(*options).unmakeable()
    except UsageError as error:
        return str(error)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], Qcow2Options()),
        (["cluster_size=2M"], Qcow2Options(cluster_size=2 << 20)),
        (["cluster_size=0.5k"], Qcow2Options(cluster_size=512)),
        (["cluster_size=4k", "cluster_size=1k"], Qcow2Options(cluster_size=1024)),
        (["compat=0.10"], Qcow2Options(version=2)),
        (["compat=v2"], Qcow2Options(version=2)),
        (["compat=huh,compat=1.1"], Qcow2Options()),
        (["compat=0.10,refcount_bits=16,compression_type=zlib,lazy_refcounts=off"], Qcow2Options(version=2)),
        (["preallocation=off", "preallocation=metadata"], Qcow2Options(preallocation="metadata")),
        (["preallocation=falloc,cluster_size=512"], Qcow2Options(preallocation="falloc", cluster_size=512)),
        (["preallocation=full"], Qcow2Options(preallocation="full")),
        (["lazy_refcounts"], Qcow2Options(lazy_refcounts=True)),
        (["lazy_refcounts=on,nolazy_refcounts"], Qcow2Options()),
        (["refcount_bits=64"], Qcow2Options(refcount_bits=64)),
        (["refcount_bits= 0x8"], Qcow2Options(refcount_bits=8)),
        (["refcount_bits=+020"], Qcow2Options(refcount_bits=16)),
        (["compression_type=zstd"], Qcow2Options(compression_type="zstd")),
        (["extended_l2=on,cluster_size=16k"], Qcow2Options(extended_l2=True, cluster_size=16384)),
        ([BACKED], Qcow2Options(backing_file="base.raw", backing_fmt="raw")),
        (
            [f"extended_l2=on,preallocation=metadata,{BACKED}"],
            Qcow2Options(extended_l2=True, preallocation="metadata", backing_file="base.raw", backing_fmt="raw"),
        ),
        (["data_file=d,,e.raw,data_file_raw=on"], Qcow2Options(data_file="d,e.raw", data_file_raw=True)),
        (["size=1000,nocow=on,extent_size_hint=1M,encryption=off,id=x"], Qcow2Options()),
    ],
)
def test_what_qemu_takes(folder: Path, options: list[str], expected: Qcow2Options) -> None:
    assert qemu_makes(*options) == ""
    assert refused(*options) is None
    assert found(*options).options() == expected


WRONG = {
    "name": "huh=1",
    "switch": "lazy_refcounts=huh",
    "hint": "extent_size_hint=8G",
    "version": "compat=huh",
    "backing format": f"{BACKED},backing_fmt=huh",
    "preallocation": "preallocation=huh",
    "wide": "refcount_bits=18446744073709551615",
    "type": "compression_type=huh",
    "cluster": "cluster_size=100",
    "small": "extended_l2=on,cluster_size=8k",
    "backed": f"preallocation=full,{BACKED}",
    "no backing": "backing_fmt=raw",
    "refcount": "refcount_bits=3",
    "raw and backed": f"data_file=d.raw,data_file_raw=on,{BACKED}",
    "raw without": f"data_file_raw=on,{BACKED}",
    "raw alone": "data_file_raw=on",
}
OLD = {
    "extended": "extended_l2=on",
    "cluster": "cluster_size=100",
    "lazy": "lazy_refcounts=on",
    "bits": "refcount_bits=8",
    "data file": "data_file=d.raw",
    "zstd": "compression_type=zstd",
    "raw alone": "data_file_raw=on",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_option(folder: Path, name: str) -> None:
    expected = qemu_makes(WRONG[name])
    assert expected
    assert refused(WRONG[name]) == expected


@pytest.mark.parametrize("first", WRONG)
def test_of_two_wrong_options_the_same_is_named(folder: Path, first: str) -> None:
    """Or none, where the second one makes the first one good."""
    pairs = [f"{WRONG[one]},{WRONG[second]}" for one, second in itertools.combinations(WRONG, 2) if one == first]
    assert {options: refused(options) or "" for options in pairs} == {options: qemu_makes(options) for options in pairs}


@pytest.mark.parametrize("first", OLD)
def test_what_an_old_image_cannot_have(folder: Path, first: str) -> None:
    for second in OLD.values():
        options = f"compat=v2,{OLD[first]},{second}"
        expected = qemu_makes(options)
        assert expected
        assert refused(options) == expected


@pytest.mark.parametrize(
    "options",
    [
        "cluster_size=0", "cluster_size=256", "cluster_size=4M", "cluster_size=3k", "cluster_size=8E",
        "cluster_size=16E", "cluster_size=huh", "cluster_size=-1", "cluster_size=", "refcount_bits=0",
        "refcount_bits=128", "refcount_bits=-1", "refcount_bits=1k", "refcount_bits=", "refcount_bits=09",
        "refcount_bits=16 ", "refcount_bits=18446744073709551616", "refcount_bits=-18446744073709551600", "compat=",
        "compat", "compat=V3", "compression_type=ZSTD", "preallocation", "data_file_raw=huh", "size=huh",
        "encryption=huh", "encrypt.iter-time=huh", "encrypt.huh=1", "nocow=huh", "backing_fmt=huh",
        "backing_file=base.raw,backing_fmt=", f"backing_file={'x/' * 512},backing_fmt=raw", "",
    ],
)  # fmt: skip
def test_what_qemu_refuses_is_refused_in_its_words(folder: Path, options: str) -> None:
    expected = qemu_makes(options)
    assert expected
    done = mpconv("convert", "-f", "raw", "-O", "qcow2", "-o", options, "a.raw", "b.qcow2")
    assert (done.returncode, done.stderr) == (1, f"mpconv: {expected}\n")


@pytest.mark.parametrize("target", ["", "b.qcow2", "nfs://127.0.0.1/x/y", "iscsi://127.0.0.1/x/1", "/dev/null"])
def test_help_is_qemus(target: str) -> None:
    text, code, _ = qemu(["-O", "qcow2", "-o", "help", *(["a.raw", target] if target else [])])
    assert code == 0 and text.startswith("Supported ")
    assert qcow2_help(target) == text


def test_help_is_printed(folder: Path) -> None:
    for names in ([], ["a.raw", "b.qcow2"]):
        arguments = ["-O", "qcow2", "-o", "cluster_size=huh,help", *names]
        done = mpconv("convert", *arguments)
        assert (done.stdout.rstrip("\n"), done.returncode) == qemu(arguments)[:2]


def test_backing_options_go_before_others() -> None:
    one = found(BACKED, backing="other.qcow2", fmt="qcow2").options()
    assert (one.backing_file, one.backing_fmt) == ("other.qcow2", "qcow2")
    one = found("backing_file=base.raw", fmt="raw").options()
    assert (one.backing_file, one.backing_fmt) == ("base.raw", "raw")


@pytest.mark.parametrize("options", ["encryption=on", "encrypt.format=luks", "encrypt.key-secret=a"])
def test_nothing_is_encrypted(options: str) -> None:
    assert refused(options) == "mpconv cannot encrypt images"


def test_a_backing_file_has_a_name_and_a_format_that_can_be_read() -> None:
    assert refused("backing_file=,backing_fmt=raw") == "b.qcow2: Expected backing file name, got empty string"
    why = "Could not open backing file: mpconv cannot read vmdk images yet"
    assert refused("backing_file=x,backing_fmt=vmdk") == f"Could not open 'b.qcow2': {why}"


def test_no_password_in_a_message() -> None:
    why = wish(["cluster_size=1"], "iscsi://me%sesame@127.0.0.1/x/1", None, None).unmakeable()
    assert why is not None and "me@127.0.0.1" in why and "sesame" not in why


class TestCommands:
    """Whole commands: the same exit code and words as qemu-img's, and no target."""

    @pytest.fixture(autouse=True)
    def images(self, folder: Path) -> None:
        for name in ("a.qcow2", "old.qcow2"):
            subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", name, "64k"], check=True)

    @pytest.mark.parametrize(
        "arguments",
        [
            "-f raw -O qcow2 -B base.raw a.raw b.qcow2",
            "-f raw -O qcow2 -B base.raw -o huh=1 a.raw b.qcow2",
            "-f raw -O qcow2 -B base.raw -o compat=huh a.raw b.qcow2",
            "-f raw -O qcow2 -o backing_file=base.raw a.raw b.qcow2",
            "-f raw -O qcow2 -F raw a.raw b.qcow2",
            "-f raw -O qcow2 -F huh a.raw b.qcow2",
            "-f raw -O qcow2 -B base.raw -F huh a.raw b.qcow2",
            "-f raw -O qcow2 -B base.raw -F raw a.raw a.raw b.qcow2",
            "-f raw -O qcow2 -B base.raw a.raw a.raw b.qcow2",
            f"-f raw -O qcow2 -o {BACKED} a.raw a.raw b.qcow2",
            "-f raw -O qcow2 -B base.raw -F raw -o preallocation=full a.raw b.qcow2",
            "-f raw -O qcow2 -c -o preallocation=metadata a.raw b.qcow2",
            "-f raw -O qcow2 -c -o preallocation=huh,compat=huh a.raw b.qcow2",
            "-f raw -O qcow2 -c -o preallocation=full,backing_file=base.raw a.raw b.qcow2",
            "-f raw -O qcow2 -c -o encryption=on,preallocation=full a.raw b.qcow2",
            "-f raw -O qcow2 -c -o preallocation=full --bitmaps a.raw a.raw b.qcow2",
            "-f raw -O qcow2 -c -C a.raw b.qcow2",
            "-f raw -O qcow2 --bitmaps a.raw a.raw b.qcow2",
            "-f raw -O qcow2 --bitmaps -o compat=huh a.raw b.qcow2",
            "-f raw -O qcow2 -l x -o huh=1 a.raw b.qcow2",
            "-f raw -O qcow2 -l x a.raw a.raw b.qcow2",
            "-f raw -O qcow2 -l snapshot.id=x a.raw a.raw b.qcow2",
            "-f raw -O qcow2 -l snapshot.x=x a.raw b.qcow2",
            "-f raw -O qcow2 -n -o compat=1.1 a.raw b.qcow2",
            "-f raw -O qcow2 -o size=1,, a.raw b.qcow2",
            "-f raw -O qcow2 -o compat=1.1, a.raw b.qcow2",
            "-f raw -O qcow2 -t huh -o cluster_size=1 a.raw b.qcow2",
            "-f raw -O qcow2 -t huh a.raw b.qcow2",
            "-f raw -n -c a.raw base.raw",
            "-f raw -c a.raw b.qcow2",
            "-n -O qcow2 --target-image-opts a.raw driver=qcow2,file.filename=old.qcow2",
            "-n --target-image-opts a.raw driver=qcow2,file.filename=old.qcow2,x=1",
            "-f raw -O qcow9 a.raw b.qcow2",
        ],
    )
    def test_refusals(self, folder: Path, arguments: str) -> None:
        _, code, expected = qemu(arguments.split())
        assert code == 1 and expected
        (folder / "b.qcow2").unlink(missing_ok=True)
        done = mpconv("convert", *arguments.split())
        assert (done.returncode, done.stderr) == (1, f"mpconv: {expected}\n")
        assert not (folder / "b.qcow2").exists()

    @pytest.mark.parametrize(
        ("arguments", "why"),
        [
            ("-O qcow2 -c -o data_file=d.raw a.raw b.qcow2", "Compression and data_file not supported"),
            ("-O qcow2 --compression-level 3 a.raw b.qcow2", "--compression-level requires use of -c flag"),
            ("-O qcow2 -c --compression-level 0 a.raw b.qcow2", "Must be between 1 and 22"),
            ("-O qcow2 -c --compression-level 23 a.raw b.qcow2", "Must be between 1 and 22"),
            ("-O qcow2 -c --compression-level huh a.raw b.qcow2", "Must be between 1 and 22"),
            ("-O qcow2 -c --compression-level 10 a.raw b.qcow2", "Must be between 1 and 9 for zlib"),
            ("-O qcow2 -o encryption=on a.raw b.qcow2", "mpconv cannot encrypt images"),
            ("-O vdi a.raw b.qcow2", "mpconv cannot write vdi images yet"),
            ("-O vdi -o help", "mpconv cannot write vdi images yet"),
            ("-f vmdk a.raw b.qcow2", "mpconv cannot read vmdk images yet"),
            ("-f qcow2 --bitmaps a.qcow2 b.qcow2", "mpconv cannot "),
            (
                "-n -c --target-image-opts a.raw file.filename=base.raw",
                "Compression not supported for this file format",
            ),
        ],
    )
    def test_our_own_refusals(self, folder: Path, arguments: str, why: str) -> None:
        done = mpconv("convert", *arguments.split())
        assert done.returncode == 1
        assert re.fullmatch(f"mpconv: .*{re.escape(why)}.*\n", done.stderr), done.stderr
        assert not (folder / "b.qcow2").exists()

    def test_zero_targets_and_backing_files(self, folder: Path) -> None:
        """qemu-img says so and exits with 0."""
        arguments = ["-n", "-f", "raw", "-O", "qcow2", "--target-is-zero", "-B", "base.raw", "a.raw", "old.qcow2"]
        done = mpconv("convert", *arguments)
        assert (done.returncode, done.stderr) == (1, f"mpconv: {qemu(arguments)[2]}\n")
