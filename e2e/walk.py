"""Runs the commands of documentation pages, on whatever cluster `kubectl` speaks to.

The blocks of a page (`doc_blocks`) run in one shell, so that `cd`, `export` and jobs in the background last until its
end. A command fails that ends with another status than 0, or whose output lacks a line that the page shows; see
`missing`. What a page begins with, such as a clone and an environment, the caller has to provide.

    python e2e/walk.py docs/install.md docs/first-pipeline.md --have kind
    python e2e/walk.py docs/*.md --list
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from doc_blocks import Block, Command, WalkError, blocks

__all__ = ["WalkError", "missing", "walk"]

# --- Comparing --------------------------------------------------------------------------------------------------------

#: What is another each time: hashes, ages, times of day, dates.
_CHANGES = re.compile(
    r"\b\d{4}-\d\d-\d\dT[\d:.]+Z\b|\b\d\d:\d\d:\d\d\b|\b(?=[0-9a-f]*\d)[0-9a-f]{5,}\b|\b(?:\d+(?:ms|s|m|h|d))+\b"
)


def missing(shows: Sequence[str], output: str) -> str | None:
    """The first line that a page shows and the output does not have after those before it, or None.

    Spaces do not count, nor does what differs each time: hashes, ages, times. ``…`` stands for anything.
    """
    left = [_loosely(line) for line in output.splitlines()]
    for line in shows:
        wanted = re.compile(".*".join(re.escape(part.strip()) for part in _loosely(line).split("…")))
        while left and not wanted.search(left[0]):
            left.pop(0)
        if not left:
            return line
        left.pop(0)
    return None


def _loosely(line: str) -> str:
    return " ".join(_CHANGES.sub("#", line).split())


# --- Running ----------------------------------------------------------------------------------------------------------


@dataclass
class _Shell:
    """One bash for a page. What it started ends with it."""

    cwd: Path
    environment: Mapping[str, str]
    _outputs: Path = field(init=False)

    def __enter__(self) -> _Shell:
        self._folder = tempfile.TemporaryDirectory(prefix="walk-")
        self._outputs = Path(self._folder.name)
        self._ended, told = os.pipe()
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-e"],
            cwd=self.cwd,
            env=dict(self.environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(told,),
            start_new_session=True,
            text=True,
        )
        self._told = told
        os.close(told)
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._bash.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        self._bash.wait()
        if self._bash.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._bash.stdin.close()
        os.close(self._ended)
        self._folder.cleanup()

    def run(self, text: str, timeout_s: float) -> tuple[int | None, str]:
        """The exit status, or None where it did not end in time; and what was printed."""
        output = self._outputs / "output"
        # Jobs in the background must not hold the pipe on which the end is told.
        script = f"{{\n{text}\n}} >{output} 2>&1 </dev/null {self._told}>&-\necho $? >&{self._told}\n"
        assert self._bash.stdin is not None
        try:
            self._bash.stdin.write(script)
            self._bash.stdin.flush()
        except BrokenPipeError:
            return self._bash.wait(), "the shell had ended before"
        status = self._status(time.monotonic() + timeout_s)
        return status, output.read_text(encoding="utf-8", errors="replace") if output.exists() else ""

    def _status(self, until: float) -> int | None:
        told = b""
        while not told.endswith(b"\n"):
            ready, _, _ = select.select([self._ended], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            part = os.read(self._ended, 16)
            if not part:  # it ends at the first command that fails
                return self._bash.wait()
            told += part
        return int(told)


def walk(
    pages: Sequence[Path],
    *,
    have: Collection[str] = (),
    instead: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    environment: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> int:
    """Run the commands of pages, one after the other.

    Args:
        have: What is there, for blocks that need something.
        instead: Scripts in place of blocks, by the name of their step; "" leaves such a step out.
        cwd: Where each page begins; by default the current folder.
        environment: By default this process's.
        say: Told of every command, and of every block that is skipped and why.

    Returns:
        How many commands were run.

    Raises:
        WalkError: A command failed, did not end in time, or did not print what the page shows.
    """
    instead = instead or {}
    count = 0
    for page in pages:
        with _Shell(cwd or Path.cwd(), os.environ if environment is None else environment) as shell:
            for block in blocks(page):
                for command in _due(block, have, instead, say):
                    say(f"{page}:{command.line}: $ {command.text}")
                    _check(page, command, *shell.run(command.text, block.timeout_s), block.timeout_s)
                    count += 1
    return count


def _due(
    block: Block, have: Collection[str], instead: Mapping[str, str], say: Callable[[str], None]
) -> Sequence[Command]:
    """The commands that are to be run for a block."""
    if block.step in instead and block.step:
        say(f"{block.place}: step {block.step} is done in another way here")
        return [Command(instead[block.step], block.line)] if instead[block.step] else []
    if block.skip:
        say(f"{block.place}: skipped: {block.skip}")
        return []
    if lacks := sorted(block.needs - set(have)):
        say(f"{block.place}: skipped: it needs {', '.join(lacks)}")
        return []
    return block.commands


def _check(page: Path, command: Command, status: int | None, output: str, timeout_s: float) -> None:
    where = f"{page}:{command.line}: $ {command.text}"
    if status is None:
        raise WalkError(f"{where}\ndid not end within {timeout_s:g} s. It printed:\n{output}")
    if status != 0:
        raise WalkError(f"{where}\nended with status {status}. It printed:\n{output}")
    if line := missing(command.shows, output):
        raise WalkError(f"{where}\ndid not print this line of the page: {line}\nIt printed:\n{output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python e2e/walk.py", description="Run the commands of documentation pages.")
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--have", default="", help="what blocks may need, separated by commas: kind,docker")
    parser.add_argument("--instead", action="append", default=[], metavar="STEP=FILE", help="a script for a step")
    parser.add_argument("--list", action="store_true", help="print the commands and run nothing")
    asked = parser.parse_args(arguments)
    try:
        if asked.list:
            for block in (block for page in asked.pages for block in blocks(page)):
                why = block.skip or ", ".join(f"needs {one}" for one in sorted(block.needs))
                for command in block.commands:
                    print(f"{block.page}:{command.line}: $ {command.text}" + (f"    [{why}]" if why else ""))
            return 0
        steps = dict(one.split("=", 1) for one in asked.instead)
        scripts = {step: Path(file).read_text(encoding="utf-8") for step, file in steps.items()}
        count = walk(asked.pages, have=frozenset(asked.have.split(",")), instead=scripts)
    except WalkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} commands did what the pages say")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
