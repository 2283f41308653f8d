"""What of a local file is allocated, as `qemu-img map` sees it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path


def allocation(path: Path) -> list[tuple[int, int, bool]]:
    """(start, length, whether there is data), after what is written late has been written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    command = ["qemu-img", "map", "-f", "raw", "--output=json", str(path)]
    found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [(entry["start"], entry["length"], entry["data"]) for entry in found]
