"""qemu-img's progress line, of completed bytes."""

from __future__ import annotations

from typing import TextIO


class ProgressLine:
    """Writes `    (12.34/100%)` and a carriage return whenever the text changes."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown = ""

    def update(self, done: int, total: int) -> None:
        """`done` of `total` bytes are complete."""
        text = f"    ({100 * done / total if total else 100:.2f}/100%)\r"
        if text != self._shown:
            self._shown = text
            self._stream.write(text)
            self._stream.flush()

    def finish(self) -> None:
        """Leave the line."""
        self._stream.write("\n")
        self._stream.flush()
