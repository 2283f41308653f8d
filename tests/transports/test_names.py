"""Which module serves a URL, and what of a URL may be shown."""

from __future__ import annotations

import pytest

from mpconv.model.errors import UsageError
from mpconv.transports import module_of


@pytest.mark.parametrize(
    ("url", "module"),
    [
        ("a.raw", "mpconv.transports.file.store"), ("/a:b/c.raw", "mpconv.transports.file.store"),
        ("./nfs://x", "mpconv.transports.file.store"), ("file:/a", "mpconv.transports.file.store"),
        ("NFS://h/e/f", "mpconv.transports.nfs.store"), ("iscsi://h/t/1", "mpconv.transports.iscsi.store"),
        ("null:", "mpconv.transports.null"), ("memory:x", "mpconv.transports.memory"),
    ],
)  # fmt: skip
def test_the_scheme_chooses(url, module):
    assert module_of(url) == module


@pytest.mark.parametrize(
    "url", ["http://user:secret@h/x", "s3://user%secret@h/x", "x://a%b@secret@h/y?password=secret"]
)
def test_an_unknown_scheme_shows_no_password(url):
    with pytest.raises(UsageError, match="Unknown protocol") as caught:
        module_of(url)
    assert "secret" not in str(caught.value)
