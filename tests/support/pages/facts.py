"""What the commands say of themselves, and the tables that several pages share. Pure."""

from __future__ import annotations

import inspect

import click
import msgspec

from mpconv.cli import Commands, cli


class Option(msgspec.Struct, frozen=True):
    """`names`: as they are typed. `value`: what stands behind them, or nothing."""

    names: list[str]
    value: str
    text: str

    @property
    def joint(self) -> str:
        """What is between a name and its value."""
        return "" if not self.value or self.value.startswith("[=") else " "


class Facts(msgspec.Struct, frozen=True):
    """Of one command; `exits` and `examples`: each with what it means."""

    name: str
    arguments: str
    paragraphs: list[str]
    options: list[Option]
    exits: list[tuple[str, str]]
    examples: list[tuple[str, str]]

    @property
    def summary(self) -> str:
        """The help's first sentence without its full stop."""
        return self.paragraphs[0].partition(". ")[0].rstrip(".")


_INTERRUPTED = [("129, 130, 143", "it was ended by SIGHUP, Ctrl-C (SIGINT) or SIGTERM; it says what is incomplete now")]
_FAILED = "an error, or a mistake on the command line: one line on stderr says what, where, and why"
_USUAL = [("0", "it is done"), ("1", _FAILED)]
_READ = [("0", "all that was asked for was told"), ("1", _FAILED)]
EXITS: dict[str, list[tuple[str, str]]] = {
    "convert": [
        ("0", "every byte is written, the target's flush succeeded, and with `--verify` what was read back is equal"),
        ("1", f"{_FAILED}; the target is incomplete if the line says so"),
        *_INTERRUPTED,
    ],
    "deploy": [
        ("0", "all targets are written and flushed"),
        ("1", "none is, or a mistake on the command line"),
        ("2", "some are; a warning named each that is not"),
        *_INTERRUPTED,
    ],
    "fanout": [
        ("0", "all jobs are done; with `--check`, the plan can be carried out"),
        ("1", "none is, the plan cannot be carried out, or a mistake on the command line"),
        ("2", "some are; the table at the end names each that is not, and why"),
        *_INTERRUPTED,
    ],
    "resume": [
        ("0", "the copy is finished, now or already before"),
        ("1", _FAILED),
        ("2", "of a deployment or a plan: some targets are written, some are not"),
        *_INTERRUPTED,
    ],
    "compare": [
        ("0", "the images are equal"),
        ("1", "they differ, or a mistake on the command line"),
        ("2", "an image cannot be opened"),
        ("3", "its block status cannot be had"),
        ("4", "it cannot be read"),
        *_INTERRUPTED,
    ],
    "check": [
        ("0", "there are no errors"),
        ("1", "the check could not be done, or a mistake on the command line"),
        ("2", "the image is corrupt"),
        ("3", "there are leaks: clusters that nothing uses and that count as used. No harm to what a guest sees"),
        ("63", "the format has nothing to check: raw"),
    ],
    "checksum": [("0", "every image was read"), ("1", "one could not be; the others were read"), *_INTERRUPTED],
    "worker": [
        ("0", "the job is over, well or badly, or the worker was asked to leave"),
        ("1", "there is no coordinator, it knows another key or is of another version, or no image can be opened"),
    ],
    "doctor": [
        ("0", "nothing is in the way"),
        ("1", "a mistake on the command line"),
        ("2", "something is in the way: each problem is told with what to do"),
    ],
    "info": _READ,
    "map": _READ,
    "measure": _READ,
    "status": _READ,
}
"""Exit codes where they are more than done or not."""

EXAMPLES: dict[str, list[tuple[str, str]]] = {
    "convert": [
        (
            "mpconv convert -p -W nfs://10.0.0.9/export/template.raw iscsi://10.0.0.5/iqn.2020-01.org.example:disk/1",
            "from an NFS server to a LUN, as fast as it goes",
        ),
        (
            "mpconv convert -f raw -p -c -W -O qcow2 iscsi://10.0.0.5/iqn.2020-01.org.example:disk/1 backup.qcow2",
            "a compressed backup of a LUN",
        ),
        (
            "mpconv convert -p --journal copy.journal huge.raw iscsi://10.0.0.5/iqn.2020-01.org.example:disk/1",
            "a copy that `mpconv resume copy.journal` goes on with, whatever ended it",
        ),
    ],
    "deploy": [
        ("mpconv deploy -p -W --targets luns.txt nfs://10.0.0.9/export/template.raw", "to every target in luns.txt"),
    ],
    "worker": [
        (
            "mpconv worker --connect tcp://10.0.0.1:5800 --key-file key --stay",
            "this host helps with every copy of 10.0.0.1 that listens on that port",
        ),
    ],
    "compare": [
        (
            "mpconv compare -f raw -F raw nfs://10.0.0.9/export/backup.raw iscsi://10.0.0.5/iqn.2020-01.org.example:disk/1",
            "whether a backup is equal to its LUN",
        ),
    ],
}
"""Command lines, and what they do."""

ENVIRONMENT = [
    ("LIBISCSI_CHAP_USERNAME", "the user for iSCSI targets, where the URL names none"),
    (
        "LIBISCSI_CHAP_PASSWORD",
        "the password for iSCSI targets, where the URL has none. Better here than in the URL: `ps` shows command lines",
    ),
    ("LIBISCSI_CHAP_TARGET_USERNAME", "for mutual CHAP: the name by which the target proves who it is"),
    ("LIBISCSI_CHAP_TARGET_PASSWORD", "and its password. Both are set, or neither"),
    (
        "MPCONV_INITIATOR_NAME",
        "the initiator name that LUNs see; without it `iqn.2026-11.org.mpconv:HOSTNAME`, the same each time",
    ),
    (
        "MPCONV_REQUEST_SECONDS",
        "how many seconds a server may leave every request unanswered before it counts as gone; without it 60",
    ),
    ("NO_COLOR", "when set, the live bar has no colours"),
    ("TERM", "where it is `dumb` or not set, `-p` prints lines instead of a live bar"),
]
"""The variables that mpconv looks at."""

IMAGES = [
    ("PATH, file:PATH", "a regular file or a block device"),
    (
        "nfs://HOST/EXPORT/FILE",
        "a file on an NFS server; nothing is mounted. Behind a `?`: `nfsport=N&mountport=N` (then no portmapper is "
        "asked), `uid=N`, `gid=N`, `version=3` or `4`. In the path %XX stands for a byte, as with qemu-img: a `?` is "
        "written %3F, a `%` %25",
    ),
    (
        "iscsi://[USER[%PASSWORD]@]HOST[:PORT]/TARGET/LUN",
        "a LUN; no kernel session is opened. Passwords are better given in the environment",
    ),
    ("null:", "swallows what is written; `null:?size=2G` reads zeros"),
    ("driver=raw,offset=1M,file.filename=X", "QEMU's driver options, with `--image-opts` or `--target-image-opts`"),
]
"""How an image is named."""


def _value(param: click.Parameter) -> str:
    if isinstance(param, click.Option) and (param.is_flag or param.count):
        return ""
    return param.metavar or ("N" if isinstance(param.type, click.IntRange) else param.type.name.upper())


def _text(option: click.Option) -> str:
    text = option.help or ""
    if isinstance(option.type, click.IntRange) and option.type.min is not None and option.type.max is not None:
        text += f" From {option.type.min} to {option.type.max}."
    return text


def facts_of(name: str, command: click.Command) -> Facts:
    """What a command's help says, whatever the version of click."""
    shown = [param for param in command.params if isinstance(param, click.Option) and not param.hidden]
    options = [Option([*one.opts, *one.secondary_opts], _value(one), _text(one)) for one in shown]
    options.append(Option(["-h", "--help"], "", "Show the help and exit."))
    arguments = [_value(param) for param in command.params if isinstance(param, click.Argument)]
    paragraphs = [" ".join(part.split()) for part in inspect.cleandoc(command.help or "").split("\n\n")]
    return Facts(
        name, " ".join(filter(None, arguments)), paragraphs, options, EXITS.get(name, _USUAL), EXAMPLES.get(name, [])
    )


def all_facts() -> list[Facts]:
    """Of every command, in the order of `mpconv --help`."""
    assert isinstance(cli, Commands)
    context = click.Context(cli, info_name="mpconv")
    found = {name: cli.get_command(context, name) for name in cli.list_commands(context)}
    return [facts_of(name, command) for name, command in found.items() if command is not None and not command.hidden]
