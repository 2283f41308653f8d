"""By what a store is known again: the same whoever asks, other for another store, even one of the same name."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from mpconv import transports
from mpconv.model.place import Place
from mpconv.model.units import MiB
from mpconv.transports.base import Access, Fingerprint
from tests.transports.file.test_devices import loop, mounted  # noqa: F401  (fixtures)


def fingerprint(url: str, *, write: bytes = b"", create: int | None = None) -> Fingerprint:
    """Of a connection of its own, after something was written through it."""

    async def run() -> Fingerprint:
        store = await transports.connect(url, Access.WRITE if write or create else Access.READ, create_size=create)
        if write:
            await store.write(0, memoryview(write))
            await store.flush()
        found = await store.fingerprint()
        await store.close()
        return found

    return asyncio.run(run())


def test_a_file(tmp_path: Path):
    path = tmp_path / "a"
    first = fingerprint(str(path), create=MiB)
    assert fingerprint(str(path)) == first
    assert first.content["its size"] == str(MiB) and len(first.same) == 2
    stamp = path.stat().st_mtime_ns - 1
    os.utime(path, ns=(stamp, stamp))
    written = fingerprint(str(path), write=b"x")
    assert written.same == first.same
    assert written.content != fingerprint(str(path), create=MiB).content
    path.unlink()
    again = fingerprint(str(path), create=MiB)
    assert again.same != first.same, "an inode that is used again is another file"


def test_a_block_device(loop, tmp_path: Path):  # noqa: F811
    backing, other = tmp_path / "a", tmp_path / "b"
    for path in (backing, other):
        path.write_bytes(bytes(MiB))
    one, two = fingerprint(loop(backing)), fingerprint(loop(other))
    assert one.same != two.same
    assert one.content == two.content == {"its size": str(MiB)}


def test_a_part_is_known_by_the_whole(tmp_path: Path):
    path = tmp_path / "a"
    path.write_bytes(bytes(MiB))

    async def run() -> Fingerprint:
        store = await transports.open_place(Place(url=str(path), offset=512, size=1024), Access.READ)
        found = await store.fingerprint()
        await store.close()
        return found

    assert asyncio.run(run()) == fingerprint(str(path))


def test_a_file_over_nfs(nfs):
    one, two = (fingerprint(nfs.url(name), create=MiB) for name in ("print-a", "print-b"))
    assert one.same != two.same
    assert set(one.same) == {"its inode", "its file handle"} and all(one.same.values())
    changed = fingerprint(nfs.url("print-a"), write=b"x")
    assert changed.same == one.same
    after = fingerprint(nfs.url("print-a"))
    assert after.same == one.same and after.content["modified at"] > one.content["modified at"]


def test_a_lun(lun):
    first, second = lun(MiB), lun(MiB, block_size=4096)
    one, two = fingerprint(first.url), fingerprint(second.url)
    assert fingerprint(first.url, write=b"x" * 512) == one
    assert one.same["its serial number"] != two.same["its serial number"]
    assert one.same["its designators"] != two.same["its designators"]
    assert (one.same["its block size"], two.same["its block size"]) == ("512", "4096")


def test_what_is_no_store_of_its_own():
    assert fingerprint("null:?size=1M") == Fingerprint({}, {})
