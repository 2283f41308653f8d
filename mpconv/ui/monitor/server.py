"""Serves what is known of jobs, on the event loop that runs them: a page that follows them, and metrics. GET only.

Nothing in here may hurt a copy: what a client does not take is not kept for it, and what fails ends that client alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import os
import secrets
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

from aiohttp import web

from mpconv.model.errors import Fatal
from mpconv.protocol.descriptors import share
from mpconv.ui.monitor.address import Address
from mpconv.ui.monitor.facts import Job
from mpconv.ui.monitor.places import Places

if TYPE_CHECKING:
    from mpconv.ui.monitor.events import Live

Middleware = Callable[[web.Request], None]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Facts = Callable[[], Sequence[Job]]
_PARTING = 1.0
"""Seconds that clients have to hear the last of it."""
_PLACES = 8, 32, 256
"""Connections at once: one in so many descriptors, within these bounds."""
_TOKEN_BYTES = 18
_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_PLACES_OF: web.AppKey[list[Places]] = web.AppKey("places")
_silent = logging.getLogger("mpconv.ui.monitor")
_silent.addHandler(logging.NullHandler())
_silent.propagate = False


@contextlib.asynccontextmanager
async def serving(
    facts: Facts, metrics: Address | None, page: Address | None, *, journals: bool = False
) -> AsyncIterator[list[str]]:
    """Serve while the context lasts; what to tell people of it. Fatal when an address cannot be had. `journals`: as
    Live's.
    """
    told = []
    async with contextlib.AsyncExitStack() as around:
        if metrics is not None:
            url = await around.enter_async_context(_site(_metrics(facts, metrics), metrics, "--metrics"))
            told.append(f"metrics at {url}/metrics")
        if page is not None:
            from mpconv.ui.monitor.events import Live  # noqa: PLC0415  (metrics do without)

            live = Live(facts, journals=journals)
            token = None if page.loopback else secrets.token_urlsafe(_TOKEN_BYTES)
            url = await around.enter_async_context(_site(_page(live, token, page), page, "--web"))
            await around.enter_async_context(live.running(_PARTING))
            told.append(f"watch at {url}/" + ("" if token is None else f"?token={token}"))
        yield told


@contextlib.asynccontextmanager
async def _site(app: web.Application, address: Address, option: str) -> AsyncIterator[str]:
    runner = web.AppRunner(app, handle_signals=False, access_log=None, logger=_silent, shutdown_timeout=0.1)
    await runner.setup()
    try:
        assert runner.server is not None
        places = Places(runner.server, share(*_PLACES))
        app[_PLACES_OF].append(places)
        try:
            port = await places.listen(address.host or None, address.port)
        except OSError as error:
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else (error.strerror or str(error))
            where = f"{address.host or '*'}:{address.port}"
            raise Fatal(f"{option}: cannot listen on {where}: {why}: choose another address or port") from error
        try:
            yield address.url(port, socket.gethostname())
        finally:
            places.close()
    finally:
        await runner.cleanup()


def _app(middleware: Middleware) -> web.Application:
    """`middleware`: lets in, or raises. Connections are kept for answers that go on alone."""

    @web.middleware
    async def admitting(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            middleware(request)
        except web.HTTPException as refusal:
            refusal.force_close()  # it keeps no place
            raise
        for places in request.app[_PLACES_OF]:
            places.asked(request.transport)
        response = await handler(request)
        response.force_close()
        return response

    app = web.Application(middlewares=[admitting])
    app[_PLACES_OF] = []
    return app


def _metrics(facts: Facts, address: Address) -> web.Application:
    from mpconv.ui.monitor.metrics import CONTENT_TYPE, exposition  # noqa: PLC0415  (the page does without)

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(body=exposition(facts()), headers={"Content-Type": CONTENT_TYPE, **_HEADERS})

    def own(request: web.Request) -> None:
        """This host alone, by a name that no other site can take, where it is for this host."""
        if address.loopback:
            _check_name(request, address)

    app = _app(own)
    app.router.add_get("/metrics", answer, allow_head=False)
    return app


def _page(live: Live, token: str | None, address: Address) -> web.Application:
    from mpconv.ui.monitor.page import live_page, policy  # noqa: PLC0415  (metrics do without)

    def admitted(request: web.Request) -> None:
        """Who may look: whoever has the token; without one, this host, by a name that no other site can take."""
        if token is None:
            _check_name(request, address)
            return
        given = request.query.get("token", "")
        if not hmac.compare_digest(given.encode(), token.encode()):
            raise web.HTTPForbidden(text="403: open the URL that mpconv printed, with its token\n")

    async def page(_: web.Request) -> web.StreamResponse:
        nonce = secrets.token_urlsafe(_TOKEN_BYTES)
        headers = {"Content-Security-Policy": policy(nonce), **_HEADERS}
        return web.Response(text=live_page(nonce), content_type="text/html", headers=headers)

    async def events(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **_HEADERS})
        client = request.remote or ""
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        if not live.room(client):
            raise web.HTTPServiceUnavailable(text="503: too many are watching\n")
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            async for message in live.messages(client, transport.abort):
                await response.write(message)
        return response

    app = _app(admitted)
    app.router.add_get("/", page, allow_head=False)
    app.router.add_get("/events", events, allow_head=False)
    return app


def _check_name(request: web.Request, address: Address) -> None:
    if not _own_name(request.host, address):
        raise web.HTTPForbidden(text="403: open it as http://127.0.0.1 or http://localhost\n")


def _own_name(host: str, address: Address) -> bool:
    """Whether the Host header names this host's own address: another name may be a page of somebody else's that has had
    its name point here.
    """
    name = host.rpartition(":")[0] if not host.endswith("]") and ":" in host else host
    return name.strip("[]") in {"localhost", "127.0.0.1", "::1", address.host}
