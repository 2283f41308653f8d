"""The compiled declarations are those of the text, and a missing library is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpconv.model.errors import Fatal
from mpconv.transports import native
from mpconv.transports.native import declarations
from mpconv.transports.native.libiscsi import ffi


def test_the_modules_are_made_from_the_text(tmp_path):
    declarations.emit(tmp_path)
    for name in declarations.MODULES:
        kept = Path(native.__file__).with_name(f"{name}.py")
        assert (tmp_path / kept.name).read_text() == kept.read_text(), (
            "run python -m mpconv.transports.native.declarations"
        )


def test_a_library_that_is_not_there():
    with pytest.raises(Fatal, match="libxyz is not installed: install it with 'apt-get install libxyz1'"):
        native.load(ffi, ["libxyz-no-such.so.1"], "libxyz", "libxyz1")
