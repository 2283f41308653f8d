"""An NFS URL: the server, its exports, the file, the map of its holes."""

from __future__ import annotations

import asyncio
import contextlib

from msgspec.structs import replace

from mpconv.inspection.doctor import nfs_refusals
from mpconv.inspection.doctor.findings import Examination, milliseconds
from mpconv.inspection.doctor.nfs_refusals import Asked
from mpconv.inspection.doctor.reaching import reached
from mpconv.inspection.doctor.rpc import MOUNT, NFS, NFS_PORT, PORTMAPPER_PORT, Declined, Server, may_use_low_ports
from mpconv.model.errors import Absent, Fatal, NoSuchImage
from mpconv.model.units import human
from mpconv.transports.base import Access
from mpconv.transports.native.libnfs import Library
from mpconv.transports.nfs.store import NfsTransport, connect, directory
from mpconv.transports.nfs.url import Address, parse
from mpconv.transports.nfs.v42.compound import What
from mpconv.transports.nfs.v42.opening import open_file, said
from mpconv.transports.nfs.v42.xdr import Malformed

_ASKING = (OSError, EOFError, TimeoutError, Malformed, Declined)


async def examine(found: Examination, url: str, seconds: float) -> NfsTransport | None:
    """What can be known of it without writing: facts, problems, and the file when it could be opened for reading."""
    address = parse(url)
    server = Server(address.host, seconds)
    asked = await _ask(found, address, server, seconds)
    if asked is None:
        return None
    try:
        async with asyncio.timeout(seconds):
            store = await connect(url, Access.READ)
    except NoSuchImage:
        nfs_refusals.missing(found, address)
        await _room(found, url, seconds)
        return None
    except (Fatal, TimeoutError) as error:
        if isinstance(error, Absent):
            asked.root_mounts = await _root_mounts(address, asked, seconds)
        nfs_refusals.refused(found, address, asked, error)
        return None
    version = "4" if address.parameters.get("version") == "4" else "3"
    found.fact("mounted", address.directory, f"{address.directory} by NFSv{version}, as user {store.where.uid}")
    read, write = store.largest
    found.fact(
        "requests", {"read": read, "write": write}, f"reads of up to {human(read)}, writes of up to {human(write)}"
    )
    await _room(found, url, seconds)
    await _holes(found, store, asked, seconds)
    return store


async def _root_mounts(address: Address, asked: Asked, seconds: float) -> bool:
    """Whether the export that the directory lies in can be mounted itself."""
    export = nfs_refusals.around(asked, address.directory)
    if export is None or export.path == address.directory:
        return False
    path = f"{export.path.rstrip('/')}/x"
    try:
        await directory(replace(address, path=path).url, seconds)
    except (Fatal, TimeoutError):
        return False
    return True


async def _room(found: Examination, url: str, seconds: float) -> None:
    """What the server tells of the directory, without anything being written."""
    try:
        found.free, found.creatable = await directory(url, seconds)
    except (Fatal, TimeoutError):
        return
    if found.free is not None:
        found.fact("room", found.free, f"{human(found.free)} free on the server")


async def _ask(found: Examination, address: Address, server: Server, seconds: float) -> Asked | None:
    """Ports, versions, exports; None when nobody is there."""
    parameters = address.parameters
    wanted = parameters.get("version", "3")
    ports = {name: int(parameters[name]) for name in ("nfsport", "mountport") if parameters.get(name, "").isdecimal()}
    nfs, mount = ports.get("nfsport", 0), ports.get("mountport", 0)
    if wanted == "4":
        nfs = nfs or NFS_PORT
    elif not (nfs and mount):
        what = f"the portmapper of {address.host}, which tells the NFS server's ports,"
        fix = (
            "start rpcbind on the server; or name its ports with ?nfsport=2049&mountport=N,"
            " or use NFSv4 with ?version=4, and no portmapper is asked"
        )
        if not await reached(found, address.host, PORTMAPPER_PORT, seconds, what=what, fix=fix):
            return None
        try:
            nfs = nfs or await server.port_of(NFS, 3) or await server.port_of(NFS, 4) or NFS_PORT
            mount = mount or await server.port_of(MOUNT, 3)
        except _ASKING:
            nfs = nfs or NFS_PORT
    if not await reached(found, address.host, nfs, seconds, what="the NFS server"):
        return None
    assert found.round_trip is not None
    where = f"{address.host} port {nfs}"
    told = {"host": address.host, "port": nfs, "round_trip": found.round_trip}
    found.fact("server", told, f"{where}, {milliseconds(found.round_trip)} a round trip")
    asked = Asked(nfs, mount, [], "", may_use_low_ports(), Library().writes_version_4)
    try:
        asked.versions = await server.versions(nfs)
    except TimeoutError:
        nfs_refusals.silent(found)
        return None
    except _ASKING as error:
        asked.why = said(error)
    if asked.versions:
        found.fact("nfs-versions", asked.versions, ", ".join(asked.versions))
    if wanted != "4" and mount:
        with contextlib.suppress(*_ASKING):  # then it is not told what there is
            asked.exports = await server.exports(mount)
    return None if nfs_refusals.wrong_version(found, address, asked, wanted) else asked


async def _holes(found: Examination, store: NfsTransport, asked: Asked, seconds: float) -> None:
    """Whether NFSv4.2 SEEK works on this file, asked as a copy asks it."""
    assert store.facts is not None
    why = ""
    try:
        client, _ = await open_file(store.where, store.facts.are_of, seconds=seconds)
        try:
            if store.size:
                await client.seek(0, What.HOLE)
        finally:
            await client.close()
    except Exception as error:
        why = said(error)
    if not why:
        found.fact("hole-map", True, "yes, by NFSv4.2 SEEK: holes are not read")
        return
    found.fact("hole-map", False, f"no: {why}")
    version = "" if "4.2" in asked.versions else "the server does not offer NFSv4.2; "
    fix = "allow it (Linux: vers4.2=y in /etc/nfs.conf; ganesha: Protocols 3,4 and Minor_Versions 0,1,2)"
    found.advise(
        "no-hole-map",
        f"holes of this file cannot be seen ({version}{why}): a copy reads all of it, and writes zeros to it",
        fix if version else "see in the server's log why it refuses, or let it be: copies are right without",
    )
