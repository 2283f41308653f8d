"""What qemu-img convert refuses, in its words and in its order. `options` are the command's, by their long names."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from mpconv.cli.qemu.format_names import QCOW2, RAW, unknown_target_format
from mpconv.formats.qcow2.options import Qcow2Options
from mpconv.model.errors import Fatal, MpconvError, UsageError
from mpconv.model.place import Place
from mpconv.options.cache import CACHE_MODES

Options = dict[str, Any]
_HIGHEST_ZLIB = 9


def help_text(options: Options, target: str) -> str | None:
    """What `-o help` prints; None: nobody asked."""
    if not options["target_format_options"]:
        return None
    from mpconv.cli.qemu.create_opts import asks_for_help, parse_create_opts  # noqa: PLC0415  (few need it)

    lists = list(options["target_format_options"])
    if not asks_for_help(lists):
        return None
    target_format = options["target_format"]
    if target_format == QCOW2:
        from mpconv.cli.qemu.qcow2_opts import qcow2_help  # noqa: PLC0415

        return qcow2_help(target)
    if target_format not in (None, RAW):
        raise UsageError(unknown_target_format(target_format))
    return parse_create_opts(lists, target).help


def check_combination(options: Options) -> None:
    """What is refused before anything is opened."""
    refusals = [
        (options["skip_broken_bitmaps"] and not options["bitmaps"], "Use of --skip-broken-bitmaps requires --bitmaps"),
        (
            options["compress"] and options["copy_range_offloading"],
            "Cannot enable copy offloading when -c is used",
        ),
        (
            options["sparse_size"] is not None and options["copy_range_offloading"],
            "Cannot enable copy offloading when -S is used",
        ),
        (
            options["salvage"] and options["copy_range_offloading"],
            "Cannot use copy offloading in salvaging mode",
        ),
        (
            options["target_image_opts"] and not options["no_create"],
            "--target-image-opts requires use of -n flag",
        ),
        (
            options["no_create"] and options["target_format_options"],
            "-o has no effect when skipping image creation",
        ),
        (options["target_is_zero"] and not options["no_create"], "--target-is-zero requires use of -n flag"),
        (
            options["compression_level"] is not None and not options["compress"],
            "--compression-level requires use of -c flag",
        ),
        (
            _digests(options) and options["copy_range_offloading"],
            "Cannot use --digest or --verify with copy offloading: its data is not read",
        ),
        (
            options["journal"] is not None and options["target_cache"] == "unsafe",
            "--journal cannot be used with -t unsafe: nothing would ever be durable",
        ),
    ]
    for refused, why in refusals:
        if refused:
            raise UsageError(why)


def _digests(options: Options) -> bool:
    return options["digest"] or options["verify"] is not None


def check_protocol(target: str) -> None:
    """Of a target that cannot be made only what is wrong with its name is said."""
    from mpconv.transports import module_of  # noqa: PLC0415

    try:
        module_of(target)
    except UsageError as error:
        if error.reason:  # it is no name at all
            raise
        raise UsageError(error.why.rpartition(": ")[2]) from None


class Made(Struct, frozen=True, kw_only=True):
    """How the target is made: `preallocation` if raw, `qcow2` if so; `refusal`: why not, said once the sources are
    open. The target is not touched before.
    """

    preallocation: str = "off"
    qcow2: Qcow2Options | None = None
    refusal: str | None = None


def created_as(options: Options, sources: list[Place], target: str, target_format: str | None) -> Made:
    """What is to be made, or of a target that exists, used. `target_format`: None: its first bytes tell."""
    if options["no_create"]:
        qcow2 = Qcow2Options(backing_file=options["backing"], backing_fmt=options["backing_format"])
        return Made(
            qcow2=qcow2 if target_format == QCOW2 else None,
            refusal=_first(_refusals(options, sources, target_format, backed=options["backing"] is not None)),
        )
    if target_format == QCOW2:
        return _qcow2(options, sources, target)
    return _raw(options, sources, target, RAW if target_format is None else target_format)


def _raw(options: Options, sources: list[Place], target: str, target_format: str) -> Made:
    preallocation = "off"
    wrong_options: MpconvError | None = None
    unmakeable: MpconvError | None = None
    if options["target_format_options"]:
        from mpconv.cli.qemu.create_opts import parse_create_opts  # noqa: PLC0415  (few need it)

        try:
            preallocation = parse_create_opts(list(options["target_format_options"]), target).preallocation
        except UsageError as error:
            wrong_options = error
        except Fatal as error:
            unmakeable = error
    backed = options["backing"] is not None
    refusals = [
        (target_format != RAW, unknown_target_format(target_format)),
        (wrong_options is not None, str(wrong_options)),
        (backed, "Backing file not supported for file format 'raw'"),
        (options["backing_format"] is not None, "Backing file format not supported for file format 'raw'"),
        *_refusals(options, sources, target_format, backed=backed, unmakeable=str(unmakeable or "")),
    ]
    return Made(preallocation=preallocation, refusal=_first(refusals))


def _qcow2(options: Options, sources: list[Place], target: str) -> Made:
    from mpconv.cli.qemu.qcow2_opts import wish  # noqa: PLC0415  (few need it)

    lists = list(options["target_format_options"])
    try:
        wanted = wish(lists, target, options["backing"], options["backing_format"])
    except UsageError as error:
        return Made(refusal=str(error))
    refusal = _first(
        _refusals(
            options,
            sources,
            QCOW2,
            backed=wanted.backing_file is not None,
            format_missing=wanted.backing_fmt is None,
            uncompressible=wanted.uncompressible(),
            unmakeable=wanted.unmakeable() or "",
        )
    )
    if refusal is not None:
        return Made(refusal=refusal)
    made = wanted.options()
    level = options["compression_level"]
    if level is not None and made.compression_type == "zlib" and level > _HIGHEST_ZLIB:
        return Made(refusal=f"Invalid compression level specified. Must be between 1 and {_HIGHEST_ZLIB} for zlib")
    return Made(qcow2=made)


_Refusals = list[tuple[bool, str]]


def _first(refusals: _Refusals) -> str | None:
    return next((why for refused, why in refusals if refused), None)


def _refusals(
    options: Options,
    sources: list[Place],
    target_format: str | None,
    *,
    backed: bool,
    format_missing: bool = False,
    uncompressible: str | None = None,
    unmakeable: str = "",
) -> _Refusals:
    """What is refused of every target once its options are known. `backed`: it has a backing file; `format_missing`:
    nobody said of which format.
    """
    compress, bitmaps = options["compress"], options["bitmaps"]
    return [
        (
            options["target_is_zero"] and backed,
            "Cannot use --target-is-zero when the destination image has a backing file",
        ),
        (
            len(sources) > 1 and backed,
            "Having a backing file for the target makes no sense when concatenating multiple input images",
        ),
        (
            backed and _digests(options),
            "Cannot use --digest or --verify with a backing file: what is left to it is not read",
        ),
        (backed and format_missing, "Use of backing file requires explicit backing format"),
        (compress and target_format == RAW, "Compression not supported for this file format"),
        (compress and uncompressible is not None, str(uncompressible)),
        (bitmaps and len(sources) > 1, "Copying bitmaps only possible with single source"),
        (bitmaps and any(place.format == QCOW2 for place in sources), "mpconv cannot copy bitmaps yet"),
        (bitmaps, "Source lacks bitmap support"),
        (bool(unmakeable), unmakeable),
        (options["target_cache"] not in CACHE_MODES, f"Invalid cache option: {options['target_cache']}"),
    ]
