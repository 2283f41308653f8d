"""A copy is begun, or goes on: with a journal or without. Commands and programs start theirs here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpconv.jobs.context import JobContext
from mpconv.model.place import Place
from mpconv.options.copy import Options

if TYPE_CHECKING:
    from mpconv.jobs.copy.deploy import Deployment
    from mpconv.options.effort import Effort

# What is not needed each time is imported when it is: a small copy is mostly imports.


def check_journal(journal: str | None, trusted: bool) -> None:
    """Fatal for a journal that others own or may write to, unless that is `trusted`."""
    if journal is not None and not trusted:
        from mpconv.journal import ownership  # noqa: PLC0415

        ownership.check(journal)


def _check_gate(options: Options) -> None:
    """Fatal where workers of other hosts are to come in, and cannot."""
    if options.listening is not None:
        from mpconv.protocol import gate  # noqa: PLC0415

        gate.check(options.listening)


async def convert(
    sources: list[Place],
    target: Place,
    options: Options,
    context: JobContext,
    *,
    journal: str | None = None,
    trusted: bool = False,
) -> None:
    """Copy one image, or several one after the other. `trusted`: the journal, whoever may write to it. Raises
    MpconvError.
    """
    check_journal(journal, trusted)
    _check_gate(options)
    if journal is None:
        from mpconv.jobs.copy import convert as plain  # noqa: PLC0415

        await plain.convert(sources, target, options, context)
    else:
        from mpconv.jobs.copy import journaled  # noqa: PLC0415

        await journaled.convert(sources, target, options, context, journal)


async def deploy(
    deployment: Deployment,
    options: Options,
    context: JobContext,
    *,
    journal: str | None = None,
    trusted: bool = False,
) -> None:
    """Copy one image to several targets, whose outcomes `deployment` gets; the rest as with convert."""
    check_journal(journal, trusted)
    _check_gate(options)
    if journal is None:
        from mpconv.jobs.copy import deploy as plain  # noqa: PLC0415

        await plain.deploy(deployment, options, context)
    else:
        from mpconv.jobs.copy import redeploy  # noqa: PLC0415

        await redeploy.deploy(deployment, options, context, journal)


async def resume(journal: str, effort: Effort, context: JobContext, deployment: Deployment | None) -> bool:
    """Go on with the copy of `journal`, or with the `deployment` it tells of. Whether anything was left to be done.
    Raises MpconvError.
    """
    if deployment is not None:
        from mpconv.jobs.copy import redeploy  # noqa: PLC0415

        return await redeploy.resume(deployment, journal, effort, context)
    from mpconv.jobs.copy import journaled  # noqa: PLC0415

    return await journaled.resume(journal, effort, context)
