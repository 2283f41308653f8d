"""`--image-opts`, beside qemu-img's own reading of the same text."""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec
import pytest

from mpconv.cli.qemu.image_opts import names_format, parse_image_opts
from mpconv.model.errors import UsageError
from mpconv.model.place import Place
from mpconv.model.units import GiB, MiB

NFS = "driver=nfs,server.type=inet,server.host=127.0.0.1"
ISCSI = "driver=iscsi,transport=tcp,portal=127.0.0.1:3260,target=iqn.x:y"
RAW = "driver=raw,file.filename=a.raw"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "a.raw").write_bytes(bytes(MiB))
    (tmp_path / "huh:x").write_bytes(b"c" * 1024)
    (tmp_path / "a,b").write_bytes(bytes(512))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def qemu_says(text: str) -> str:
    """qemu-img's first line on stderr, without its name; empty when it opens the image."""
    done = subprocess.run(
        ["qemu-img", "info", "--image-opts", text], capture_output=True, text=True, check=False, timeout=20
    )
    return done.stderr.partition("\n")[0].removeprefix("qemu-img: ")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("driver=raw,file.driver=file,file.filename=a.raw", Place(url="a.raw")),
        (RAW, Place(url="a.raw")),
        ("file.filename=a.raw", Place(url="a.raw")),
        ("driver=file,filename=a.raw", Place(url="a.raw")),
        (f"{RAW},", Place(url="a.raw")),
        (f"{RAW},offset=512,size=1k", Place(url="a.raw", offset=512, size=1024)),
        (f"{RAW},offset=0x200", Place(url="a.raw", offset=512)),
        (f"{RAW},size=0", Place(url="a.raw", size=0)),
        (f"{RAW},cache.direct=on", Place(url="a.raw", direct=True)),
        (f"{RAW},file.cache.direct=yes,file.aio=native", Place(url="a.raw", direct=True)),
        (f"{RAW},cache.direct=on,file.cache.direct=off", Place(url="a.raw")),
        (
            f"{RAW},read-only=on,file.locking=off,force-share=on,node-name=x,discard=unmap",
            Place(url="a.raw", shared=True),
        ),
        ("driver=file,filename=a,,b", Place(url="a,b")),
        ("driver=raw,file.filename=no,file.filename=a.raw", Place(url="a.raw")),
        ("driver=raw,file.filename=huh:x", Place(url="file:huh:x")),
        ("driver=host_device,filename=/dev/null", Place(url="/dev/null")),
        ("driver=raw,file.filename=/dev/null", Place(url="/dev/null")),
        ("driver=null-co", Place(url=f"null:?size={GiB}")),
        ("driver=null-co,size=1M", Place(url=f"null:?size={MiB}")),
        ("driver=raw,file.driver=null-co,file.size=4k,file.read-zeroes=on", Place(url="null:?size=4096")),
        (
            "driver=raw,offset=512,file.driver=raw,file.offset=1k,file.size=4k,file.file.filename=a.raw",
            Place(url="a.raw", offset=1536, size=3584),
        ),
    ],
)
def test_what_qemu_opens_is_found_too(folder: Path, text: str, place: Place) -> None:
    assert qemu_says(text) == ""
    assert parse_image_opts(text) == msgspec.structs.replace(place, format="raw" if names_format(text) else None)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ",",
        "a.raw",
        "a=b",
        "filename=a.raw",
        "driver=raw",
        "driver=file",
        "driver=file,filename=",
        "driver=file,filename=.",
        "driver=file,file=a.raw",
        "driver=file,file.filename=a.raw",
        "driver=raw,file.driver=file",
        "driver=raw,filename=a.raw",
        "driver=raw,file=a.raw",
        "driver=raw,file.x=1",
        "driver=huh,file.filename=a.raw",
        "driver=,file.filename=a.raw",
        "driver=raw,file.driver=huh",
        "file.read-only=on",
        "file=x,file.filename=a.raw",
        "id=huh,driver=raw,file.filename=a.raw",
        "driver=file,filename=a.raw,x=1",
        "driver=file,filename=a.raw,offset=5",
        "driver=raw,file.driver=file,file.filename=/dev/null",
        "driver=host_device",
        "driver=host_device,filename=a.raw",
        "driver=raw,file.driver=host_device,file.filename=/dev/null,file.x=1",
        f"{RAW},x=1",
        f"{RAW},=x",
        f"{RAW},x=1,file.y=1",
        f"{RAW},file.file.filename=x",
        f"{RAW},cache.x=on",
        f"{RAW},locking=off",
        f"{RAW},cache.direct=huh",
        f"{RAW},read-only=huh",
        f"{RAW},file.locking=huh",
        f"{RAW},file.aio=huh",
        f"{RAW},file.aio=native",
        f"{RAW},file.aio-max-batch=huh",
        f"{RAW},file.pr-manager=x",
        f"{RAW},discard=huh",
        f"{RAW},detect-zeroes=huh",
        f"{RAW},detect-zeroes=unmap",
        f"{RAW},node-name=1huh",
        f"{RAW},size=huh",
        f"{RAW},size=",
        f"{RAW},size=1.5",
        f"{RAW},offset=-1",
        f"{RAW},offset=16E",
        "driver=raw,size=8k,file.driver=raw,file.size=4k,file.file.filename=a.raw",
        "driver=raw,offset=8k,file.driver=raw,file.size=4k,file.file.filename=a.raw",
        "driver=null-co,size=1M,x=1",
        "driver=null-co,size=1M,filename=null-co://",
        "driver=null-co,latency-ns=-1",
        "driver=nfs",
        "driver=nfs,filename=nfs://127.0.0.1/x/y",
        "driver=nfs,server=x,path=/x/y",
        "driver=nfs,server.host=127.0.0.1,path=/x/y",
        "driver=nfs,server.type=inet,path=/x/y",
        "driver=nfs,server.type=huh,server.host=x,path=/x/y",
        NFS,
        f"{NFS},path=/x,y=2",
        f"{NFS},path=y",
        f"{NFS},path=/x/y,user=huh",
        f"{NFS},path=/x/y,group=5x",
        f"{NFS},path=/x/y,server.port=5",
        "driver=iscsi",
        "driver=iscsi,filename=iscsi://127.0.0.1/x/1",
        "driver=iscsi,transport=huh,portal=127.0.0.1,target=x",
        f"{ISCSI},lun=huh",
        f"{ISCSI},lun=5x",
        f"{ISCSI},header-digest=huh",
        f"{ISCSI},timeout=huh",
    ],
)
def test_what_qemu_refuses_is_refused_in_its_words(folder: Path, text: str) -> None:
    expected = qemu_says(text)
    assert expected.startswith(f"Could not open '{text}': ")
    with pytest.raises(UsageError) as caught:
        parse_image_opts(text)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("text", "url"),
    [
        (f"{NFS},path=/export/a.raw", "nfs://127.0.0.1/export/a.raw"),
        (
            f"driver=raw,{NFS}".replace("driver=nfs,server", "file.driver=nfs,file.server").replace(
                ",server.host", ",file.server.host"
            )
            + ",file.path=/export/a.raw",
            "nfs://127.0.0.1/export/a.raw",
        ),
        (f"{NFS},path=/export/a?b,user=5,group=6", "nfs://127.0.0.1/export/a%3Fb?uid=5&gid=6"),
        ("driver=nfs,server.type=inet,server.host=::1,path=/e/a", "nfs://[::1]/e/a"),
        (f"{ISCSI},lun=3", "iscsi://127.0.0.1:3260/iqn.x:y/3"),
        (ISCSI, "iscsi://127.0.0.1:3260/iqn.x:y/0"),
        (f"{ISCSI},user=me", "iscsi://me@127.0.0.1:3260/iqn.x:y/0"),
        (f"{ISCSI},user=me,password=se,,same", "iscsi://me%se,same@127.0.0.1:3260/iqn.x:y/0"),
        (f"{ISCSI}/z,header-digest=NONE,timeout=5", "iscsi://127.0.0.1:3260/iqn.x:y%2Fz/0"),
    ],
)
def test_network_stores_become_urls(text: str, url: str) -> None:
    assert parse_image_opts(text) == Place(url=url, format="raw")


@pytest.mark.parametrize(
    "text",
    [
        f"{ISCSI},user=me,password=ses@me",
        f"{ISCSI},user=me,password=sesame,x=1",
        f"{ISCSI},user=me,password=sesa,,me,lun=huh",
        f"{ISCSI},user=me,password=sesame,password-secret=a",
        f"driver=raw,{ISCSI}".replace(",", ",file.") + ",file.password=sesame,file.lun=huh",
        f"{ISCSI},passwd=sesame",
        "iscsi://me%sesame@host/target/1",
        "driver=raw,file=iscsi://me%ses/ame@host/target/1",
    ],
)
def test_no_password_in_a_message(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_image_opts(text)
    message = str(caught.value)
    assert message.startswith("Could not open '")
    assert not any(part in message for part in ("sesame", "ses@me", "sesa,", "ame@"))


def test_secrets_are_refused_with_a_way_out() -> None:
    with pytest.raises(UsageError, match="LIBISCSI_CHAP_PASSWORD"):
        parse_image_opts(f"{ISCSI},user=me,password-secret=sec0")


def test_other_formats_are_not_read_as_raw(folder: Path) -> None:
    with pytest.raises(UsageError, match=r": mpconv cannot read vmdk images yet$"):
        parse_image_opts("driver=vmdk,file.filename=a.raw")


@pytest.fixture
def qcow2(folder: Path) -> None:
    """a.qcow2, and p.raw in which it begins at byte 512."""
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "a.qcow2", "1M"], check=True)
    (folder / "p.raw").write_bytes(bytes(512) + (folder / "a.qcow2").read_bytes())


QCOW2 = "driver=qcow2,file.filename=a.qcow2"


@pytest.mark.usefixtures("qcow2")
@pytest.mark.parametrize(
    ("text", "place"),
    [
        (QCOW2, Place(url="a.qcow2")),
        ("driver=qcow2,file.driver=file,file.filename=a.qcow2", Place(url="a.qcow2")),
        (
            "driver=qcow2,file.driver=raw,file.offset=512,file.file.filename=p.raw",
            Place(url="p.raw", offset=512),
        ),
        ("driver=raw,file.driver=qcow2,file.file.filename=a.qcow2", Place(url="a.qcow2")),
        (f"{QCOW2},cache.direct=on,force-share=on", Place(url="a.qcow2", direct=True, shared=True)),
        (f"{QCOW2},lazy-refcounts=on,pass-discard-other=off,l2-cache-size=1M", Place(url="a.qcow2")),
        (f"{QCOW2},overlap-check=none,cache-clean-interval=5", Place(url="a.qcow2")),
        (f"{QCOW2},overlap-check.template=all,overlap-check.main-header=on", Place(url="a.qcow2")),
    ],
)
def test_qcow2_is_found_as_qcow2(text: str, place: Place) -> None:
    assert qemu_says(text) == ""
    assert parse_image_opts(text) == msgspec.structs.replace(place, format="qcow2")


@pytest.mark.usefixtures("qcow2")
@pytest.mark.parametrize(
    "text",
    [
        "driver=qcow2",
        "driver=qcow2,filename=a.qcow2",
        "driver=qcow2,file=a.qcow2",
        f"{QCOW2},x=1",
        f"{QCOW2},file.x=1",
        f"{QCOW2},offset=1",
        f"{QCOW2},lazy-refcounts=huh",
        f"{QCOW2},pass-discard-snapshot=huh",
        f"{QCOW2},cache-size=huh",
        f"{QCOW2},cache-clean-interval=huh",
        f"{QCOW2},overlap-check=huh",
        f"{QCOW2},overlap-check.huh=on",
        f"{QCOW2},overlap-check.main-header=huh",
    ],
)
def test_wrong_options_of_qcow2_are_refused_in_qemus_words(text: str) -> None:
    expected = qemu_says(text)
    assert expected.startswith(f"Could not open '{text}': ")
    with pytest.raises(UsageError) as caught:
        parse_image_opts(text)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"{QCOW2},backing.driver=raw,backing.file.filename=a.raw", "takes no 'backing' from here"),
        (f"{QCOW2},backing=", "takes no 'backing' from here"),
        (f"{QCOW2},data-file.filename=a.raw", "takes no 'data-file' from here"),
        (f"{QCOW2},encrypt.key-secret=x", "cannot decrypt"),
        ("driver=raw,size=4k,file.driver=qcow2,file.file.filename=a.qcow2", "no part of a qcow2 image"),
        ("driver=qcow2,file.driver=qcow2,file.file.filename=a.qcow2", "no qcow2 image inside another"),
    ],
)
def test_what_only_qemu_does_with_qcow2_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        parse_image_opts(text)


@pytest.mark.parametrize("option", ["read-only=on", "file.read-only=on"])
def test_a_target_must_not_be_read_only(folder: Path, option: str) -> None:
    (folder / "b.raw").write_bytes(bytes(MiB))
    target = f"driver=raw,file.filename=b.raw,{option}"
    done = subprocess.run(
        ["qemu-img", "convert", "-n", "--image-opts", RAW, "--target-image-opts", target],
        capture_output=True,
        text=True,
        check=False,
    )
    with pytest.raises(UsageError) as caught:
        parse_image_opts(target, writable=True)
    assert done.stderr == f"qemu-img: {caught.value}\n"
    assert parse_image_opts(target).url == "b.raw"


def test_without_a_driver_the_format_is_open() -> None:
    assert not names_format("file.filename=a.raw,file.driver=file")
    assert names_format(RAW)
    assert names_format("driver=file,filename=a.raw")
