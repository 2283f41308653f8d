"""What a target says instead of an answer: news (UNIT ATTENTION), to be patient, that it made an error good."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpconv.model.errors import Gone, MpconvError, Unreachable
from mpconv.model.extent import Kind
from mpconv.model.units import KiB, MiB
from mpconv.transports.base import Access, Opening
from mpconv.transports.iscsi import store as iscsi_transport
from mpconv.transports.iscsi.store import IscsiTransport
from tests.conftest import identical, make_image, mpconv
from tests.support.faulty_target import FaultyTarget, sense, unit_attention
from tests.support.faulty_target.hooks import OnCommand, news
from tests.support.faulty_target.target import BUSY, TASK_SET_FULL, Answer, Status

LUNS_CHANGED, CAPACITY, INQUIRY_DATA, NAMES = (0x3F, 0x0E), (0x2A, 0x09), (0x3F, 0x03), (0x3F, 0x05)
MODES, RESET, MEDIUM, NEXUS_LOST = (0x2A, 0x01), (0x29, 0x00), (0x28, 0x00), (0x29, 0x07)
POWER_ON = (0x29, 0x01)
BECOMING_READY = (2, sense(2, 0x04, 0x01))
IMPATIENT = Opening(patience=0.3)


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "lun.img"
    path.write_bytes(os.urandom(2 * MiB))
    return path


async def opened(target: FaultyTarget, access: Access = Access.WRITE, opening: Opening = IMPATIENT) -> IscsiTransport:
    return await iscsi_transport.connect(target.url(), access, opening=opening)


def use(target: FaultyTarget, work: Callable[[IscsiTransport], Any], access: Access = Access.WRITE) -> None:
    async def run() -> None:
        store = await opened(target, access)
        try:
            await work(store)
        finally:
            await store.close()

    asyncio.run(run())


async def everything(store: IscsiTransport) -> None:
    """Every kind of request, at a time and one after the other."""
    data, back = memoryview(os.urandom(256 * KiB)), memoryview(bytearray(256 * KiB))
    await asyncio.gather(store.write(0, data), store.read_into(MiB, back), store.write(MiB + 256 * KiB, data))
    assert await store.zero(512 * KiB, 128 * KiB)
    await store.flush()
    await store.block_status(0, store.size)
    await store.fingerprint()
    await store.read_into(0, back)
    assert back == data
    await store.read_into(512 * KiB, back)
    assert bytes(back[: 128 * KiB]) == bytes(128 * KiB)


@pytest.mark.parametrize("each", [1, 9, 30])
@pytest.mark.parametrize("told", [LUNS_CHANGED, CAPACITY, INQUIRY_DATA, NAMES, MODES, RESET, MEDIUM])
def test_news_in_a_row_before_anything_is_asked(told: tuple[int, int], each: int, disk: Path) -> None:
    with FaultyTarget(path=disk, on_command=news(told, each=each)) as target:
        use(target, everything)
        assert target.counts["TUR"] == each + 1


@pytest.mark.parametrize(("each", "patience"), [(400, 0.3), (560, 20)])
def test_news_of_hundreds_of_luns(each: int, patience: float, disk: Path) -> None:
    """Each is told at once, so that nobody waits long for the next."""

    async def run(target: FaultyTarget) -> None:
        store = await opened(target, opening=Opening(patience=patience))
        await store.close()

    with FaultyTarget(path=disk, on_command=news(LUNS_CHANGED, each=each)) as target:
        asyncio.run(run(target))
        assert target.counts["TUR"] == each + 1


def told_at(names: set[str], statuses: list[Status], *, again: int = 0) -> OnCommand:
    """Each command of these names is first answered with all of these, one after the other, and every `again`th."""
    given: dict[str, int] = {}

    def hook(target: FaultyTarget, session: Any, name: str, cdb: bytes, n: int) -> Answer:
        done = given.get(name, 0)
        if name in names and (done < len(statuses) or (again and n % again == 0)):
            given[name] = done + 1
            return statuses[done % len(statuses)]
        return None

    return hook


ALL = {"READ16", "WRITE16", "WS16", "UNMAP", "SYNC16", "GLBA", "RC16", "MODESENSE", "TUR"}


@pytest.mark.parametrize("status", [unit_attention(*LUNS_CHANGED), unit_attention(*NEXUS_LOST), (BUSY, b"")])
@pytest.mark.parametrize("names", [ALL, ALL | {"INQUIRY"}])
def test_every_kind_of_command_is_sent_again(status: Status, names: set[str], disk: Path) -> None:
    number = 1 if status[0] == BUSY else 20
    with FaultyTarget(path=disk, on_command=told_at(names, [status] * number, again=3)) as target:
        use(target, everything)
        assert target.counts["READ16"] > number


def always(answer: Answer, *names: str) -> OnCommand:
    return lambda target, session, name, cdb, n: answer if name in names else None


@pytest.mark.parametrize("status", [(BUSY, b""), (TASK_SET_FULL, b""), BECOMING_READY, unit_attention(*CAPACITY)])
def test_patience_ends(status: Status, disk: Path) -> None:
    """For ever is too long; when it is opened, that means that it may be there later."""
    with (
        FaultyTarget(path=disk, on_command=always(status, "READ16")) as target,
        pytest.raises(Gone, match=r"for 0.3 s"),
    ):
        use(target, lambda store: store.read_into(0, memoryview(bytearray(4096))))
    with FaultyTarget(path=disk, on_command=always(status, "TUR")) as target, pytest.raises(Unreachable):
        use(target, everything)


@pytest.mark.parametrize("names", [{"READ16"}, {"WRITE16", "WS16", "UNMAP", "SYNC16", "MODESENSE"}])
@pytest.mark.parametrize("code", [0x70, 0x72])
def test_what_the_target_made_good_is_no_error(names: set[str], code: int, disk: Path) -> None:
    recovered = ("after", 2, sense(1, 0x17, 0x01, code))
    with FaultyTarget(path=disk, on_command=always(recovered, *names)) as target:
        use(target, everything)


def test_a_deferred_error_is_that_of_an_earlier_write(disk: Path) -> None:
    """With a key that is else a reason to send the command again: what was written before is lost all the same."""
    late = (2, sense(0x0B, 0x0C, 0x00, 0x71))
    words = "an earlier command failed: write error"
    with FaultyTarget(path=disk, on_command=always(late, "SYNC16")) as target, pytest.raises(MpconvError, match=words):
        use(target, lambda store: store.flush())


def grown(target: FaultyTarget) -> None:
    target.size += MiB


def shrunk(target: FaultyTarget) -> None:
    target.size -= MiB


def replaced(target: FaultyTarget) -> None:
    target.serial = b"ANOTHER"


def protected(target: FaultyTarget) -> None:
    target.wp = True


def unthinned(target: FaultyTarget) -> None:
    target.lbprz = False


def unthinned_on_the_page_only(target: FaultyTarget) -> None:
    target.page_lbprz = False


CHANGES = [
    (grown, CAPACITY, "has changed its size from 2097152 to 3145728 bytes"),
    (shrunk, CAPACITY, "has changed its size from 2097152 to 1048576 bytes"),
    (shrunk, NEXUS_LOST, "has changed its size"),
    (replaced, NAMES, "another LUN has come in its place"),
    (replaced, INQUIRY_DATA, "another LUN has come in its place"),
    (replaced, LUNS_CHANGED, "another LUN has come in its place"),
    (protected, MODES, "has been write protected"),
    (unthinned, CAPACITY, "has changed what it promises of zeros"),
    (unthinned_on_the_page_only, INQUIRY_DATA, "has changed what it promises of zeros"),
]


def changing(change: Callable[[FaultyTarget], None], told: tuple[int, int], at: str, when: int) -> OnCommand:
    """The LUN is changed before the `when`th command of that name, which is told so instead of being carried out."""

    def hook(target: FaultyTarget, session: Any, name: str, cdb: bytes, n: int) -> Answer:
        if name == at and n == when:
            change(target)
            return unit_attention(*told)
        return None

    return hook


@pytest.mark.parametrize(("change", "told", "words"), CHANGES)
@pytest.mark.parametrize("at", ["READ16", "WRITE16", "GLBA", "SYNC16", "WS16"])
def test_a_lun_that_is_not_what_it_was(
    change: Callable[[FaultyTarget], None], told: tuple[int, int], words: str, at: str, disk: Path
) -> None:
    async def work(store: IscsiTransport) -> None:
        data = memoryview(bytearray(256 * KiB))
        with pytest.raises(Gone, match=words):
            await store.write(0, data)
            await store.read_into(0, data)
            await store.zero(0, 128 * KiB)
            await store.flush()
            await store.block_status(0, store.size)
        with pytest.raises(Gone, match=words):
            await store.read_into(0, memoryview(bytearray(512)))

    with FaultyTarget(path=disk, lbpu=False, on_command=changing(change, told, at, 1)) as target:
        use(target, work)


def thinned(target: FaultyTarget) -> None:
    target.lbprz = True


def thinned_on_the_page_only(target: FaultyTarget) -> None:
    target.page_lbprz = True


@pytest.mark.parametrize(("change", "told"), [(thinned, CAPACITY), (thinned_on_the_page_only, INQUIRY_DATA)])
def test_a_lun_that_promises_more_than_before_goes_on(
    change: Callable[[FaultyTarget], None], told: tuple[int, int], disk: Path
) -> None:
    """tgt is told that a LUN is thin after it has made it, also when it was started again. What was promised before is
    all that is relied on.
    """

    async def work(store: IscsiTransport) -> None:
        assert (await store.block_status(0, store.size))[0].kind is Kind.DATA
        await store.read_into(0, memoryview(bytearray(64 * KiB)))
        await store.zero(0, 128 * KiB)
        await store.flush()
        assert (await store.block_status(0, store.size))[0].kind is Kind.DATA

    with FaultyTarget(path=disk, lbpu=False, lbprz=False, on_command=changing(change, told, "READ16", 1)) as target:
        target.page_lbprz = False if change is thinned_on_the_page_only else target.page_lbprz
        target.lbprz = change is thinned_on_the_page_only
        use(target, work)
        assert target.lbprz and target.page_lbprz is not False


def test_news_while_it_is_opened_is_no_reason_to_refuse(disk: Path) -> None:
    """It was not known before: what it is now counts."""
    with FaultyTarget(path=disk, on_command=changing(grown, CAPACITY, "MODESENSE", 1)) as target:

        async def work(store: IscsiTransport) -> None:
            assert store.size == 3 * MiB

        use(target, work)


@pytest.mark.parametrize("options", [["-W"], ["-W", "--retry-for", "0"], ["--workers", "1"]])
def test_twenty_luns_added_one_by_one_while_the_first_is_read(options: list[str], tmp_path: Path) -> None:
    source, out = tmp_path / "source.raw", tmp_path / "out.raw"
    make_image(source, 16 * MiB)

    def hook(target: FaultyTarget, session: Any, name: str, cdb: bytes, n: int) -> Answer:
        left = session.notes.setdefault("luns", list(range(2, 22)))
        if name == "READ16" and left:
            target.luns.add(left.pop(0))
            return unit_attention(*LUNS_CHANGED)
        return None

    with FaultyTarget(path=source, on_command=hook) as target:
        done = mpconv("convert", "-f", "raw", "-O", "raw", *options, target.url(), out)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(target.luns) == 21
    assert identical(source, out)


@pytest.mark.parametrize("command", ["convert", "compare", "checksum"])
def test_a_source_that_shrinks_under_a_command(command: str, tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    make_image(source, 16 * MiB)
    other = tmp_path / "other.raw"
    other.write_bytes(source.read_bytes())
    rest = {"convert": [tmp_path / "out.raw"], "compare": [other], "checksum": []}[command]
    formats = {"convert": ["-f", "raw", "-O", "raw"], "compare": ["-f", "raw", "-F", "raw"], "checksum": ["-f", "raw"]}

    def shrink(target: FaultyTarget) -> None:
        target.size -= 8 * MiB

    with FaultyTarget(path=source, on_command=changing(shrink, CAPACITY, "READ16", 3)) as target:
        done = mpconv(command, *formats[command], target.url(), *rest)
    assert done.returncode == (4 if command == "compare" else 1)
    assert "has changed its size from 16777216 to 8388608 bytes" in done.stderr or "made smaller" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_target_that_is_protected_under_a_copy(disk: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(16 * MiB))
    with FaultyTarget(path=disk, size=16 * MiB, on_command=changing(protected, MODES, "WRITE16", 5)) as target:
        done = mpconv("convert", "-n", "-f", "raw", "-O", "raw", source, target.url())
    assert done.returncode == 1 and "write protected" in done.stderr


@pytest.mark.parametrize("options", [[], ["-W"], ["--workers", "1", "-S", "0"]])
@pytest.mark.parametrize("told", [RESET, POWER_ON])
@pytest.mark.parametrize("at", [5, 14])
def test_a_target_that_lost_its_cache_behind_a_living_session(
    told: tuple[int, int], at: int, options: list[str], disk: Path, tmp_path: Path
) -> None:
    """What was written and not flushed is gone, and each session is told so at its next command."""
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(16 * MiB))
    heard: set[Any] = set()
    lost: list[bool] = []

    def hook(target: FaultyTarget, session: Any, name: str, cdb: bytes, n: int) -> Answer:
        if name == "WRITE16" and n == at:
            os.pwrite(target.fd, bytes(16 * MiB), 0)
            heard.update(target.sessions)
            lost.append(True)
        if session in heard and name != "INQUIRY":
            heard.discard(session)
            return unit_attention(*told)
        return None

    with FaultyTarget(path=disk, size=16 * MiB, on_command=hook) as target:
        done = mpconv("convert", "-n", "-f", "raw", "-O", "raw", *options, source, target.url())
    assert done.returncode == 0, done.stderr
    assert lost and identical(source, disk)


@pytest.mark.parametrize("period", [5, 11])
def test_a_target_that_is_reset_all_the_time(period: int, disk: Path, tmp_path: Path) -> None:
    """Slow, but right, and with an end."""
    source = tmp_path / "source.raw"
    make_image(source, 16 * MiB)

    def hook(target: FaultyTarget, session: Any, name: str, cdb: bytes, n: int) -> Answer:
        return unit_attention(*RESET) if name in {"WRITE16", "WS16", "SYNC16"} and n % period == 0 else None

    with FaultyTarget(path=disk, size=16 * MiB, on_command=hook) as target:
        done = mpconv("convert", "-n", "-f", "raw", "-O", "raw", source, target.url())
    assert done.returncode == 0, done.stderr
    assert identical(source, disk)
