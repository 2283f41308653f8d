"""A worker that finds another size than the coordinator does not go on."""

from __future__ import annotations

import asyncio

import pytest

from mpconv.formats.opening import open_source
from mpconv.model.errors import Fatal
from mpconv.model.place import Place
from mpconv.workers.worker import check_sizes


def test_an_image_that_has_grown_or_shrunk_is_refused(tmp_path):
    places = []
    for name in ("a.raw", "b.raw"):
        (tmp_path / name).write_bytes(b"x" * 1024)
        places.append(Place(url=str(tmp_path / name)))

    async def run() -> None:
        image = await open_source(places)
        check_sizes(image, [1024, 1024])
        check_sizes(image, [])
        for sizes in ([1024, 512], [1536, 1024]):
            with pytest.raises(Fatal, match=r"has changed its size from \d+ to 1024 bytes"):
                check_sizes(image, sizes)
        await image.close()

    asyncio.run(run())
