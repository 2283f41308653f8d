"""Key files: what stands in them, and what does not come out of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import zmq

from mpconv.model.errors import UsageError
from mpconv.protocol.keys import Keys, check_endpoint, parse


@pytest.fixture(scope="module")
def keys() -> Keys:
    coordinator, worker = zmq.curve_keypair(), zmq.curve_keypair()
    return Keys(
        coordinator_public=coordinator[0].decode(),
        coordinator_secret=coordinator[1].decode(),
        worker_public=worker[0].decode(),
        worker_secret=worker[1].decode(),
    )


def test_what_is_written_is_read(keys):
    assert parse(keys.text, "file") == keys
    alone = replace(keys, coordinator_secret="")
    assert keys.coordinator_secret not in alone.text
    assert parse(alone.text, "file") == alone
    assert parse("# a remark\n\n" + keys.text, "file") == keys


def test_secrets_are_not_shown(keys):
    for shown in (repr(keys), str(keys)):
        assert keys.worker_secret not in shown and keys.coordinator_secret not in shown


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text.replace("mpconv-keys 1", "mpconv-keys 2"),
        lambda text: text.replace("worker-public", "worker-publik"),
        lambda text: text + text.splitlines()[1],
        lambda text: text[:-2],
        lambda text: text.replace("worker-secret ", "worker-secret  "),
        lambda text: "\n".join(line for line in text.splitlines() if "worker-secret" not in line),
        lambda text: "\n".join(line for line in text.splitlines() if "coordinator-public" not in line),
    ],
)
def test_what_is_damaged_is_refused_without_showing_it(keys, damage):
    with pytest.raises(UsageError) as refused:
        parse(damage(keys.text), "file")
    assert "'file'" in str(refused.value)
    assert keys.worker_secret[:8] not in str(refused.value)


@pytest.mark.parametrize("endpoint", ["tcp://10.0.0.1:5000", "tcp://host.example:1", "tcp://[fe80::1%eth0]:65535"])
def test_endpoints(endpoint):
    assert check_endpoint(endpoint) == endpoint


@pytest.mark.parametrize(
    "endpoint", ["", "tcp://", "tcp://h", "tcp://h:", "tcp://h:65536", "ipc:///x", "tcp://a b:1", "h:1", "tcp://::1:5"]
)
def test_what_is_no_endpoint(endpoint):
    with pytest.raises(UsageError, match="is not of the form"):
        check_endpoint(endpoint)
