"""What commands read and write: pipelines as Python or YAML, ``-`` for standard input and output."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from servepipe.errors import ResourceError, ServePipeError

if TYPE_CHECKING:
    from servepipe.api.v1alpha1 import ServePipeline

__all__ = [
    "STANDARD",
    "Source",
    "add_output",
    "located_in",
    "read_document",
    "read_pipeline",
    "split_app",
    "write_output",
]

STANDARD = "-"


@dataclasses.dataclass(frozen=True)
class Source:
    """A pipeline and where it came from; ``root`` is the import root of a Python file, None for YAML."""

    resource: ServePipeline
    label: str
    root: Path | None = None


def read_pipeline(argument: str) -> Source:
    """The pipeline of ``FILE.py[:APP]``, ``FILE.yaml`` or ``-`` (YAML). Python is imported without being run.

    Raises:
        ServePipeError: There is none, or it is not valid.
        OSError: The file cannot be read.
    """
    from servepipe import api

    file, attribute = split_app(argument)
    if file.endswith(".py"):
        from servepipe.authoring.loader import forgetting, load_app, locate
        from servepipe.authoring.resource import to_validated

        root, _ = locate(file)
        # What the file prints must not end up in the YAML.
        with _output_to_stderr(), forgetting():
            resource = to_validated(load_app(file, attribute))
        with located_in(argument):
            return Source(checked(resource), argument, root)
    if attribute is not None:
        raise ResourceError(f"{file} is not a Python file, so there is no {attribute!r} in it")
    with located_in(argument) as label:
        return Source(checked(api.validate(read_document(argument))), label)


@contextlib.contextmanager
def _output_to_stderr() -> Iterator[None]:
    """Standard output is standard error, for child processes and libraries written in C too."""
    with contextlib.redirect_stdout(sys.stderr), contextlib.ExitStack() as restore:
        with contextlib.suppress(OSError):  # one of them is closed
            saved = os.dup(1)
            restore.callback(os.close, saved)
            os.dup2(2, 1)
            restore.callback(os.dup2, saved, 1)
        yield


def checked(resource: ServePipeline) -> ServePipeline:
    """``resource`` itself, once everything that a schema cannot see is right as well.

    Raises:
        InvalidResourceError: It is not; lists every problem.
    """
    from servepipe import api

    if found := api.problems(resource):
        raise api.InvalidResourceError(found)
    return resource


def split_app(argument: str) -> tuple[str, str | None]:
    """``FILE[:APP]`` in its parts; a file whose own name has a colon wins."""
    file, colon, attribute = argument.rpartition(":")
    if not colon or Path(argument).exists():
        return argument, None
    return file, attribute


def read_document(argument: str) -> Any:
    """The JSON value of a YAML file, or of standard input for ``-``.

    Raises:
        ResourceError: It cannot be read or is no YAML.
    """
    from servepipe import api

    if argument != STANDARD:
        return api.load_yaml(Path(argument))
    if sys.stdin is None:
        raise ResourceError("standard input is closed", fix="Name a file instead of -.")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise ResourceError(f"this is not UTF-8 text: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise ResourceError("standard input is empty", fix="Only one - can be given; name files for the rest.")
    return api.load_yaml(f"{text}\n")


@contextlib.contextmanager
def located_in(argument: str) -> Iterator[str]:
    """Put the file's name before the paths that errors name. Yields the name, for people."""
    label = "standard input" if argument == STANDARD else argument
    try:
        yield label
    except ServePipeError as error:
        problems = getattr(error, "problems", None)
        if problems is None:
            error.where = _located(label, error.where)
            raise
        from servepipe.api import InvalidResourceError

        raise InvalidResourceError(
            [dataclasses.replace(problem, where=_located(label, problem.where)) for problem in problems]
        ) from error


def _located(label: str, where: str) -> str:
    if where.startswith(label):
        return where
    return f"{label}: {where}" if where else label


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o", "--output", metavar="OUT", default=STANDARD, help="file to write; - is standard output (default)"
    )


def write_output(text: str, output: str) -> None:
    """Write a result to a file, whole or not at all, or to standard output.

    Raises:
        OSError: It cannot be written; ``filename`` is what the user named.
    """
    try:
        if output == STANDARD:
            _write_standard(text)
        else:
            _write_file(text, Path(output))
    except OSError as error:
        error.filename = "standard output" if output == STANDARD else output
        raise


def _write_standard(text: str) -> None:
    if sys.stdout is None:
        raise OSError(errno.EBADF, "it is closed")
    # The same bytes as in a file, whatever the terminal's encoding is.
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())
    sys.stdout.flush()


def _write_file(text: str, path: Path) -> None:
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8", newline="\n")  # a pipe or a device, or the error that says why not
        return
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
        mode = path.stat().st_mode if path.exists() else 0o666 & ~_umask()
        Path(temporary).chmod(mode)
        Path(temporary).replace(path.resolve())
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
