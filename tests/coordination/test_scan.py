"""The walk over block status, beside the coordinator's other work."""

from __future__ import annotations

import asyncio

from mpconv.coordination.scan import StatusScan
from mpconv.formats.raw import RawImage
from mpconv.model.extent import Extent
from mpconv.transports.base import Access
from mpconv.transports.null import connect
from tests.workers.test_copier import job


def test_a_huge_image_leaves_time_for_others():
    size = 1 << 60
    reached = 0

    def found(extents: tuple[Extent, ...]) -> int:
        nonlocal reached
        reached = extents[-1].end
        return 1

    async def others() -> None:
        source = RawImage(await connect(f"null:?size={size}", Access.READ))
        walking = asyncio.ensure_future(StatusScan(source, job(size), 1, found).run())
        for _ in range(3):
            await asyncio.sleep(0)
        assert 0 < reached < size
        walking.cancel()
        await asyncio.gather(walking, return_exceptions=True)

    asyncio.run(asyncio.wait_for(others(), 30))
