"""The pages of this project, and what stands on them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PAGES", "ROOT", "anchors", "fences", "inline_code", "name", "prose", "simple_commands"]

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("examples/*/README.md"),
    ]
)

_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", flags=re.M | re.S)


def name(page: Path) -> str:
    """Its path in the project."""
    return str(page.relative_to(ROOT))


def fences(page: Path, language: str) -> list[str]:
    """The bodies of all blocks in one language."""
    return [body for _, found, body in _FENCE.findall(page.read_text(encoding="utf-8")) if found == language]


def prose(page: Path) -> str:
    """The page without blocks and comments."""
    return re.sub(r"<!--.*?-->", "", _FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.S)


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks."""
    return re.findall(r"`([^`\n]+)`", prose(page))


def anchors(page: Path) -> set[str]:
    """Those of its headings, as Markdown readers make them; the second of two equal ones ends in -1."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} (.+?) *$", prose(page), flags=re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        number, unique = 0, slug
        while unique in found:
            number += 1
            unique = f"{slug}-{number}"
        found.add(unique)
    return found


_OPERATORS = re.compile(r"[|&;()<>]+")
_INNER = re.compile(r"\$\(([^()]*)\)")


def simple_commands(script: str) -> Iterator[list[str]]:
    """The words of each command of a script, also of those in ``$(...)``; without redirections and heredocs."""
    script = re.sub(r"(<<-?\s*(['\"]?)(\w+)\2[^\n]*\n).*?^\3$", r"\1", script, flags=re.M | re.S)
    for line in script.replace("\\\n", " ").splitlines():
        for inner in _INNER.findall(line):
            yield from simple_commands(inner)
        lexer = shlex.shlex(_INNER.sub("VALUE", line), posix=True, punctuation_chars=True)
        lexer.commenters, lexer.whitespace_split = "", True
        words: list[str] = []
        redirected = False
        for word in lexer:
            if word.startswith("#"):
                break
            if redirected:
                redirected = False
            elif _OPERATORS.fullmatch(word) and {*word} & {*"<>"}:
                redirected = True
            elif _OPERATORS.fullmatch(word):
                if words:
                    yield words
                words = []
            else:
                words.append(word)
        if words:
            yield words
