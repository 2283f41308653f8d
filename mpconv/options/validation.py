"""What programs may ask for. The command line refuses the rest in qemu-img's words and order; here it is refused before
anything is opened, by the names of the fields. Pure.
"""

from __future__ import annotations

import math

from mpconv.formats.qcow2.options import COMPRESSION_TYPES, PREALLOCATIONS, Qcow2Options
from mpconv.model.errors import UsageError
from mpconv.model.limits import MAX_REQUESTS, MAX_SPARSE
from mpconv.model.units import SECTOR
from mpconv.options.cache import CACHE_MODES, CacheMode
from mpconv.options.copy import Options

_MOST_WORKERS = 256
_HIGHEST = {"zlib": 9, "zstd": 22}
"""Levels of compression."""
_RAW_PREALLOCATIONS = ("off", "falloc", "full")
_Rules = list[tuple[bool, str]]


def check_copy(options: Options, *, sources: int = 1, local: bool = True, journaled: bool = False) -> None:
    """UsageError for what no copy can be, or would be without doing what is asked for. `sources`: how many; `local`:
    whether the target is on this host.
    """
    why = refusal_of(options, sources=sources, local=local, journaled=journaled)
    if why is not None:
        raise UsageError(why)


def check_deployment(options: Options, *, journaled: bool = False) -> None:
    """The same of a deployment."""
    check_copy(options, journaled=journaled)
    _raise_first([(options.target_format != "raw", f"deploy writes raw targets only, not {options.target_format}")])


def check_effort(
    requests: int | None,
    workers: int | None,
    *,
    rate: int | None = None,
    retry_for: float | None = None,
    idle: bool = False,
) -> None:
    """The same of how much is done at a time; None: nothing was said. `idle`: no worker of this host may be enough."""
    _raise_first(_of_effort(requests, workers, rate, retry_for, idle=idle))


def _raise_first(rules: _Rules) -> None:
    for refused, why in rules:
        if refused:
            raise UsageError(why)


def _of_effort(
    requests: int | None, workers: int | None, rate: int | None, retry_for: float | None, *, idle: bool
) -> _Rules:
    least = 0 if idle else 1
    wrong_workers = workers is not None and not least <= workers <= _MOST_WORKERS
    return [
        (requests is not None and not 1 <= requests <= MAX_REQUESTS, f"requests: between 1 and {MAX_REQUESTS}"),
        (wrong_workers, f"workers: between {least} and {_MOST_WORKERS}"),
        (rate is not None and rate < 0, "rate: at least 0, which is no limit"),
        (retry_for is not None and not 0 <= retry_for < math.inf, "retry_for: seconds, at least 0"),
    ]


def refusal_of(options: Options, *, sources: int = 1, local: bool = True, journaled: bool = False) -> str | None:
    """Why such a copy cannot be."""
    effort = _of_effort(
        options.requests, options.workers, options.rate, options.retry_for, idle=options.listening is not None
    )
    rules = [*effort, *_of_copy(options, journaled=journaled)]
    if options.target_format == "qcow2":
        rules += _of_qcow2(options, options.qcow2 or Qcow2Options(), sources)
    else:
        rules += _of_raw(options, local=local)
    return next((why for refused, why in rules if refused), None)


def _of_copy(options: Options, *, journaled: bool) -> _Rules:
    sparse = options.sparse_size
    unread = options.offload and options.digests
    return [
        (not isinstance(options.cache, CacheMode), 'cache: one of CACHE_MODES, such as CACHE_MODES["none"]'),
        (options.target_format not in ("raw", "qcow2"), f"target_format: raw or qcow2, not '{options.target_format}'"),
        (
            not 0 <= sparse <= MAX_SPARSE or sparse % SECTOR != 0,
            f"sparse_size: a multiple of {SECTOR} up to {MAX_SPARSE}; 0: no zeros are looked for",
        ),
        (options.verify is not None and not 0 < options.verify <= 1, "verify: the share, above 0 and at most 1"),
        (not 0 <= options.drop_after < math.inf, "drop_after: seconds, at least 0"),
        (options.target_is_zero and options.create, "target_is_zero: of a target that exists: create=False"),
        (options.offload and options.compress, "offload cannot be used with compress"),
        (options.offload and options.salvage, "offload cannot be used with salvage"),
        (unread, "offload cannot be used with digest or verify: the data is not read"),
        (journaled and options.cache == CACHE_MODES["unsafe"], "a journal cannot be kept with the cache mode unsafe"),
    ]


def _of_raw(options: Options, *, local: bool) -> _Rules:
    return [
        (options.compress and not options.probe_target, "compress: qcow2 targets only"),
        (options.qcow2 is not None and not options.probe_target, 'qcow2: of a qcow2 target: target_format="qcow2"'),
        (
            options.preallocation not in _RAW_PREALLOCATIONS,
            f"preallocation: one of {', '.join(_RAW_PREALLOCATIONS)}, not '{options.preallocation}'",
        ),
        (options.preallocation != "off" and not local, "preallocation: of a file of this host only"),
    ]


def _of_qcow2(options: Options, made: Qcow2Options, sources: int) -> _Rules:
    backed = made.backing_file is not None
    highest = _HIGHEST.get(made.compression_type, 0)
    level = options.compression_level
    uncompressible = made.preallocation != "off" or made.data_file is not None
    refusal = made.refusal()
    return [
        (
            made.compression_type not in COMPRESSION_TYPES,
            f"compression_type: one of {', '.join(COMPRESSION_TYPES)}, not '{made.compression_type}'",
        ),
        (
            made.preallocation not in PREALLOCATIONS,
            f"preallocation: one of {', '.join(PREALLOCATIONS)}, not '{made.preallocation}'",
        ),
        (refusal is not None, str(refusal)),
        (made.backing_file == "", "backing_file: a name, or None"),
        (backed and options.create and made.backing_fmt is None, "backing_fmt: it must be said of which format it is"),
        (
            made.backing_fmt not in (None, "raw", "qcow2"),
            f"backing_fmt: raw or qcow2, not '{made.backing_fmt}'",
        ),
        (backed and sources > 1, "backing_file makes no sense with several sources"),
        (backed and options.target_is_zero, "target_is_zero cannot be used with a backing_file"),
        (backed and options.digests, "digest and verify cannot be used with a backing_file: it is not read"),
        (options.compress and uncompressible, "compress cannot be used with preallocation or a data_file"),
        (level is not None and not options.compress, "compression_level: with compress only"),
        (level is not None and not 1 <= level <= highest, f"compression_level: between 1 and {highest}"),
    ]
