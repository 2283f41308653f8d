"""Whose a journal is. It names what is read and overwritten, with the rights of whoever goes on with it: so it is
believed only where nobody else could have written it, or put another one into its place.

The rule is that of ssh's files: owned by oneself or by root, writable for nobody else, and so is each directory above.
A sticky one may lie further up (/tmp), but what is made beside the journal while it is open must be nobody's but ours.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat

from mpconv.model.errors import UsageError
from mpconv.model.names import unusable

OPTION = "--trust-journal"
_LEAVE = f"name one of your own, or give {OPTION} if you know who wrote it"


def check(path: str) -> None:
    """Of one copy, which is there or is to be made. UsageError when somebody else may have a hand in it."""
    _check_name(path)
    folder = os.path.dirname(os.path.abspath(path))
    _check_directories(path, folder)
    _check_file(path, path)


def check_directory(path: str) -> None:
    """Of a fan-out, with all that lies in it."""
    _check_name(path)
    whole = os.path.abspath(path)
    if not os.path.isdir(whole):
        _check_directories(path, os.path.dirname(whole))
        _check_file(path, whole)
        return
    _check_directories(path, whole)
    with os.scandir(whole) as entries:
        for entry in entries:
            _check_file(path, entry.path)


def _check_name(path: str) -> None:
    why = unusable(path)
    if why is not None:
        raise UsageError(f"the journal '{path}' cannot be: {why}")


def _check_file(journal: str, path: str) -> None:
    try:
        found = os.lstat(path)
    except OSError:
        return  # what is wrong with it is told when it is opened
    if stat.S_ISLNK(found.st_mode):
        raise _refused(journal, f"'{path}' is a link: name the file itself")
    _check_owner(journal, path, found)


def _check_directories(journal: str, folder: str) -> None:
    """By the names in the path, and by where they lead."""
    for whole in {folder, os.path.realpath(folder)}:
        at = whole
        while True:
            try:
                found = os.lstat(at)
            except OSError:
                return
            sticky = at != whole and stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
            _check_owner(journal, at, found, shared=bool(sticky) or stat.S_ISLNK(found.st_mode))
            if at == "/":
                break
            at = os.path.dirname(at)


def _check_owner(journal: str, path: str, found: os.stat_result, *, shared: bool = False) -> None:
    if found.st_uid not in (0, os.geteuid()):
        raise _refused(journal, f"'{path}' belongs to {_user(found.st_uid)}, who could have changed it: {_LEAVE}")
    others = found.st_mode & stat.S_IWOTH or (found.st_mode & stat.S_IWGRP and not _own_group(found.st_gid))
    if others and not shared:
        bits = f"{stat.S_IMODE(found.st_mode):04o}"
        raise _refused(journal, f"others may write to '{path}' (mode {bits}): {_LEAVE}")


def _refused(journal: str, why: str) -> UsageError:
    return UsageError(f"the journal '{journal}' is not trusted: {why}")


def _user(number: int) -> str:
    try:
        return f"the user '{pwd.getpwuid(number).pw_name}'"
    except KeyError:
        return f"user {number}"


def _own_group(number: int) -> bool:
    """Whether nobody else is in it: root's, or the private group that many systems give each user."""
    if number == 0:
        return True
    try:
        group, user = grp.getgrgid(number), pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return group.gr_name == user.pw_name and set(group.gr_mem) <= {user.pw_name}
