"""How errors and warnings look on a terminal."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TextIO

import servepipe
from servepipe.errors import MissingExtraError, ServePipeError

__all__ = ["INTERRUPTED", "TROUBLE", "extra_missing_error", "report", "warnings_on_stderr"]

TROUBLE = 2
INTERRUPTED = 130

_EXTRAS = {
    "ray": "runtime",
    "starlette": "runtime",
    "grpc": "runtime",
    "aiohttp": "local",
    "psutil": "local",
    "rich": "local",
    "kubernetes": "operator",
    "prometheus_client": "operator",
}
"""Package -> the extra of servepipe that brings it."""


def report(error: Exception) -> int:
    """Print an error to standard error as what, where and fix, and return the exit status for it."""
    if os.environ.get("SERVEPIPE_TRACEBACK"):
        traceback.print_exception(error)
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in _EXTRAS:
        error = extra_missing_error(error)
    if isinstance(error, ServePipeError):
        _print_users_traceback(error)
        for problem in getattr(error, "problems", [error]):
            _print(problem.what, problem.where, problem.fix)
    elif isinstance(error, OSError):
        _print(f"{error.strerror or error}", str(error.filename or ""))
    else:
        hidden = _hidden_library_module(error)
        _print(
            f"{type(error).__name__}: {error}",
            hidden,
            "This file hides a module of the standard library: rename it."
            if hidden
            else "This is a bug in servepipe; SERVEPIPE_TRACEBACK=1 shows where. Please report it.",
        )
    return TROUBLE


def _hidden_library_module(error: Exception) -> str:
    """The file that was imported in place of a module of the standard library: a ``json.py`` beside the pipeline."""
    from servepipe.authoring.code import in_library

    if isinstance(error, ImportError):
        name, file = error.name, error.path
    else:
        module = getattr(error, "obj", None)
        name, file = getattr(module, "__name__", None), getattr(module, "__file__", None)
    return file if name in sys.stdlib_module_names and file and not in_library(Path(file)) else ""


def _print(what: str, where: str = "", fix: str = "") -> None:
    lines = [f"error: {what}"]
    lines += [f"  where: {where}"] if where else []
    lines += ["  fix:   " + "\n         ".join(fix.splitlines())] if fix else []
    print("\n".join(lines), file=sys.stderr)


def _print_users_traceback(error: ServePipeError) -> None:
    """Where user code raised, that part of the traceback which is theirs."""
    cause = error.__cause__
    if cause is None or isinstance(cause, ServePipeError | SystemExit):
        return
    theirs = _skip_ours(cause.__traceback__)
    if theirs is None and not isinstance(cause, SyntaxError):
        return
    shown = traceback.TracebackException(type(cause), cause, theirs)
    shown.stack = traceback.StackSummary.from_list([frame for frame in shown.stack if not _is_ours(frame.filename)])
    if (
        shown.stack
        and not isinstance(cause, SyntaxError)
        and all(_is_standard(frame.filename) for frame in shown.stack)
    ):
        return  # we called the standard library ourselves: nothing in it is theirs
    print("".join(shown.format(chain=False)), end="", file=sys.stderr)


def _skip_ours(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def _is_ours(filename: str) -> bool:
    """Frames of servepipe, of its plug-in commands and of the import system."""
    own = Path(servepipe.__file__).parent
    importlib = Path(os.__file__).parent / "importlib"
    path = Path(filename)
    ours = own in path.parents or any(parent.name == "servepipe_operator" for parent in path.parents)
    return filename.startswith("<frozen") or ours or importlib in path.parents


def _is_standard(filename: str) -> bool:
    path = Path(filename)
    return Path(os.__file__).parent in path.parents and not {"site-packages", "dist-packages"} & set(path.parts)


def extra_missing_error(error: ModuleNotFoundError, extra: str | None = None) -> MissingExtraError:
    """What to install for a module that is not there; ``extra`` where the module does not tell."""
    name = error.name or str(error)
    extra = _EXTRAS.get(name.partition(".")[0], extra or "local")
    return MissingExtraError(f"this needs the package {name!r}", fix=f'pip install "servepipe[{extra}]"')


@contextlib.contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Show warnings as one line each, ``warning: …``, with the place that they are about."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        where = "" if _is_ours(filename) else f"  where: {filename}:{lineno}\n"
        print(f"warning: {message}\n{where}", end="", file=file or sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
