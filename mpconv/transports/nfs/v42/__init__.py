"""What NFSv3 cannot do, over an NFSv4.2 connection of its own: a map of a file's holes (SEEK), and holes made
(DEALLOCATE).

No libnfs speaks NFSv4.2. Metadata alone goes this way, but for a few bytes that prove that it is the same file; the
data travels elsewhere.
"""

from mpconv.transports.nfs.v42.deallocator import Deallocator
from mpconv.transports.nfs.v42.hole_map import FileFacts, HoleMap, connect
from mpconv.transports.nfs.v42.opening import Where

__all__ = ["Deallocator", "FileFacts", "HoleMap", "Where", "connect"]
