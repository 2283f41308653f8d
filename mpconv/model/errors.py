"""One tree of errors, sorted by what the caller may do next.

Every error says what failed, on which image (without credentials), at which byte and why. `str(error)` is
the one line a user reads; it follows qemu-img's words where qemu-img has them.
"""

from __future__ import annotations

import errno
import signal


class MpconvError(Exception):
    """Base of every error that a user may see. `why` is a clause without a full stop."""

    exit_code = 1
    reason = ""
    """Of an image that cannot be opened: `why` without the words around it."""

    def __init__(self, why: str, *, operation: str = "", image: str = "", offset: int | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.operation = operation
        self.image = image
        self.offset = offset

    def __str__(self) -> str:
        return one_line(self._told())

    def _told(self) -> str:
        if not self.operation:
            return self.why
        where = "" if self.offset is None else f" at byte {self.offset}"
        image = f" of '{self.image}'" if self.image else ""
        return f"error while {self.operation}{where}{image}: {self.why}"

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.why, self.operation, self.image, self.offset))


def one_line(text: str) -> str:
    """Control characters as escapes: names inside an image must not steer the terminal, nor look like other lines."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or "\ud800" <= c <= "\udfff" else ascii(c)[1:-1] for c in text)


def _rebuild(kind: type[MpconvError], why: str, operation: str, image: str, offset: int | None) -> MpconvError:
    return kind(why, operation=operation, image=image, offset=offset)


_TOLD: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class Interrupted(MpconvError):
    """Ctrl-C, SIGTERM or SIGHUP: the signal's number, and the exit code that shells give for it."""

    def __init__(self, number: int) -> None:
        super().__init__(_TOLD[number])
        self.number = number
        self.exit_code = 128 + number

    def anew(self) -> Interrupted:
        """Another one of the same, to which somebody else adds how far it came."""
        return Interrupted(self.number)


class Deserted(Interrupted):
    """Nobody works, and nobody will: to go on is no use."""

    def __init__(self, why: str) -> None:
        MpconvError.__init__(self, why)

    def anew(self) -> Deserted:
        return Deserted(self.why)


class Cancelled(Interrupted):
    """The program that wanted it done wants it no more."""

    def __init__(self) -> None:
        MpconvError.__init__(self, "cancelled")

    def anew(self) -> Cancelled:
        return Cancelled()


class Retryable(MpconvError):
    """The same request may be tried again, on a new connection."""


class Fatal(MpconvError):
    """Trying again would fail again: bad credentials, no space, no such image."""


def short_of(error: BaseException) -> str | None:
    """What this process has run out of, and what to do; None: it is another error."""
    number = getattr(error, "errno", None)
    if number == errno.EMFILE:
        return "too many open files: allow more (ulimit -n), or use fewer images or --workers"
    if number == errno.ENFILE:
        return "too many open files on this host: see sysctl fs.file-max"
    if isinstance(error, MemoryError) or number == errno.ENOMEM:
        return "not enough memory: allow more (ulimit -v), or use fewer --workers"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "no thread can be started: allow more memory or processes (ulimit -v, ulimit -u), or use fewer --workers"
    return None


def internal(error: BaseException, where: str) -> Fatal:
    """A defect of ours ends the job: nobody would notice the part that it stopped. Shortage is none."""
    short = short_of(error)
    if short is not None:
        return Fatal(short)
    return Fatal(f"internal error in {where}: {type(error).__name__}: {error}; please report it")


class Busy(Retryable):
    """The server asks for patience: the same request may be tried again on the same connection."""


class Restarted(Retryable):
    """The server has begun anew, and may have lost what was written and not made durable."""


class StatusWithdrawn(Retryable):
    """What block status said before was wrong: everything must be read."""


class Denied(Fatal):
    """Somebody is there and does not let us in: another user, password or right is needed."""


class NoSpace(Fatal):
    """What is written to is full: the disk, the quota, the pool behind a LUN."""


class ImageError(Fatal):
    """An image's own bytes are wrong, or ask for what is refused."""


class Unreachable(Fatal):
    """Nobody answers there at present."""


class Crowded(Unreachable):
    """It answers, and has no room for another connection at present."""

    certain = True
    """Whether it says that this is the reason."""


class Unavailable(Crowded):
    """It answers, and lets nobody in at present: some say so for want of room."""

    certain = False


class Absent(Fatal):
    """A server answers, and has nothing under that name: one that is just starting may have it a moment later."""


class NoSuchImage(Absent):
    """There is nothing under that name: it may be created."""


class Gone(Fatal):
    """An image that was open is lost for good: no answer for as long as it was tried, or it is another one now."""


class Unequal(Fatal):
    """A copy is complete, and what was read back of it is not what was read of its source."""


class InUse(Fatal):
    """Another program has the image open and does not share it."""


class NoChecks(Fatal):
    """There is nothing to check in an image of that format."""

    exit_code = 63


class UsageError(Fatal):
    """The command line asks for something that cannot be."""


KINDS: dict[str, type[Fatal]] = {
    "fatal": Fatal,
    "no-space": NoSpace,
    "image": ImageError,
    "denied": Denied,
    "unreachable": Unreachable,
    "absent": Absent,
    "no-such-image": NoSuchImage,
    "gone": Gone,
    "in-use": InUse,
    "usage": UsageError,
}
"""What a process may tell another one of an error's class: those that the caller may act on."""
_WORDS = {kind: word for word, kind in KINDS.items()}


def kind_of(error: MpconvError) -> str:
    """The word for its class, or for the nearest one above that has any."""
    return next((_WORDS[kind] for kind in type(error).__mro__ if kind in _WORDS), "fatal")


class ProtocolError(MpconvError):
    """The other side of a link broke the rules: drop the link."""


class WorkerLost(Fatal):
    """A worker process ended or fell silent before its work was done."""
