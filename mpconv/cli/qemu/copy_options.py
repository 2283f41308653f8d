"""From convert's options to what is to be done; shared by the commands that copy as convert does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mpconv.cli.options.command import trust_of
from mpconv.cli.qemu.format_names import RAW
from mpconv.cli.qemu.places import places, probed
from mpconv.cli.qemu.refusals import Made, check_protocol, created_as
from mpconv.model.errors import MpconvError
from mpconv.model.place import Place
from mpconv.options.cache import CACHE_MODES, CacheMode

if TYPE_CHECKING:
    from mpconv.options.copy import Options
    from mpconv.protocol.keys import Listening


def places_of(sources: list[str], target: str, options: dict[str, Any]) -> tuple[list[Place], Place, Made, str | None]:
    """Where the images lie, and how the target is made; and why it cannot be used, said once the sources are open."""
    from_places = places(
        sources, options["source_format"], options["image_opts"], CACHE_MODES[options["source_cache"]].direct
    )
    to_place, unusable = _target(target, options, direct=_cache(options).direct)
    return from_places, to_place, created_as(options, from_places, target, to_place.format), unusable


def _cache(options: dict[str, Any]) -> CacheMode:
    """An unknown one is refused once the sources are open."""
    return CACHE_MODES.get(options["target_cache"], CACHE_MODES["writeback"])


def _target(name: str, options: dict[str, Any], *, direct: bool) -> tuple[Place, str | None]:
    """Where the target lies; and why it cannot be used, which is said once the sources are open."""
    image_opts = options["target_image_opts"]
    fmt = options["target_format"]
    if fmt is None and not image_opts:
        fmt = RAW
    if not options["no_create"]:
        check_protocol(name)
        return Place(url=name, direct=direct, format=fmt), None
    try:
        return places([name], fmt, image_opts, direct, writable=True)[0], None
    except MpconvError as error:
        return Place(url="null:"), str(error)


def options_of(
    options: dict[str, Any], place: Place, made: Made, unusable: str | None, target: str, listening: Listening | None
) -> Options:
    """How to copy to the target that was given so and lies there."""
    from mpconv.options.copy import Options  # noqa: PLC0415  (workers are forked first)

    sparse_size = options["sparse_size"]
    return Options(
        in_order=not options["oob_writes"],
        sparse_size=4096 if sparse_size is None else sparse_size,
        create=not options["no_create"],
        target_is_zero=options["target_is_zero"],
        preallocation=made.preallocation,
        requests=options["parallel"],
        workers=options["workers"],
        cache=_cache(options),
        rate=options["rate_limit"] or 0,
        shared=options["force_share"],
        salvage=options["salvage"],
        offload=options["copy_range_offloading"],
        probe_target=options["target_image_opts"] and probed([target], None, True),
        refusal=made.refusal or unusable,
        target_format=place.format or RAW,
        qcow2=made.qcow2,
        compress=options["compress"],
        compression_level=options["compression_level"],
        snapshot=options["snapshot"],
        trust=trust_of(options["allow_backing"], options["allow_data_file"]),
        retry_for=options["retry_for"],
        digest=options["digest"],
        verify=None if options["verify"] is None else options["verify"].share,
        verify_source=options["verify"] is not None and options["verify"].source,
        hole_map=not options["no_hole_map"],
        listening=listening,
        allow_same_image=options["allow_same_image"],
    )
