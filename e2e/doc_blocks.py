"""The blocks of commands on a page of documentation.

Blocks fenced as ``console``, ``bash`` or ``sh`` are commands. In a ``console`` block each starts with ``$ ``, and the
lines after it are what it prints; other blocks are one script. A comment on the line before a block says more::

    <!-- walk: skip REASON -->               is not run, and the reason is printed
    <!-- walk: needs kind -->                runs only where the caller has "kind", else it is skipped
    <!-- walk: step cluster; needs kind -->  the caller may have a script of its own for the step "cluster"
    <!-- walk: timeout 600 -->               seconds for each of its commands; 120 without
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "Command", "WalkError", "blocks"]

LANGUAGES = ("console", "bash", "sh")
TIMEOUT_S = 120.0
_KEYS = ("skip", "needs", "step", "timeout")

_FENCE = re.compile(r"( *)(`{3,}|~{3,})\s*(\w*)[^`]*$")
_MARK = re.compile(r"\s*<!-- walk: (.*?) -->\s*$")
_PROMPT = "$ "
_HEREDOC = re.compile(r"<<-?\s*(['\"]?)(\w+)\1")


class WalkError(Exception):
    """A page cannot be read, or a command did not do what it says; the message has page and line."""


@dataclass(frozen=True, slots=True)
class Command:
    """``line`` counts from 1; ``shows`` are the lines that the page has below it."""

    text: str
    line: int
    shows: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """Commands that stand together.

    Args:
        skip: Why it is not run, or "".
        needs: What has to be there for it.
        step: A name by which a caller can run something else in its place, or "".
        timeout_s: For each command.
    """

    page: Path
    line: int
    language: str
    commands: tuple[Command, ...]
    skip: str = ""
    needs: frozenset[str] = frozenset()
    step: str = ""
    timeout_s: float = TIMEOUT_S

    @property
    def place(self) -> str:
        """``docs/install.md:12``."""
        return f"{self.page}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """All blocks of commands of a page. Raises WalkError for a marker or a block that cannot be understood."""
    found, mark, mark_line = [], "", 0
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    for number, line in lines:
        if marked := _MARK.match(line):
            mark, mark_line = marked[1], number
            continue
        if fence := _FENCE.match(line):
            body = _body(lines, fence[2], len(fence[1]))
            if fence[3] in LANGUAGES:
                found.append(_block(page, number, fence[3], body, mark))
                mark = ""
        if mark and line.strip():
            raise WalkError(f"{page}:{mark_line}: the comment belongs to no block of commands")
    if mark:
        raise WalkError(f"{page}:{mark_line}: the comment belongs to no block of commands")
    return found


def _body(lines: Iterator[tuple[int, str]], fence: str, indent: int) -> list[tuple[int, str]]:
    """The lines up to the end of a fence."""
    body = []
    for number, line in lines:
        if line.strip() == fence:
            break
        body.append((number, line[indent:] if not line[:indent].strip() else line))
    return body


def _block(page: Path, line: int, language: str, body: list[tuple[int, str]], mark: str) -> Block:
    where = f"{page}:{line}"
    said: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in mark.split(";"))):
        key, _, value = part.partition(" ")
        if key not in _KEYS or not value.strip():
            raise WalkError(f"{where}: {part!r} is none of: {', '.join(f'{key} …' for key in _KEYS)}")
        said[key] = value.strip()
    if language == "console":
        commands = tuple(_console(where, body))
    else:
        commands = (Command("\n".join(text for _, text in body), line + 1),)
    if not commands:
        raise WalkError(f"{where}: a block of commands without a line that starts with {_PROMPT!r}")
    try:
        timeout_s = float(said.get("timeout", TIMEOUT_S))
    except ValueError:
        raise WalkError(f"{where}: timeout {said['timeout']!r} is no number") from None
    needs = frozenset(filter(None, (one.strip() for one in said.get("needs", "").split(","))))
    return Block(page, line, language, commands, said.get("skip", ""), needs, said.get("step", ""), timeout_s)


def _console(where: str, body: list[tuple[int, str]]) -> Iterator[Command]:
    lines = list(body)
    while lines:
        number, line = lines.pop(0)
        if not line.startswith(_PROMPT):
            raise WalkError(f"{where}: line {number} belongs to no command: {line!r}")
        text = [line.removeprefix(_PROMPT)]
        while lines and _goes_on(text):
            text.append(lines.pop(0)[1])
        shows = []
        while lines and not lines[0][1].startswith(_PROMPT):
            shows.append(lines.pop(0)[1])
        yield Command("\n".join(text), number, tuple(one for one in shows if one.strip()))


def _goes_on(text: Sequence[str]) -> bool:
    """Whether a command needs the next line: after a backslash, in a heredoc."""
    if text[-1].endswith("\\"):
        return True
    begun = _HEREDOC.search("\n".join(text))
    return begun is not None and begun[2] not in [line.strip() for line in text[1:]]
