"""Who gets a place at the live page."""

from __future__ import annotations

import asyncio

from mpconv.ui.monitor import events
from mpconv.ui.monitor.events import Live


def test_one_client_cannot_take_all_places():
    async def main() -> list[str]:
        page = Live(list, journals=False)
        ended: list[str] = []
        streams = []

        async def come(name: str) -> bool:
            if not page.room(name):
                return False
            stream = page.messages(name, lambda: ended.append(name))
            streams.append((stream, asyncio.ensure_future(anext(stream))))
            await asyncio.sleep(0)
            return True

        for _ in range(events._MOST):
            assert await come("greedy")
        assert not await come("greedy")
        assert await come("other") and await come("third") and await come("other")
        assert not await come("greedy")
        for stream, waiting in streams:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await stream.aclose()
        return ended

    assert asyncio.run(main()) == ["greedy"] * 3
