"""What is made from the commands is what they say now, and works: pages, man pages, completions."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.pages import files
from tests.support.pages.facts import ENVIRONMENT, EXITS, all_facts
from tests.support.pages.roff import escaped

ROOT = files.ROOT
MANUALS = sorted((ROOT / "share/man/man1").iterdir())
HEAVY = {"zmq", "rich", "sqlite3", "multiprocessing", "xxhash", "isal", "zstandard", "_cffi_backend"}
HEAVY |= {"numpy", "distributed", "prometheus_client"}
HEAVY_OF_OURS = {"mpconv.coordinator", "mpconv.jobs.copy.convert", "mpconv.workers", "mpconv.transports.native"}


def test_what_was_made_from_the_commands_is_what_they_say_now():
    wanted, found = files.made(), files.there()
    old = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    assert old == [], "made from other commands than these: run scripts/pages, and commit what it writes"


def test_every_command_with_other_exit_codes_is_there():
    assert EXITS.keys() <= {facts.name for facts in all_facts()}


def test_all_variables_that_are_looked_at_are_told():
    looked_at = set()
    for path in (ROOT / "mpconv").rglob("*.py"):
        text = path.read_text()
        constants = dict(re.findall(r'^(_[A-Z_]+) = "([A-Z_]+)"$', text, re.MULTILINE))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in {"os.environ.get", "os.getenv"}:
                name = ast.unparse(node.args[0])
                looked_at.add(constants.get(name, name.strip("'")))
    assert looked_at == {name for name, _ in ENVIRONMENT} - {"NO_COLOR"}  # rich looks at that one


@pytest.mark.parametrize("page", MANUALS, ids=lambda page: page.stem)
def test_groff_finds_nothing_wrong_in_a_man_page(page):
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tascii", "-P-cbou", page], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    for section in ("NAME", "SYNOPSIS", "DESCRIPTION", "EXIT STATUS", "SEE ALSO"):
        assert section in done.stdout


def test_a_man_page_tells_every_option():
    for facts in all_facts():
        page = (ROOT / f"share/man/man1/mpconv-{facts.name}.1").read_text()
        for option in facts.options:
            assert all(f"\\fB{escaped(name)}\\fR" in page for name in option.names)


def completed(words: str, *, shell: str = "bash", python: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """What mpconv says when TAB is pressed at the end of `words`."""
    environment = {
        **os.environ,
        "_MPCONV_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    command = [sys.executable, *python, str(Path(sys.executable).with_name("mpconv"))]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("mpconv res", ["plain,resume"]),
        ("mpconv convert --sal", ["plain,--salvage"]),
        ("mpconv convert --nonsense -m x --sal", ["plain,--salvage"]),
        ("mpconv convert -O q", ["plain,qcow2"]),
        ("mpconv convert -t write", ["plain,writeback", "plain,writethrough"]),
        ("mpconv info --output ", ["plain,human", "plain,json"]),
        ("mpconv convert disk.ra", ["file,disk.ra"]),
        ("mpconv convert --journal cop", ["file,cop"]),
        ("mpconv worker ", []),
    ],
)
def test_tab_completes(words, said):
    done = completed(words)
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", said)


def test_tab_loads_nothing_heavy():
    for words in ("mpconv ", "mpconv convert -", "mpconv deploy x"):
        loaded = set(re.findall(r"\| +([\w.]+)$", completed(words, python=("-X", "importtime")).stderr, re.MULTILINE))
        assert "mpconv.cli.completion" in loaded
        assert loaded & (HEAVY | HEAVY_OF_OURS) == set()


def test_a_usual_command_loads_no_completion():
    command = [sys.executable, "-X", "importtime", "-m", "mpconv", "info", "/nonexistent"]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "mpconv.cli.options.command" in loaded and "mpconv.cli.completion" not in loaded


def test_bash_itself_completes():
    script = """
        source share/bash-completion/completions/mpconv
        complete -p mpconv
        COMP_WORDS=(mpconv convert --target-f) COMP_CWORD=2
        _mpconv_completion mpconv
        echo "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["bash", "-euc", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.splitlines()[1:] == ["--target-format --target-format-options"]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_others_are_answered_with_what_an_option_means(shell):
    environment = {"COMP_CWORD": "--salv"} if shell == "fish" else {}
    command = [sys.executable, str(Path(sys.executable).with_name("mpconv"))]
    words = {"_MPCONV_COMPLETE": f"{shell}_complete", "COMP_WORDS": "mpconv convert --salv", "COMP_CWORD": "2"}
    done = subprocess.run(
        command, env={**os.environ, **words, **environment}, capture_output=True, text=True, check=True
    )
    assert "--salvage" in done.stdout
    assert "What cannot be read becomes zeros" in done.stdout


def test_the_wheel_has_them(tmp_path):
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    [wheel] = tmp_path.glob("*.whl")
    names = {name.partition(".data/data/")[2] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in files.made() if name.startswith("share/")} <= names
