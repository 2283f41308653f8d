"""libnfs and libiscsi through cffi, in ABI mode: no compiler on the user's machine; and the loop that drives them.

What an answer means for a copy is decided in nfs and iscsi.
"""

from __future__ import annotations

from typing import Any

from mpconv.model.errors import Fatal


def load(ffi: Any, names: list[str], library: str, package: str) -> Any:
    """The first of the sonames that loads. Fatal with the package to install when none does."""
    for name in names:
        try:
            return ffi.dlopen(name)
        except OSError:
            continue
    raise Fatal(f"{library} is not installed: install it with 'apt-get install {package}' (or your system's {library})")


def has(ffi: Any, library: Any, name: str) -> bool:
    """Whether the loaded library has that symbol."""
    try:
        ffi.addressof(library, name)
    except ffi.error:
        return False
    return True
