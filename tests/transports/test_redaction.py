"""No password is shown, whatever stands in it; and what holds none is shown as it is."""

from __future__ import annotations

import pytest

from mpconv.transports.redaction import redacted, secrets_in

PASSWORDS = [
    "secret",
    "sec/ret",
    "sec,ret",
    "sec?ret",
    "sec/re,t?",
    "sec@ret",
    "sec%ret",
    "sec:ret",
    "?secret",
    "/sec=&ret",
    "s\n",
]


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("x://user:pass@host/t?target_password=y", "x://user@host/t"),
        ("nfs://host/e/f?nfsport=1", "nfs://host/e/f?nfsport=1"),
        ("nfs://user:p@host:2049/e/f", "nfs://user@host:2049/e/f"),
        ("nfs://host:2049/e/a@b%20c.raw?version=3", "nfs://host:2049/e/a@b%20c.raw?version=3"),
        ("iscsi://host:4881/iqn.2020-01.org.x:a@b.c/1", "iscsi://host:4881/iqn.2020-01.org.x:a@b.c/1"),
        ("iscsi://[::1]:3260/iqn.2020-01.org%3ax/1", "iscsi://[::1]:3260/iqn.2020-01.org%3ax/1"),
        ("iscsi://user@host/t/1", "iscsi://user@host/t/1"),
        ("iscsi://host/t/1?target_user=u&target_password=y", "iscsi://host/t/1"),
        ("iscsi://user%pa/ss@host/iqn.x:a@b/1", "iscsi://user@host/iqn.x:a@b/1"),
        ("iscsi://user%secret", "iscsi://user"),
        ("/a/b@c", "/a/b@c"),
        ("a%b@c.raw", "a%b@c.raw"),
    ],
)
def test_redacted(url, shown):
    assert redacted(url) == shown


@pytest.mark.parametrize("password", PASSWORDS)
@pytest.mark.parametrize("host", ["host", "[::1]:3260", "10.0.0.1:99"])
def test_whatever_stands_in_a_password(password, host):
    assert redacted(f"iscsi://user%{password}@{host}/iqn.x:y/1") == f"iscsi://user@{host}/iqn.x:y/1"
    assert redacted(f"iscsi://user%{password}@{host}/nonsense") == f"iscsi://user@{host}/nonsense"
    assert redacted(f"nfs://user:{password}@{host}/e/f") == f"nfs://user@{host}/e/f"


def overwritten(argument: str) -> str:
    letters = list(argument)
    for first, last in secrets_in(argument):
        letters[first:last] = "*" * (last - first)
    return "".join(letters)


@pytest.mark.parametrize("password", PASSWORDS)
def test_in_a_word_of_the_command_line(password):
    doubled = password.replace(",", ",,")
    words = {
        f"iscsi://user%{password}@host/t/1": f"iscsi://user%{'*' * len(password)}@host/t/1",
        f"--backing=iscsi://user%{password}@host/t/1": f"--backing=iscsi://user%{'*' * len(password)}@host/t/1",
        f"driver=iscsi,user=u,password={doubled},lun=1": f"driver=iscsi,user=u,password={'*' * len(doubled)},lun=1",
        f"driver=raw,file.password={doubled}": f"driver=raw,file.password={'*' * len(doubled)}",
    }
    for word, shown in words.items():
        assert overwritten(word) == shown


@pytest.mark.parametrize(
    "word", ["iscsi://host/iqn.x:a@b/1", "nfs://h/e/a@b%20.raw", "a%b@c", "-f", "50%", "driver=raw"]
)
def test_what_holds_none_is_left(word):
    assert secrets_in(word) == []


def test_json_and_parameters():
    assert overwritten('json:{"driver": "iscsi", "password": "a\\"b,c"}').count("*") == 6
    assert overwritten("iscsi://h/t/1?target_password=sec&x=y") == "iscsi://h/t/1?target_password=" + "*" * 7
