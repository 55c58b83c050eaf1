"""Code blocks of Markdown files, run as a reader would: in order, one Python session, one directory."""

import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

# Not run: it would install into the environment of the tests, or has a test of its own with two processes.
_SKIPPED = ("pip install", "accelerate launch")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: after the fence.
        code: its lines.
        line: number of the block's first line in its file, from 1.
    """

    language: str
    code: str
    line: int


def code_blocks(file: Path) -> list[Block]:
    """The Python and shell blocks of a Markdown file, in order."""
    text = file.read_text(encoding="utf-8")
    found = re.finditer(r"^```(python|bash)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(m[1], m[2], text.count("\n", 0, m.start(2)) + 1) for m in found]


def run_blocks(
    file: Path, command: Callable[[list[str]], int], smaller: Mapping[str, str] | None = None
) -> int:
    """Run a file's blocks in the current directory; errors name the file and line.

    `command` runs the words after `collab-hf` and gives the exit code; `smaller` has what stands in the
    place of words that mean hours of work. Returns how many blocks ran.
    """
    session: dict[str, object] = {"__name__": "__main__"}
    ran = 0
    for block in code_blocks(file):
        code = block.code
        for found, instead in (smaller or {}).items():
            code = code.replace(found, instead)
        if block.language == "python":
            padded = "\n" * (block.line - 1) + code
            exec(compile(padded, str(file), "exec"), session)
        else:
            for line in code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if not words or line.startswith(_SKIPPED):
                    continue
                assert words[0] == "collab-hf", f"{file.name}, line {block.line}: can't run {line!r}"
                assert command(words[1:]) == 0, f"{file.name}, line {block.line}: {line!r} failed"
        ran += 1
    return ran
