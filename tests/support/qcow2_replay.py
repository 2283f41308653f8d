"""Any bytes, read as a qcow2 image as a copy reads one; for the fuzzer, and for the suite to replay what it found."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import struct
import zlib

import zstandard

from mpconv.formats.opening import OpenOptions, open_source
from mpconv.formats.qcow2 import header
from mpconv.model.errors import Fatal, ImageError
from mpconv.model.extent import Kind
from mpconv.model.place import Place, Trust
from mpconv.transports import memory
from tests.support.qcow2_bytes import COPIED, Draft, compressed, snapshot_entry

WIDE = b"WIDE"
URL = "memory:fuzzed/image"
KiB, MiB = 1 << 10, 1 << 20
_MOST_BYTES = MiB
_MOST_ANSWERS = 64
_loop = asyncio.new_event_loop()


def spread(content: bytes) -> bytearray:
    """After the word WIDE each 512 bytes begin a cluster of 16 KiB, the least that has subclusters."""
    if not content.startswith(WIDE):
        return bytearray(content)
    pieces = range(len(WIDE), len(content), 512)
    return bytearray().join(content[at : at + 512].ljust(16 * KiB, b"\0") for at in pieces)


def replay(content: bytes) -> None:
    """Refusals are errors of mpconv's own; anything else comes out."""
    memory._stores[URL] = spread(content)
    memory._stores["memory:fuzzed/base"] = bytearray(b"\xba" * 8192)
    memory._stores["memory:fuzzed/data"] = bytearray(b"\xda" * 16384)
    for snapshot in (None, "1"):
        try:
            _loop.run_until_complete(_read(snapshot))
        except Fatal as error:
            assert "\n" not in str(error)


async def _read(snapshot: str | None) -> None:
    place = Place(url=URL, format="qcow2", snapshot=snapshot)
    image = await open_source([place], OpenOptions(trust=Trust(backing=[""], data_file=True)))
    try:
        at = asked = 0
        while at < image.size and asked < _MOST_ANSWERS:
            asked += 1
            try:
                extents = await image.block_status(at, image.size - at)
            except ImageError:
                at += (
                    image.header.cluster_size if hasattr(image, "header") else 512
                )  # it goes on behind what is damaged
                continue
            assert extents[0].start == at and extents[-1].end <= image.size
            for one, other in itertools.pairwise(extents):
                assert one.end == other.start
            for extent in extents[:_MOST_ANSWERS]:
                buffer = bytearray(b"\xa5" * min(extent.length, _MOST_BYTES))
                try:
                    await image.read_into(extent.start, memoryview(buffer))
                except ImageError:
                    continue
                assert extent.kind is not Kind.ZERO or not any(buffer)
            at = extents[-1].end
        for start, length in ((0, _MOST_BYTES), (100, 700), (image.size // 2, 33 * KiB)):
            if start < image.size:
                with contextlib.suppress(ImageError):
                    await image.read_into(start, memoryview(bytearray(min(length, image.size - start))))
    finally:
        await image.close()


def _deflated(content: bytes) -> bytes:
    stream = zlib.compressobj(9, zlib.DEFLATED, -12)
    return stream.compress(content) + stream.flush()


def seeds() -> dict[str, bytes]:
    """Small images that have a bit of everything."""
    text = b"0123456789abcdef" * 32
    deflated, frame = _deflated(text), zstandard.ZstdCompressor().compress(text)
    data = [COPIED | at * 512 for at in (5, 6, 7)]
    names = header.Extension
    drafts = {
        "plain": Draft(l2=(*data, 0, 1, COPIED | 5 * 512 | 1, 0, data[0]), at={3072: text, 3584: text}),
        "version2": Draft(version=2, l2=(data[0], 0, compressed(3072, 100, 9)), at={3072: deflated}),
        "deflate": Draft(l2=tuple(compressed(at, len(deflated), 9) for at in (3072, 3100)), at={3072: deflated * 3}),
        "zstd": Draft(
            incompatible=header.COMPRESSION,
            compression=1,
            l2=(compressed(3072, len(frame), 9),) * 3,
            at={3072: frame * 2},
        ),
        "backing": Draft(backing_name=b"base", extensions=((names.BACKING_FORMAT, b"raw", None),), l2=(0, *data, 1)),
        "probed": Draft(backing_name=b"base", size=20000, l2=(0, 1)),
        "loop": Draft(backing_name=b"image", extensions=((names.BACKING_FORMAT, b"qcow2", None),)),
        "datafile": Draft(
            incompatible=header.DATA_FILE,
            autoclear=header.DATA_FILE_RAW,
            extensions=((names.DATA_FILE, b"data", None),),
            l2=(COPIED, COPIED | 512, 1, COPIED | 1536 | 1),
        ),
        "features": Draft(
            incompatible=1 << 9, extensions=((names.FEATURES, struct.pack(">BB46s", 0, 9, b"odd"), None),)
        ),
        "bitmaps": Draft(autoclear=1, extensions=((names.BITMAPS, struct.pack(">IIQQ", 1, 0, 32, 2560), None),)),
        "snapshots": Draft(
            snapshots=2,
            snapshots_offset=3072,
            at={
                3072: snapshot_entry(1536, 1, b"one") + snapshot_entry(3584, 1, b"1", 24),
                3584: struct.pack(">Q", 2048),
            },
        ),
        "two": Draft(
            size=100 * 512, l1_size=2, l1=(COPIED | 2048, COPIED | 3072), at={3072: struct.pack(">2Q", *data[:2])}
        ),
    }
    wide = Draft(
        bits=14,
        size=20 << 14,
        incompatible=header.EXTENDED_L2,
        l2=(
            COPIED | 5 << 14,
            0xFFFFFFFF,
            COPIED | 5 << 14,
            0x0000F0F0_0F0F0F00,
            0,
            0xFFFF << 40,
            compressed(5 << 14, 100, 14),
            0,
        ),
        at={5 << 14: deflated},
    )
    clusters = wide.bytes()
    pieces = b"".join(clusters[at : at + 512] for at in range(0, len(clusters), 1 << 14))
    return {
        **{name: bytes(draft.bytes()) for name, draft in drafts.items()},
        "subclusters": WIDE + pieces,
        "nothing": b"",
    }
