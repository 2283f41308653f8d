"""The tutorial runs as it is written: every command in it, in one shell, against real servers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "tutorial.md"
HOME = "/home/you/mpconv"
MARK = "@@ command"


class Command(msgspec.Struct):
    """A line behind a prompt, and the lines that the page shows below it."""

    line: str
    shown: list[str]


def commands(text: str) -> list[Command]:
    """What stands in the page's console blocks."""
    found: list[Command] = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Command(line[2:], []))
            else:
                found[-1].shown.append(line)
    return found


def pattern(shown: list[str]) -> str:
    """What the page shows as a regular expression: numbers and digests may be others, `...` is anything."""
    text = "".join(f"{line}\n" for line in shown)
    parts = [re.escape(part) for part in re.split(r"^\.\.\.\n", text, flags=re.MULTILINE)]
    parts = [re.sub(r"[0-9a-f]{32}|\d+(?:\\\.\d+)?", r"[0-9a-f.]+", part) for part in parts]
    parts = [re.sub(r"(\[0-9a-f\.\]\+\\ [a-z]+)s\b", r"\1s?", part) for part in parts]  # one of them has no plural
    return "(?s:.*)".join(parts)


def script(steps: list[Command]) -> str:
    """One script for them all; before the output of each its number and how the one before it ended."""
    lines = [f"printf '{MARK} %s %s\\n' {n} $code\n(exit $code)\n{step.line}\ncode=$?" for n, step in enumerate(steps)]
    return "code=0\n" + "\n".join(lines) + f"\nprintf '{MARK} %s %s\\n' {len(steps)} $code\n"


@pytest.mark.timeout(300)
@pytest.mark.skipif(os.geteuid() != 0, reason="its servers need root")
def test_the_tutorial_runs_as_it_is_written(tmp_path):
    for path in ROOT.iterdir():
        if not path.name.startswith((".venv", "lab")):
            (tmp_path / path.name).symlink_to(path)
    (tmp_path / ".venv").symlink_to(sys.prefix)  # scripts/setup finds it complete
    steps = commands(PAGE.read_text())
    assert len(steps) > 20
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MPCONV_")}
    try:
        done = subprocess.run(
            ["bash", "-c", script(steps)],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=240,
            check=False,
        )
    finally:
        subprocess.run([sys.executable, ROOT / "scripts/lab", "--dir", tmp_path / "lab", "down"], check=True)
    _, *outputs = re.split(rf"^{MARK} ", done.stdout.replace(str(tmp_path), HOME), flags=re.MULTILINE)
    assert len(outputs) == len(steps) + 1, done.stdout
    for number, step in enumerate(steps):
        said = outputs[number].partition("\n")[2]
        code = int(outputs[number + 1].split()[1])
        asked = number + 1 < len(steps) and steps[number + 1].line == "echo $?"
        assert re.fullmatch(pattern(step.shown), said), f"$ {step.line}\n{said}\nand not\n" + "\n".join(step.shown)
        assert code == 0 or asked, f"$ {step.line}\nended with {code}"
        if step.line == "echo $?":
            assert step.shown == [said.strip()]


def test_what_differs_from_the_page_is_noticed():
    shown = ["state: stopped", "...", "durable: 8 MiB (8388608 bytes, 7.8%)", "go on with: mpconv resume copy.journal"]
    said = (
        "state: stopped\nsize: 1\nx\ndurable: 352 MiB (369098752 bytes, 17.19%)\ngo on with: mpconv resume copy.journal"
    )
    said += "\n"
    assert re.fullmatch(pattern(shown), said)
    assert not re.fullmatch(pattern(shown), said.replace("durable", "written"))
    assert not re.fullmatch(pattern(["Images are identical."]), "Images are identical!\n")
    assert re.fullmatch(pattern(["2 workers of 2 cores"]), "1 worker of 16 cores\n")
    assert not re.fullmatch(pattern([]), "mpconv: warning\n")
