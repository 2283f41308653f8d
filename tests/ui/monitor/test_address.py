"""Where to listen."""

from __future__ import annotations

import pytest

from mpconv.model.errors import UsageError
from mpconv.ui.monitor.address import parse


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("9100", "127.0.0.1", 9100, True),
        (":9100", "127.0.0.1", 9100, True),
        ("localhost:1", "localhost", 1, True),
        ("127.3.2.1:0", "127.3.2.1", 0, True),
        ("[::1]:80", "::1", 80, True),
        ("10.0.0.1:80", "10.0.0.1", 80, False),
        ("*:80", "", 80, False),
        ("0.0.0.0:80", "0.0.0.0", 80, False),
        ("[::]:80", "::", 80, False),
        ("stor1.example:80", "stor1.example", 80, False),
    ],
)
def test_an_address(text, host, port, loopback):
    found = parse(text, "--web")
    assert (found.host, found.port, found.loopback) == (host, port, loopback)


@pytest.mark.parametrize(
    "text", ["", ":", "x", "1.2.3.4", "1.2.3.4:", ":65536", "::1:80", "http://x:80", "a b:80", ":٣"]
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(UsageError, match="--web must be ADDR:PORT"):
        parse(text, "--web")


def test_the_url_can_be_opened():
    assert parse("[::1]:0", "--web").url(81, "me") == "http://[::1]:81"
    assert parse("*:0", "--web").url(81, "me") == "http://me:81"
    assert parse("0", "--web").url(81, "me") == "http://127.0.0.1:81"
