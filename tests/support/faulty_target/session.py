"""A connection of a faulty target: PDUs, the login, and how data goes in and out."""

from __future__ import annotations

import asyncio
import struct
import traceback
from typing import Any

from tests.support.faulty_target import commands
from tests.support.faulty_target.target import FaultyTarget, Refusal

Pdu = tuple[bytes, bytes]
"""The header of 48 bytes, and the data."""

_NOBODY = b"\xff" * 4
_STEP = 262144


def _table() -> list[int]:
    table = []
    for number in range(256):
        value = number
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC = _table()


def crc32c(data: bytes) -> bytes:
    """As a digest carries it."""
    value = 0xFFFFFFFF
    for byte in data:
        value = _CRC[(value ^ byte) & 255] ^ (value >> 8)
    return struct.pack("<I", value ^ 0xFFFFFFFF)


class Session:
    """One connection; `full` once the login is over. `notes`: a hook's own."""

    def __init__(self, target: FaultyTarget, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.target = target
        self.full = False
        self.discovery = False
        self.notes: dict[str, Any] = {}
        self._reader, self._writer = reader, writer
        self._stat = self._expected = self._transfer_tag = 1
        self._header_digest = self._data_digest = False
        self._pending: dict[bytes, asyncio.Queue[Pdu]] = {}
        self._initiator_takes = 8192

    def reset(self) -> None:
        """End the connection with no word."""
        self._writer.transport.abort()

    async def run(self) -> None:
        """Until the initiator logs out or the connection ends."""
        self.target.sessions.add(self)
        tasks: set[asyncio.Task[None]] = set()
        try:
            if not await self._login():
                return
            while True:
                header, data = await self._receive()
                code = header[0] & 0x3F
                if code in {0, 1, 2, 4, 6} and not header[0] & 0x40:
                    self._expected += 1
                if code == 1:
                    task = asyncio.create_task(self._command(header, data))
                    tasks.add(task)
                    task.add_done_callback(tasks.discard)
                elif code == 5:
                    if (queue := self._pending.get(header[16:20])) is not None:
                        queue.put_nowait((header, data))
                elif code == 0:
                    if header[16:20] != _NOBODY:
                        self._send(self._header(0x20, 0x80, header[8:16], header[16:20]), data)
                elif code == 6:
                    self._send(self._header(0x26, 0x80, bytes(8), header[16:20], 0))
                    await self._writer.drain()
                    return
                elif code == 2:
                    self._send(self._header(0x22, 0x80, bytes(8), header[16:20], 0))
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.target.sessions.discard(self)
            for task in tasks:
                task.cancel()
            self._writer.close()

    async def _receive(self) -> Pdu:
        header = await self._reader.readexactly(48)
        length = int.from_bytes(header[5:8])
        if header[4]:
            await self._reader.readexactly(header[4] * 4)
        if self._header_digest:
            await self._reader.readexactly(4)
        data = b""
        if length:
            data = (await self._reader.readexactly((length + 3) // 4 * 4))[:length]
            if self._data_digest:
                await self._reader.readexactly(4)
        return header, data

    def _send(self, header: bytearray, data: bytes = b"") -> None:
        header[5:8] = len(data).to_bytes(3)
        out = bytes(header)
        if self._header_digest:
            out += crc32c(out)
        if data:
            data += bytes(-len(data) % 4)
            out += data + (crc32c(data) if self._data_digest else b"")
        self._writer.write(out)

    def _header(
        self, code: int, flags: int, lun: bytes, tag: bytes, transfer: int = 0xFFFFFFFF, *, advance: bool = True
    ) -> bytearray:
        header = bytearray(48)
        header[0], header[1], header[8:16], header[16:20] = code, flags, lun, tag
        most = self._expected + self.target.window - 1
        words = (transfer, self._stat & 0xFFFFFFFF, self._expected & 0xFFFFFFFF, most & 0xFFFFFFFF)
        struct.pack_into(">IIII", header, 20, *words)
        self._stat += advance
        return header

    async def _login(self) -> bool:
        keys: dict[str, str] = {}
        while True:
            header, data = await self._receive()
            if header[0] & 0x3F != 3:
                return False
            new = dict(text.partition("=")[::2] for text in data.decode().split("\0") if text)
            keys |= new
            self._expected = struct.unpack_from(">I", header, 24)[0]
            self.discovery = keys.get("SessionType") == "Discovery"
            stage, following, passes = (header[1] >> 2) & 3, header[1] & 3, bool(header[1] & 0x80)
            last = passes and following == 3
            kind, detail, out = self._judge(new, keys, stage)
            body = b"".join(f"{key}={value}".encode() + b"\0" for key, value in out.items())
            reply = bytearray(48)
            reply[0], reply[1] = 0x23, 0 if kind else header[1] & 0x8F
            reply[8:14], reply[14:16] = header[8:14], b"\0\1" if last else header[14:16]
            reply[16:20], reply[36], reply[37] = header[16:20], kind, detail
            most = self._expected + self.target.window - 1
            struct.pack_into(">III", reply, 24, self._stat, self._expected, most)
            self._stat += 1
            self._send(reply, body)
            await self._writer.drain()
            if kind:
                return False
            if last:
                self._header_digest = self.target.digest == "CRC32C"
                self._data_digest = self.target.data_digest == "CRC32C"
                self.full = True
                self.target.logins += 1
                return True

    def _judge(self, new: dict[str, str], keys: dict[str, str], stage: int) -> Refusal:
        """Of a login request with `new` keys after the earlier ones: its status and the keys to answer with."""
        target = self.target
        if target.on_login is not None and (refusal := target.on_login(target, self, keys)) is not None:
            return refusal
        if target.redirect:
            return 1, 1, {"TargetAddress": target.redirect}
        out = {"TargetPortalGroupTag": "1"}
        if "AuthMethod" in new:
            out["AuthMethod"] = "None"
        self._initiator_takes = int(new.get("MaxRecvDataSegmentLength", self._initiator_takes))
        if stage == 1:
            for key, value in {"HeaderDigest": target.digest, "DataDigest": target.data_digest}.items():
                if value not in keys.get(key, "None").split(","):
                    target.say(f"{key}={value} was not offered")
                    return 2, 0, {}
            out |= {key: value for key, value in self._offers().items() if key in new}
        return 0, 0, out

    def _offers(self) -> dict[str, str]:
        target = self.target
        return {
            "HeaderDigest": target.digest,
            "DataDigest": target.data_digest,
            "InitialR2T": target.initial_r2t,
            "ImmediateData": target.imm,
            "MaxBurstLength": str(target.burst),
            "FirstBurstLength": str(target.first),
            "MaxRecvDataSegmentLength": str(target.mrdsl),
            "MaxOutstandingR2T": "1",
            "ErrorRecoveryLevel": "0",
            "MaxConnections": "1",
            "DefaultTime2Wait": "2",
            "DefaultTime2Retain": "0",
            "DataPDUInOrder": "Yes",
            "DataSequenceInOrder": "Yes",
            "IFMarker": "No",
            "OFMarker": "No",
        }

    async def _command(self, header: bytes, immediate: bytes) -> None:
        tag = header[16:20]
        self._pending[tag] = asyncio.Queue()
        try:
            await self._carry_out(header, immediate)
            await self._writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception:
            self.target.say(traceback.format_exc())
            self.reset()
        finally:
            self._pending.pop(tag, None)

    async def _carry_out(self, header: bytes, immediate: bytes) -> None:
        target, cdb = self.target, header[32:48]
        wanted = struct.unpack_from(">I", header, 20)[0]
        name = commands.name_of(cdb)
        target.counts[name] += 1
        fault: Any = None
        if target.on_command is not None:
            fault = target.on_command(target, self, name, cdb, target.counts[name])
        if fault == "close":
            self.reset()
            return
        if fault == "hang":
            await asyncio.Event().wait()
        if isinstance(fault, tuple) and fault[0] == "delay":
            await asyncio.sleep(fault[1])
            fault = None
        data = await self._data_out(header, immediate, wanted) if header[1] & 0x20 and wanted else b""
        if isinstance(fault, bytes):
            await self._data_in(header, fault, wanted)
        elif isinstance(fault, tuple) and fault[0] == "after":
            result = commands.execute(target, name, header, data, wanted)
            if isinstance(result, bytes):
                await self._data_in(header, result, wanted, with_status=False)
            self._status(header, *fault[1:])
        elif isinstance(fault, tuple):
            self._status(header, *fault)
        else:
            result = commands.execute(target, name, header, data, wanted)
            status = (0, b"") if isinstance(result, bytes) else result
            other = None if target.on_status is None else target.on_status(target, self, name, status)
            if isinstance(result, bytes) and other is None:
                await self._data_in(header, result, wanted)
            else:
                self._status(header, *(other or status))

    def _status(self, header: bytes, status: int, sense: bytes = b"", residual: int = 0) -> None:
        reply = self._header(0x21, 0x80 | (2 if residual else 0), bytes(8), header[16:20], 0)
        reply[3] = status
        struct.pack_into(">I", reply, 44, residual)
        self._send(reply, struct.pack(">H", len(sense)) + sense if sense else b"")

    async def _data_in(self, header: bytes, data: bytes, wanted: int, *, with_status: bool = True) -> None:
        residual = wanted - len(data)
        data = data[:wanted]
        if not data:
            if with_status:
                self._status(header, 0, b"", max(residual, 0))
            return
        step = min(self._initiator_takes, _STEP)
        for number, at in enumerate(range(0, len(data), step)):
            last = at + step >= len(data)
            flags = 0x80 if last else 0
            if last and with_status:
                flags |= 1 | (2 if residual > 0 else 4 if residual < 0 else 0)
            reply = self._header(0x25, flags, header[8:16], header[16:20], advance=last and with_status)
            struct.pack_into(">III", reply, 36, number, at, abs(residual) if last and with_status else 0)
            self._send(reply, data[at : at + step])
            await self._writer.drain()

    async def _data_out(self, header: bytes, immediate: bytes, length: int) -> bytes:
        got = bytearray(length)
        have = len(immediate)
        got[:have] = immediate
        tag = header[16:20]

        async def more() -> tuple[int, bool]:
            head, data = await self._pending[tag].get()
            at = struct.unpack_from(">I", head, 40)[0]
            got[at : at + len(data)] = data
            return len(data), bool(head[1] & 0x80)

        if self.target.initial_r2t == "No" and not header[1] & 0x80:
            final = False
            while not final:
                count, final = await more()
                have += count
        number = 0
        while have < length:
            size = min(self.target.burst, length - have)
            self._transfer_tag += 1
            ask = self._header(0x31, 0x80, header[8:16], tag, self._transfer_tag, advance=False)
            struct.pack_into(">III", ask, 36, number, have, size)
            number += 1
            self._send(ask)
            await self._writer.drain()
            left = size
            while left > 0:
                left -= (await more())[0]
            have += size
        return bytes(got)
