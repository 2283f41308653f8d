"""Where the clusters of each lease go in a target whose format says where its bytes lie: the coordinator's account."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from mpconv.model.errors import ProtocolError
from mpconv.model.extent import Extent
from mpconv.protocol import messages
from mpconv.protocol.job import Clusters

if TYPE_CHECKING:
    from mpconv.formats.qcow2.layout import Layout


class Allocation:
    """What the open leases need and what places they were given; what is written is told to `layout`."""

    def __init__(self, layout: Layout, clusters: Clusters) -> None:
        self.layout = layout
        self._clusters = clusters
        self._needs: dict[int, messages.Ready] = {}
        self._places: dict[int, list[int]] = {}

    def ready(self, message: messages.Ready, extent: Extent) -> None:
        """A lease's needs; told again, they change nothing. ProtocolError unless they are those of its clusters."""
        if message.epoch not in self._needs:
            check_needs(message, extent, self._clusters)
            self._needs[message.epoch] = message

    def token(self, epoch: int, extent: Extent) -> list[int]:
        """The places of a lease that may be written now."""
        self._places[epoch] = self.layout.place(extent, self._needs[epoch].needs)
        return self._places[epoch]

    def done(self, epoch: int, extent: Extent) -> None:
        """The lease is written: its places count."""
        ready = self._needs.pop(epoch)
        self.layout.wrote(extent, ready.needs, self._places.pop(epoch), ready.parts)

    def keep(self, live: Collection[int]) -> None:
        """Other leases than these are over, and their places belong to nobody."""
        for book in (self._needs, self._places):
            for epoch in book.keys() - live:
                del book[epoch]


def check_needs(ready: messages.Ready, extent: Extent, clusters: Clusters) -> None:
    """ProtocolError unless the needs are those of the lease's clusters."""
    count = -(-extent.length // clusters.size)
    if len(ready.needs) != count or max(ready.needs) > clusters.size:
        wanted = f"{count} clusters of {clusters.size} bytes"
        raise ProtocolError(f"the needs of lease {ready.epoch} are not those of {wanted}")
    if clusters.part < clusters.size and len(ready.parts) != count:
        raise ProtocolError(f"the parts of lease {ready.epoch} are not those of {count} clusters")
