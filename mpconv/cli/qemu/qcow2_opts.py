"""`-o K=V,...`, `-B` and `-F` for a qcow2 target."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct

from mpconv.cli.qemu.create_opts import HINT_TOO_LARGE, LARGEST_HINT, OF_FILES, Known, help_of, is_made_as_file, typed
from mpconv.cli.qemu.format_names import OTHERS, READABLE
from mpconv.formats.qcow2.options import COMPRESSION_TYPES, PREALLOCATIONS, Qcow2Options
from mpconv.model.errors import UsageError
from mpconv.transports import redacted

_VERSIONS = {"0.10": 2, "v2": 2, "1.1": 3, "v3": 3}
_QCOW2: Known = {
    "backing_file": ("str", "File name of a base image"),
    "backing_fmt": ("str", "Image format of the base image"),
    "cluster_size": ("size", "qcow2 cluster size"),
    "compat": ("str", "Compatibility level (v2 [0.10] or v3 [1.1])"),
    "compression_type": ("str", "Compression method used for image cluster compression"),
    "data_file": ("str", "File name of an external data file"),
    "data_file_raw": ("bool (on/off)", "The external data file must stay valid as a raw image"),
    "encrypt.cipher-alg": ("str", "Name of encryption cipher algorithm"),
    "encrypt.cipher-mode": ("str", "Name of encryption cipher mode"),
    "encrypt.format": ("str", "Encrypt the image, format choices: 'aes', 'luks'"),
    "encrypt.hash-alg": ("str", "Name of encryption hash algorithm"),
    "encrypt.iter-time": ("num", "Time to spend in PBKDF in milliseconds"),
    "encrypt.ivgen-alg": ("str", "Name of IV generator algorithm"),
    "encrypt.ivgen-hash-alg": ("str", "Name of IV generator hash algorithm"),
    "encrypt.key-secret": ("str", "ID of secret providing qcow AES key or LUKS passphrase"),
    "encryption": ("bool (on/off)", "Encrypt the image with format 'aes'. (Deprecated in favor of encrypt.format=aes)"),
    "extended_l2": ("bool (on/off)", "Extended L2 tables"),
    "lazy_refcounts": ("bool (on/off)", "Postpone refcount updates"),
    "preallocation": ("str", "Preallocation mode (allowed values: off, metadata, falloc, full)"),
    "refcount_bits": ("num", "Width of a reference count entry in bits"),
    "size": ("size", "Virtual disk size"),
}


class Wish(Struct, frozen=True):
    """What a command line says of a qcow2 image to be made: `values` by their names in `-o`, of the right kinds.

    A size is taken and means nothing: the image is as large as what is copied.
    """

    target: str
    values: dict[str, str | int | bool]

    def text(self, name: str, default: str = "") -> str:
        return str(self.values.get(name, default))

    @property
    def backing_file(self) -> str | None:
        return self.text("backing_file") if "backing_file" in self.values else None

    @property
    def backing_fmt(self) -> str | None:
        return self.text("backing_fmt") if "backing_fmt" in self.values else None

    @property
    def encrypted(self) -> bool:
        """Whether qemu-img would encrypt, or miss what it needs to."""
        return any(
            value is not False
            for name, value in self.values.items()
            if name == "encryption" or name.startswith("encrypt.")
        )

    def options(self) -> Qcow2Options:
        """Of a wish that can be fulfilled."""
        return Qcow2Options(
            version=_VERSIONS[self.text("compat", "v3")],
            cluster_size=int(self.values.get("cluster_size", Qcow2Options().cluster_size)),
            preallocation=self.text("preallocation", "off"),
            lazy_refcounts=bool(self.values.get("lazy_refcounts", False)),
            refcount_bits=int(self.values.get("refcount_bits", 16)),
            compression_type=self.text("compression_type", "zlib"),
            extended_l2=bool(self.values.get("extended_l2", False)),
            backing_file=self.backing_file,
            backing_fmt=self.backing_fmt,
            data_file=self.text("data_file") if "data_file" in self.values else None,
            data_file_raw=bool(self.values.get("data_file_raw", False)),
        )

    def uncompressible(self) -> str | None:
        """Why such an image cannot be compressed."""
        excludes = [
            (self.encrypted, "encryption"),
            (self.text("preallocation", "off") != "off", "preallocation"),
            ("data_file" in self.values, "data_file"),
        ]
        words = "Compression and {} not supported at the same time"
        return next((words.format(name) for refused, name in excludes if refused), None)

    def unmakeable(self) -> str | None:
        """Why there can be no such image, in qemu-img's words and order as far as it has them."""
        where = redacted(self.target)
        wrong = next(self._wrong_values(), None)
        if wrong is None:
            wrong = self.options().refusal()
        if wrong is not None:
            return f"{where}: error while converting qcow2: {wrong}"
        if self.backing_file == "":
            return f"{where}: Expected backing file name, got empty string"
        if self.encrypted:
            return "mpconv cannot encrypt images"
        if self.backing_fmt in OTHERS:
            why = f"mpconv cannot read {self.backing_fmt} images yet"
            return f"Could not open '{where}': Could not open backing file: {why}"
        return None

    def _wrong_values(self) -> Iterator[str]:
        if int(self.values.get("extent_size_hint", 0)) > LARGEST_HINT:
            yield HINT_TOO_LARGE
        rejects = "Parameter '{}' does not accept value '{}'"
        if self.text("compat", "v3") not in _VERSIONS:
            yield rejects.format("version", self.text("compat"))
        if self.backing_fmt is not None and self.backing_fmt not in READABLE | OTHERS:
            yield rejects.format("backing-fmt", self.backing_fmt)
        if self.text("preallocation", "off") not in PREALLOCATIONS:
            yield rejects.format("preallocation", self.text("preallocation"))
        if not -1 << 63 <= int(self.values.get("refcount_bits", 16)) < 1 << 63:
            yield "Parameter 'refcount-bits' expects integer"
        if self.text("compression_type", "zlib") not in COMPRESSION_TYPES:
            yield rejects.format("compression-type", self.text("compression_type"))


def wish(options: list[str], target_url: str, backing: str | None, backing_format: str | None) -> Wish:
    """Every `-o` of a command line, the last key wins; over it `-B` and `-F`. UsageError in qemu-img's words."""
    given = {"backing_file": backing, "backing_fmt": backing_format}
    values = typed(options, _known(target_url))
    return Wish(target_url, {**values, **{name: value for name, value in given.items() if value is not None}})


def measured_options(options: list[str]) -> tuple[Qcow2Options, int]:
    """What counts for measure, and the size among the options. UsageError in the words of QEMU's qcow2_measure, which
    are older than those for making an image and know fewer rules.
    """
    wished = Wish("", typed(options, _QCOW2 | OF_FILES))
    made = Qcow2Options(
        version=_VERSIONS.get(wished.text("compat", "1.1"), 0),
        cluster_size=int(wished.values.get("cluster_size", Qcow2Options().cluster_size)),
        preallocation=wished.text("preallocation", "off"),
        refcount_bits=int(wished.values.get("refcount_bits", 16)),
        extended_l2=bool(wished.values.get("extended_l2", False)),
        backing_file=wished.backing_file,
    )
    older = wished.text("compat", "1.1")
    checks = [
        (True, made.cluster_refusal()),
        (older not in {"0.10", "1.1"}, f"Invalid compatibility level: '{older}'"),
        (True, made.refcount_refusal("compat=1.1")),
        (made.preallocation not in PREALLOCATIONS, f"invalid parameter value: {made.preallocation}"),
        (wished.text("encrypt.format") == "luks", "mpconv cannot encrypt images"),
    ]
    why = next((why for wrong, why in checks if wrong and why is not None), None)
    if why is not None:
        raise UsageError(why)
    return made, int(wished.values.get("size", 0))


def qcow2_help(target_url: str) -> str:
    """What `-o help` prints."""
    return help_of(_known(target_url) if target_url else _QCOW2, "qcow2", target_url)


def _known(target_url: str) -> Known:
    return _QCOW2 | OF_FILES if is_made_as_file(target_url) else _QCOW2
