"""An iSCSI URL: the portal, the login, the LUN's limits and what it promises of zeros."""

from __future__ import annotations

import asyncio

from mpconv.inspection.doctor import iscsi_refusals
from mpconv.inspection.doctor.findings import Examination, milliseconds
from mpconv.inspection.doctor.reaching import reached
from mpconv.model.errors import Fatal, StatusWithdrawn
from mpconv.model.units import human
from mpconv.transports.base import Access
from mpconv.transports.iscsi.login import initiator_name, parse
from mpconv.transports.iscsi.store import IscsiTransport, Traits, connect

_NO_LIMIT = 0xFFFFFFFF
_THIN_FIX = (
    "make it thin on the target (tgt: tgtadm --op update --mode logicalunit --tid T --lun L --params"
    " thin_provisioning=1; LIO: set the attributes emulate_tpu=1 and emulate_tpws=1), or let it be: copies are right"
    " without"
)


async def examine(found: Examination, url: str, seconds: float) -> IscsiTransport | None:
    """What can be known of it without writing: facts, problems, and the LUN when it could be opened for reading."""
    address = parse(url)
    what = "the iSCSI portal"
    if not await reached(found, address.host, address.port, seconds, what=what):
        return None
    assert found.round_trip is not None
    where = f"{address.host} port {address.port}"
    told = {"host": address.host, "port": address.port, "round_trip": found.round_trip}
    found.fact("server", told, f"{where}, {milliseconds(found.round_trip)} a round trip")
    chap = f", with CHAP as '{address.user}'" if address.user else ""
    found.fact("initiator", initiator_name(), f"{initiator_name()}{chap}")
    try:
        async with asyncio.timeout(seconds):
            store = await connect(url, Access.READ)
    except (Fatal, TimeoutError) as error:
        await iscsi_refusals.refused(found, address, error, seconds)
        return None
    await _lun(found, store, store.traits)
    return store


async def _lun(found: Examination, store: IscsiTransport, traits: Traits) -> None:
    block, limits, capacity = traits.capacity.block_size, traits.limits, traits.capacity
    found.fact("device", traits.product, traits.product or "tells no name")
    found.fact("block-size", block, f"{block} bytes")
    most, optimal = limits.largest_transfer * block, limits.optimal_transfer * block
    text = f"up to {human(most)}" if most else "no limit told"
    found.fact(
        "requests",
        {"largest": most or None, "optimal": optimal or None, "used": store.limits.largest_read},
        f"{text}{f', best {human(optimal)}' if optimal else ''}; mpconv's are up to {human(store.limits.largest_read)}",
    )
    found.fact(
        "thin", capacity.thin, "yes (LBPME)" if capacity.thin else "no: it does not say that blocks can be unmapped"
    )
    if capacity.thin:
        promise = "yes (LBPRZ)" if capacity.zeroes else "not promised (no LBPRZ)"
        found.fact("unmapped-zeros", capacity.zeroes, promise)
        found.fact("unmap", _unmap(traits), _unmap_words(traits))
    found.fact("zeros", [means.words for means in traits.means], traits.means[0].words)
    lie = ""
    try:
        await store.block_status(0, store.size)
    except StatusWithdrawn as error:
        lie = error.why
    if lie:
        found.fact("hole-map", False, "no: what the target says of its holes cannot be true")
        what = f"{lie}: a copy of the LUN reads everything"
        found.problem(
            "holes-lie", what, "see for a newer version of the target's software; other programs may believe it"
        )
    elif store.tells_status:
        found.fact("hole-map", True, "yes, by GET LBA STATUS: holes are not read")
    elif capacity.thin and capacity.zeroes:
        found.fact("hole-map", False, "no: the target refuses GET LBA STATUS")
        what = "the target refuses GET LBA STATUS: a copy of the LUN reads everything"
        found.advise("no-hole-map", what, "see whether a newer target software knows it (tgt does; LIO does not)")
    else:
        found.fact(
            "hole-map", False, "no: " + ("nothing is promised of unmapped blocks" if capacity.thin else "not thin")
        )
    if not capacity.thin:
        what = "the LUN is not thinly provisioned: its holes cannot be seen, and zeros take up room on it"
        found.advise("not-thin", what, _THIN_FIX)
    elif not capacity.zeroes:
        what = "no promise that unmapped blocks read as zeros (LBPRZ): nothing is unmapped, zeros are written"
        found.advise(
            "no-zero-promise", what, "see whether the target's storage can promise it (LIO: unmap_zeroes_data=1)"
        )


def _write_same(traits: Traits) -> bool:
    """Whether it can unmap."""
    return traits.provisioning.write_same or traits.provisioning.write_same10


def _unmap(traits: Traits) -> dict[str, object]:
    limits, block = traits.limits, traits.capacity.block_size
    most = None if limits.largest_unmap == _NO_LIMIT else limits.largest_unmap * block
    return {
        "unmap": traits.provisioning.unmap,
        "write_same": _write_same(traits),
        "largest": most,
        "descriptors": None if limits.unmap_descriptors == _NO_LIMIT else limits.unmap_descriptors,
        "granularity": limits.unmap_granule * block,
        "alignment": limits.unmap_aligned * block,
    }


def _unmap_words(traits: Traits) -> str:
    limits, block = traits.limits, traits.capacity.block_size
    ways = [word for word, has in (("UNMAP", traits.provisioning.unmap), ("WRITE SAME", _write_same(traits))) if has]
    most = "no limit told" if limits.largest_unmap == _NO_LIMIT else f"up to {human(limits.largest_unmap * block)}"
    return f"{' and '.join(ways) or 'no command for it'}; {most}, in units of {human(limits.unmap_granule * block)}"
