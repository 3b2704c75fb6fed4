"""``servepipe init``: a small project to start from."""

from __future__ import annotations

import argparse
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from servepipe.errors import RunError

if TYPE_CHECKING:
    from servepipe.cli import Commands

__all__ = ["register"]

_FILES = {
    "pipeline.py": "pipeline.py.jinja",
    "test_pipeline.py": "test_pipeline.py.jinja",
    "README.md": "README.md.jinja",
    ".gitignore": "gitignore.jinja",
}

_DESCRIPTION = """\
Write a small project: a pipeline of two models, a test, a README. Nothing that exists is overwritten.

  servepipe init hello && cd hello && servepipe up pipeline.py
"""


def register(commands: Commands) -> None:
    parser = commands.add_parser("init", help="start a small project", description=_DESCRIPTION)
    parser.add_argument("folder", metavar="DIR", nargs="?", default=".", help="where to write it (default: here)")
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.folder)
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder} is not a folder", fix="Name a new or an empty folder.")
    taken = [name for name in _FILES if (folder / name).exists()]
    if taken:
        raise RunError(f"{folder} has {', '.join(taken)} already", fix="Name a new or an empty folder.")
    for name, content in project_files(folder).items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content, encoding="utf-8")
        print(f"wrote {folder / name}")
    step_in = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    print(f"\nNext: {step_in}python pipeline.py, then servepipe up pipeline.py")


def project_files(folder: Path) -> dict[str, str]:
    """File name -> content of the new project; it is named after its folder."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    templates = Environment(
        loader=PackageLoader("servepipe.cli"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,  # these are Python and Markdown, not HTML
    )
    name = pipeline_name(folder.resolve().name)
    return {file: templates.get_template(template).render(name=name) for file, template in _FILES.items()}


def pipeline_name(folder_name: str) -> str:
    """The pipeline name closest to a folder's name; ``hello`` where nothing of it can stay."""
    name = re.sub(r"[^a-z0-9]+", "-", folder_name.lower())
    return name.lstrip("-0123456789")[:40].rstrip("-") or "hello"
