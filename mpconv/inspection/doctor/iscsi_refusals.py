"""Why a LUN cannot be opened, and what to do."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from mpconv.inspection.doctor.findings import Examination
from mpconv.model.errors import Absent, Denied, MpconvError, Unreachable
from mpconv.transports.iscsi import scsi
from mpconv.transports.iscsi.commands import Commands, Refused
from mpconv.transports.iscsi.login import Address, initiator_name, login
from mpconv.transports.native import libiscsi

_SHOWN = 8
_LUNS_BYTES = 4096
_CHAP = "Authentication failed"


async def refused(found: Examination, address: Address, error: MpconvError | TimeoutError, seconds: float) -> None:
    """A problem, with what else the target tells."""
    if isinstance(error, TimeoutError):
        what = "the target takes connections and does not answer"
        found.problem("silent", what, "see whether its service hangs; a restart of it may help")
        return
    reason = error.reason or error.why
    if isinstance(error, Denied):
        code = "chap" if _CHAP in reason else "permission"
        found.problem(code, reason.partition(";")[0], _rights(address, code))
    elif isinstance(error, Absent):
        await _missing(found, address, reason, seconds)
    elif isinstance(error, Unreachable):
        found.problem("not-available", reason, "try again in a moment; if it stays so, see the target's log")
    else:
        found.problem("refused", reason, "see the target's log for this login")


def _rights(address: Address, code: str) -> str:
    if code != "chap":
        return (
            f"allow the initiator {initiator_name()} on the target (its ACL), or name yours with MPCONV_INITIATOR_NAME"
        )
    if address.user:
        return (
            f"see to the password of '{address.user}' (LIBISCSI_CHAP_PASSWORD, or user%password in the URL), and that"
            " the account is bound to this target"
        )
    return "set LIBISCSI_CHAP_USERNAME and LIBISCSI_CHAP_PASSWORD, or write user%password@ before the host"


async def _missing(found: Examination, address: Address, reason: str, seconds: float) -> None:
    """The target, or the LUN on it."""
    luns = await _luns(address, seconds)
    if luns is None:
        fix = f"see to the target's name, and that it is open to the initiator {initiator_name()}"
        found.problem("no-target", reason, fix)
    else:
        listed = ", ".join(map(str, luns[:_SHOWN])) + (f" and {len(luns) - _SHOWN} more" if len(luns) > _SHOWN else "")
        found.problem("no-lun", f"{reason} {address.lun}", f"the target has {f'LUN {listed}' if luns else 'no LUN'}")


async def _luns(address: Address, seconds: float) -> list[int] | None:
    """Which LUNs that are disks the target tells of; None when there is no such target."""
    first = replace(address, lun=0)
    try:
        async with asyncio.timeout(seconds):
            session = await login(libiscsi.library(), first)
            commands = Commands(session, 0, 0.0)
            try:
                return scsi.parse_luns(await commands.ask(scsi.report_luns(_LUNS_BYTES), _LUNS_BYTES))
            finally:
                await commands.close()
    except (MpconvError, Refused, OSError, TimeoutError):
        return None
