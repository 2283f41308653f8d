"""What qemu-img convert refuses, in its words and in its order. `options` are the command's, by their long names."""

from __future__ import annotations

from typing import Any

from mpconv.cache import CACHE_MODES
from mpconv.cli.opening import RAW, unknown_target_format
from mpconv.errors import Fatal, MpconvError, UsageError

Options = dict[str, Any]


def help_text(options: Options, target: str) -> str | None:
    """What `-o help` prints; None: nobody asked."""
    if not options["target_format_options"]:
        return None
    from mpconv.cli.create_opts import asks_for_help, parse_create_opts  # noqa: PLC0415  (few need it)

    lists = list(options["target_format_options"])
    if not asks_for_help(lists):
        return None
    if options["target_format"] not in (None, RAW):
        raise UsageError(unknown_target_format(options["target_format"]))
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
    ]
    for refused, why in refusals:
        if refused:
            raise UsageError(why)


def check_protocol(target: str) -> None:
    """Of a target that cannot be made only what is wrong with its name is said."""
    from mpconv.transports import module_of  # noqa: PLC0415

    try:
        module_of(target)
    except UsageError as error:
        raise UsageError(error.why.rpartition(": ")[2]) from None


def created_as(options: Options, sources: int, target: str) -> tuple[str, str | None]:
    """The preallocation of what is made; and why it is refused, if so, once the sources are open. The target is not
    touched before.
    """
    preallocation = "off"
    wrong_options: MpconvError | None = None
    unmakeable: MpconvError | None = None
    if options["target_format_options"]:
        from mpconv.cli.create_opts import parse_create_opts  # noqa: PLC0415  (few need it)

        try:
            preallocation = parse_create_opts(list(options["target_format_options"]), target).preallocation
        except UsageError as error:
            wrong_options = error
        except Fatal as error:
            unmakeable = error
    return preallocation, _refusal(options, sources, wrong_options, unmakeable)


def _refusal(
    options: Options, sources: int, wrong_options: MpconvError | None, unmakeable: MpconvError | None
) -> str | None:
    create, snapshot = not options["no_create"], options["snapshot"]
    target_format = "raw" if options["target_format"] is None else options["target_format"]
    refusals = [
        (
            snapshot is not None and sources > 1 and not snapshot.startswith("snapshot."),
            "No support for concatenating multiple snapshot",
        ),
        (
            snapshot is not None,
            "Failed to load snapshot: Block format 'raw' used by device '' does not support temporarily loading "
            "internal snapshots",
        ),
        (create and target_format != "raw", unknown_target_format(target_format)),
        (wrong_options is not None, str(wrong_options)),
        (create and options["backing"] is not None, "Backing file not supported for file format 'raw'"),
        (create and options["backing_format"] is not None, "Backing file format not supported for file format 'raw'"),
        (
            options["target_is_zero"] and options["backing"] is not None,
            "Cannot use --target-is-zero when the destination image has a backing file",
        ),
        (
            sources > 1 and options["backing"] is not None,
            "Having a backing file for the target makes no sense when concatenating multiple input images",
        ),
        (options["compress"], "Compression not supported for this file format"),
        (options["bitmaps"] and sources > 1, "Copying bitmaps only possible with single source"),
        (options["bitmaps"], "Source lacks bitmap support"),
        (unmakeable is not None, str(unmakeable)),
        (options["target_cache"] not in CACHE_MODES, f"Invalid cache option: {options['target_cache']}"),
    ]
    return next((why for refused, why in refusals if refused), None)
