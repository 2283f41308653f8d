"""One case, run by both programs on identical inputs in folders of their own, and compared.

qemu-img is the reference: whatever it does is right, except where INTENDED says otherwise, with the reason.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.differential.cases import ABSENT, FILE, FOLDER, LUNS, NFS, Case, Image, Option
from tests.support.servers import IscsiServer, NfsServer

_TIMEOUT = 40.0
_BLOCK = 4096
_SECTOR = 512
_iqns = map("iqn.2026-11.org.mpconv:differential{}".format, itertools.count(1))
_runs = itertools.count(1)
"""Of all labs: nfs-ganesha may answer STALE for a name whose file was removed behind its back."""

LONG_NAMES = {
    "-f": "--source-format",
    "-T": "--source-cache",
    "-l": "--snapshot",
    "-O": "--target-format",
    "-o": "--target-format-options",
    "-t": "--target-cache",
    "-B": "--backing",
    "-F": "--backing-format",
    "-S": "--sparse-size",
    "-n": "--no-create",
    "-U": "--force-share",
    "-r": "--rate-limit",
    "-m": "--parallel",
    "-W": "--oob-writes",
    "-C": "--copy-range-offloading",
    "-p": "--progress",
    "-q": "--quiet",
    "-c": "--compress",
}


@dataclass(frozen=True)
class Rewrite:
    """Text on stderr that may differ: `pattern` becomes `text` on both sides before they are compared."""

    reason: str
    pattern: str
    text: str


INTENDED_WORDS = (
    Rewrite(
        "one line an error: qemu-img's hint on suffixes takes two",
        r"suffixes for\n\S+ kilobytes",
        "suffixes for kilobytes",
    ),
    Rewrite("mpconv warns of what was never written", r"mpconv: warning: the source '[^'\n]*' is empty [^\n]*\n", ""),
    Rewrite("said once", r"Could not open '([^'\n]*)': (?=Could not open '\1': )", ""),
    Rewrite("a hint of qemu-img", r"[ \n]?Is another process using the image \[[^\n]*\]\?", ""),
    Rewrite("a hint of qemu-img", r"[ \n]?Try '[^'\n]* --help' for more information\.?", ""),
    Rewrite("said once, with the file's name", r"Could not open '<[^'\n]*>': (?=Could not open ')", ""),
    Rewrite("a space too many", r"equal to the  actual size", "equal to the actual size"),
    Rewrite("mpconv names the file of driver options", r"'<([^'\n]*)>'", r"'\1'"),
    Rewrite(
        "and of a LUN it is said as of anything else",
        r"\S+: error while converting raw: Cannot grow iSCSI devices",
        "output file is smaller than input file",
    ),
    Rewrite("how much too small it is", r"(output file is smaller than input file) \([^)]*\) in '[^'\n]*'", r"\1"),
    Rewrite(
        "source and target are one image: qemu-img runs into its own lock",
        r"(\S+: error while converting raw: |Could not open '[^'\n]*': )Failed to get \"write\" lock",
        "the same image",
    ),
    Rewrite("and mpconv says what is wrong", r"source and target are the same image: '[^'\n]*'", "the same image"),
    Rewrite(
        "mpconv's lines begin with its name",
        r"(mpconv: warning|WARNING): (Image format was not specified for '[^'\n]*' and probing guessed raw)\.?",
        r"\2",
    ),
    Rewrite(
        "formats that mpconv does not know yet",
        r"(Image is not in \w+ format|mpconv cannot read \w+ images yet \(-f raw takes its bytes as they are\))",
        "another format",
    ),
    Rewrite("mpconv has no cap at 16 for -m", r"(number of coroutines is between 1 and) \d+", r"\1 N"),
)


@dataclass(frozen=True)
class IntendedExit:
    """Exit codes that differ on purpose."""

    reason: str
    needs: tuple[str, ...]
    said: str
    codes: tuple[int, int]


INTENDED_EXITS = (
    IntendedExit(
        "qemu-img prints the error of --target-is-zero and exits 0, a bug",
        ("--target-is-zero", "-B"),
        "Cannot use --target-is-zero when the destination image has a backing file",
        (0, 1),
    ),
)


UNTOUCHED = ("Invalid cache option", "invalid parameter value", "Unsupported preallocation mode")
"""What mpconv refuses before it makes the target; qemu-img leaves an empty one."""


@dataclass(frozen=True)
class Program:
    """What is run. `speaks_mpconv`: it has long names, --workers, and ports in NFS URLs."""

    command: tuple[str, ...]
    speaks_mpconv: bool = False


QEMU_IMG = Program(("qemu-img", "convert"))


def program_of(command: tuple[str, ...]) -> Program:
    """mpconv's own options are tried on everything but qemu-img."""
    return Program((*command, "convert"), not any(Path(word).name.startswith("qemu-img") for word in command))


@dataclass(frozen=True)
class Stored:
    """What lies under a name afterwards. `data`: where the file system has data; `full`: it has a block for all."""

    content: bytes
    data: tuple[tuple[int, int], ...]
    full: bool

    def data_within(self, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """`data`, cut to that range."""
        cut = [(max(first, start), min(last, end)) for first, last in self.data]
        return tuple((first, last) for first, last in cut if first < last)


@dataclass(frozen=True)
class Outcome:
    """What a run left. `code` is None when it did not end."""

    code: int | None
    stdout: str
    stderr: str
    target: Stored | None
    changed_sources: tuple[str, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Difference:
    """One thing that differs."""

    what: str
    qemu: str
    mpconv: str

    def __str__(self) -> str:
        return f"{self.what}:\n    qemu-img: {self.qemu}\n    mpconv:   {self.mpconv}"


@dataclass
class Lab:
    """Where images live: folders here, a real NFS server, real LUNs. A slot is used by one case at a time."""

    directory: Path
    nfs: NfsServer | None = None
    iscsi: IscsiServer | None = None
    _iqn: str = field(default_factory=lambda: next(_iqns))
    _luns: dict[tuple[int, str, int], tuple[str, Path]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _slots: set[int] = field(default_factory=set)

    @property
    def remote(self) -> tuple[str, ...]:
        """Places that cases may use besides files."""
        return ((NFS,) if self.nfs else ()) + (tuple(LUNS) if self.iscsi else ())

    @contextlib.contextmanager
    def slot(self) -> Iterator[int]:
        """The lowest that is free."""
        with self._lock:
            slot = next(number for number in itertools.count() if number not in self._slots)
            self._slots.add(slot)
        try:
            yield slot
        finally:
            with self._lock:
                self._slots.remove(slot)

    def lun(self, slot: int, place: str, size: int) -> tuple[str, Path]:
        """The URL and the file behind it. One for each slot, block size and size; tgtd never reopens it."""
        assert self.iscsi is not None
        with self._lock:
            if (slot, place, size) not in self._luns:
                # Each has a target of its own: a new LUN is a unit attention for those who use another one there.
                iqn = self.iscsi.add_target(f"{self._iqn}.{len(self._luns)}")
                backing = self.directory / f"lun-{slot}-{place}-{size}"
                with backing.open("wb") as file:
                    file.truncate(size)
                number = self.iscsi.add_lun(iqn, backing, block_size=LUNS[place])
                self._luns[slot, place, size] = (self.iscsi.url(iqn, number), backing)
            return self._luns[slot, place, size]


class Run:
    """One program's run of one case, in a folder that is removed in the end."""

    def __init__(self, case: Case, program: Program, lab: Lab, slot: int) -> None:
        self.case, self.program, self.lab, self.slot = case, program, lab, slot
        self.number = next(_runs)
        self.folder = lab.directory / f"run-{self.number}"

    def path(self, image: Image) -> Path:
        """Where its bytes are on this machine."""
        if image.place == NFS:
            assert self.lab.nfs is not None
            return self.lab.nfs.path(f"{self.number}-{image.name}")
        return self.lab.lun(self.slot, image.place, image.size)[1] if image.place in LUNS else self.folder / image.name

    def word(self, image: Image) -> str:
        """How the command line names it."""
        name = image.name
        if image.place == NFS:
            assert self.lab.nfs is not None
            url = self.lab.nfs.url if self.program.speaks_mpconv else self.lab.nfs.qemu_url
            name = url(self.path(image).name)
        elif image.place in LUNS:
            name = self.lab.lun(self.slot, image.place, image.size)[0]
        return image.spelled.replace("{}", name)

    def outcome(self) -> Outcome:
        """Make the inputs, run, look."""
        self.folder.mkdir(parents=True)
        try:
            for image in unique(self.case.images):
                put(image, self.path(image))
            code, stdout, stderr = self._execute()
            return self._look(code, stdout, stderr)
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            for image in self.case.images:
                if image.place == NFS:
                    self.path(image).unlink(missing_ok=True)

    def _execute(self) -> tuple[int | None, str, str]:
        command = arguments(self.case, self.program, [self.word(image) for image in self.case.images])
        with (self.folder / ".stdout").open("w+b") as out, (self.folder / ".stderr").open("w+b") as err:
            process = subprocess.Popen(
                command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, "LC_ALL": "C"},
                start_new_session=True,
            )
            try:
                code: int | None = process.wait(_TIMEOUT)
            except subprocess.TimeoutExpired:
                code = None
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode(errors="replace"))
        return code, said[0], said[1]

    def _look(self, code: int | None, stdout: str, stderr: str) -> Outcome:
        target = self.case.target
        kept = None
        if target is not None and self.path(target).is_file():
            kept = stored(self.path(target))
        sources = [image for image in unique(self.case.sources) if image.exists]
        changed = [
            image.name
            for image in sources
            if not (target and image.name == target.name) and self.path(image).read_bytes() != image.content()
        ]
        names = sorted(
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if not path.name.startswith(".std")
        )
        for word, name in {self.word(image) or "\0": image.name for image in self.case.images}.items():
            stdout, stderr = (text.replace(word, f"<{name}>") for text in (stdout, stderr))
        return Outcome(code, stdout, stderr, kept, tuple(changed), tuple(names))


def unique(images: tuple[Image, ...]) -> list[Image]:
    """One for each name: the first."""
    found: dict[str, Image] = {}
    for image in images:
        found.setdefault(image.name, image)
    return list(found.values())


def put(image: Image, path: Path) -> None:
    """Make the image there, as `recipe` says it."""
    if image.place == FOLDER:
        path.mkdir()
    elif image.exists:
        with path.open("r+b" if image.place in LUNS else "wb") as file:
            file.truncate(0)
            file.truncate(image.size)
            content = image.content()
            for at, piece in image.spans():
                if piece.kind != "hole":
                    file.seek(at)
                    file.write(content[at : at + piece.length])


def stored(path: Path) -> Stored:
    """What the file holds, once it is on the disk: delayed allocation would show as a difference."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        facts = os.fstat(file.fileno())
        found: list[tuple[int, int]] = []
        at = 0
        while at < facts.st_size:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, at))
        file.seek(0)
        return Stored(file.read(), tuple(found), facts.st_blocks * 512 >= facts.st_size)


def _spelled(option: Option, case: Case) -> list[str]:
    if case.spelling != "long" or option[0] not in LONG_NAMES:
        return list(option)
    return [LONG_NAMES[option[0]], *option[1:]]


def arguments(case: Case, program: Program, words: list[str]) -> list[str]:
    """The command line; `words` are the names of the images."""
    command = list(program.command)
    if program.speaks_mpconv and case.workers is not None:
        command += ["--workers", str(case.workers)]
    for option in case.options:
        command += _spelled(option, case) if program.speaks_mpconv else option
    # An option that lacks its value has to be the last word.
    return (
        command[: len(program.command)] + words + command[len(program.command) :]
        if _lacks_value(case)
        else command + words
    )


def _lacks_value(case: Case) -> bool:
    takes = ("-S", "-m", "-o", "-t", "-T", "-r", "-f", "-O", "-B", "-F", "-l")
    return any(option[0] in takes and len(option) == 1 for option in case.options)


_PROGRESS = re.compile(r"(    \(\d+\.\d\d/100%\)\r)+")


def _form(stdout: str) -> str:
    """Standard output without the numbers of the progress; it has to end with all of it."""
    done = "" if stdout.endswith("(100.00/100%)\r\n") else " not all"
    return _PROGRESS.sub(lambda _: f"(progress{done})", stdout)


def first_line(stderr: str) -> str:
    """What is compared of standard error."""
    for rewrite in INTENDED_WORDS:
        stderr = re.sub(rewrite.pattern, rewrite.text, stderr)
    line = next((line for line in stderr.splitlines() if line.strip()), "")
    return re.sub(r"^(qemu-img|mpconv): ", "", line)


def _ranges(ranges: tuple[tuple[int, int], ...]) -> str:
    return " ".join(f"{start}-{end}" for start, end in ranges) or "no data"


def _same_knowledge(case: Case) -> bool:
    """Both programs see the same and can do the same, so that holes in the target have to be equal, too."""
    if case.target is None or case.target.place in LUNS:
        return False
    if case.target.place == NFS and case.has("-n"):
        return False  # qemu-img's NFS driver cannot zero; it writes the zeros
    direct = {"none", "off", "directsync"} & set(case.values("-t"))
    if direct and case.has("-n") and case.target.size % _BLOCK:
        return False  # with direct I/O it writes whole blocks, also where they should be zero
    odd = any(image.size % _BLOCK for image in case.sources)
    if odd and case.has("-C") and {"none", "off", "directsync"} & {*case.values("-T"), *case.values("-t")}:
        return False  # it cannot have the end copied, and then copies all of it by reading, without its zeros
    # Nor does it learn where the source has holes.
    return not any(piece.kind == "hole" for image in case.sources if image.place == NFS for piece in image.pieces)


def _intended_exit(case: Case, qemu: Outcome, mpconv: Outcome) -> bool:
    return any(
        all(case.has(name) for name in intended.needs)
        and first_line(qemu.stderr) == first_line(mpconv.stderr) == intended.said
        and (qemu.code, mpconv.code) == intended.codes
        for intended in INTENDED_EXITS
    )


def _grown(case: Case, theirs: Stored, ours: Stored) -> bool:
    """qemu-img made a target longer that was there: with direct I/O by a part of a block, because it writes whole ones;
    by a part of a sector when it did not know of a hole at the end of the source, and wrote it.
    """
    direct = {"none", "off", "directsync"} & set(case.values("-t"))
    tail = theirs.content[len(ours.content) :]
    most = _BLOCK if direct else 0 if _same_knowledge(case) else _SECTOR
    return case.has("-n") and len(tail) < most and not any(tail)


def differences(case: Case, qemu: Outcome, mpconv: Outcome) -> list[Difference]:
    """Everything that differs."""
    if mpconv.code is None or qemu.code is None:
        return [Difference("hang", str(qemu.code), str(mpconv.code))] if qemu.code != mpconv.code else []
    if qemu.code < 0 or "without 'resize'" in qemu.stderr:
        return []  # it crashes; or it cannot do what mpconv can: write an odd end beside direct I/O
    if case.target is not None and case.target.place in LUNS and not any(image.size for image in case.sources):
        return []  # it zeroes the first sector of a LUN that it "makes"; a copy of nothing changes nothing
    found: list[Difference] = []

    def compare(what: str, ours: object, theirs: object) -> None:
        if ours != theirs:
            found.append(Difference(what, str(ours), str(theirs)))

    if not _intended_exit(case, qemu, mpconv):
        compare("exit code", qemu.code, mpconv.code)
    if "Traceback" in mpconv.stderr:
        found.append(Difference("traceback", first_line(qemu.stderr), mpconv.stderr.strip().splitlines()[-1]))
    else:
        compare("stderr", first_line(qemu.stderr), first_line(mpconv.stderr))
    if qemu.code == mpconv.code == 0:
        compare("stdout", repr(_form(qemu.stdout)), repr(_form(mpconv.stdout)))
    elif _PROGRESS.sub("", mpconv.stdout).strip():
        found.append(Difference("stdout", repr(qemu.stdout), repr(mpconv.stdout)))
    compare("changed sources", qemu.changed_sources, mpconv.changed_sources)
    if qemu.code == mpconv.code == 1 and any(words in qemu.stderr for words in UNTOUCHED):
        return found
    compare("files", qemu.names, mpconv.names)
    theirs, ours = qemu.target, mpconv.target
    compare("target exists", theirs is not None, ours is not None)
    if theirs is None or ours is None:
        return found
    if _grown(case, theirs, ours):
        theirs = replace(theirs, content=theirs.content[: len(ours.content)])
    if len(theirs.content) != len(ours.content):
        compare("size", len(theirs.content), len(ours.content))
    elif theirs.content != ours.content:
        found.append(_content_difference(theirs.content, ours.content))
    elif _same_knowledge(case):
        compare("first block", *(_ranges(one.data_within(0, _BLOCK)) for one in (theirs, ours)))
        compare("allocation", *(_ranges(one.data_within(_BLOCK, len(one.content))) for one in (theirs, ours)))
        if "preallocation" in " ".join(case.values("-o")):
            compare("preallocation", f"full: {theirs.full}", f"full: {ours.full}")
    return found


def _content_difference(qemu: bytes, mpconv: bytes) -> Difference:
    places = [at for at in range(0, len(qemu), 512) if qemu[at : at + 512] != mpconv[at : at + 512]]
    at = next(at for at in range(places[0], len(qemu)) if qemu[at] != mpconv[at])
    where = f"byte {at} (of {len(qemu)}; {len(places)} sectors differ)"
    return Difference("content", f"{where} {qemu[at : at + 16]!r}", f"{' ' * len(where)} {mpconv[at : at + 16]!r}")


def compare_case(case: Case, program: Program, lab: Lab) -> list[Difference]:
    """Run both; what differs."""
    with lab.slot() as slot:
        qemu = Run(case, QEMU_IMG, lab, slot).outcome()
        return differences(case, qemu, Run(case, program, lab, slot).outcome())


def _make(image: Image) -> list[str]:
    """Shell commands that make it."""
    if image.place == FOLDER:
        return [f"mkdir {image.name}"]
    lines = [f"truncate -s {image.size} {image.name}"] if image.exists else []
    for at, piece in image.spans():
        if piece.kind == "hole" or not piece.length:
            continue
        source = f"numbers skip={image.taken_from(at)}" if piece.kind == "data" else "/dev/zero"
        lines.append(
            f"dd status=none conv=notrunc bs=1M iflag=skip_bytes,count_bytes oflag=seek_bytes if={source} "
            f"of={image.name} seek={at} count={piece.length}"
        )
    if image.place in LUNS:
        lines.append(
            f"# {image.name} is behind a thin LUN of {LUNS[image.place]}-byte blocks: put its URL for <{image.name}>"
        )
    elif image.place == NFS:
        lines.append(f"# {image.name} is exported by NFS: put its URL for <{image.name}>")
    return lines


def recipe(case: Case, program: Program) -> str:
    """A shell script that makes the inputs (twice: a folder for each program), and the two commands."""
    lines = [line for image in unique(case.images) for line in _make(image)]
    if any("if=numbers" in line for line in lines):
        lines.insert(0, "seq -f %07.0f 2400000 > numbers")
    words = [
        image.spelled.replace("{}", image.name if image.place in (FILE, ABSENT, FOLDER) else f"<{image.name}>")
        for image in case.images
    ]
    commands = [shlex.join(arguments(case, one, words)) for one in (QEMU_IMG, program)]
    return "\n".join([*lines, *commands])
